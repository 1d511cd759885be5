// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// `emit-kernel FILE --level=x86-64-v4 --emit=mlir|llvm|asm`: prints the code of
/// the `exec.kernel` ops of a module, for FileCheck.

#include "codegen/Cpu/Compile.h"
#include "dialects/Exec/ExecDialect.h"

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/MLIRContext.h"
#include "mlir/Parser/Parser.h"
#include "llvm/Support/CommandLine.h"
#include "llvm/Support/raw_ostream.h"

using namespace moec;

static int fail(const llvm::Twine &message) {
  llvm::errs() << "emit-kernel: " << message << "\n";
  return 1;
}

int main(int argc, char **argv) {
  llvm::cl::opt<std::string> input(llvm::cl::Positional, llvm::cl::Required, llvm::cl::desc("file"));
  llvm::cl::opt<std::string> levelName("level", llvm::cl::init("x86-64-v4"), llvm::cl::desc("CPU level"));
  llvm::cl::opt<std::string> form("emit", llvm::cl::init("asm"), llvm::cl::desc("mlir, llvm or asm"));
  llvm::cl::ParseCommandLineOptions(argc, argv);

  const cpu::Level *level = cpu::findLevel(levelName);
  if (!level)
    return fail("no level '" + levelName + "'");
  mlir::MLIRContext context;
  context.loadDialect<mlir::exec::ExecDialect>();
  auto module = mlir::parseSourceFile<mlir::ModuleOp>(input, &context);
  if (!module)
    return 1;
  std::vector<cpu::Kernel> kernels;
  for (auto op : module->getOps<mlir::exec::KernelOp>()) {
    auto spec = fromAttr(op.getKind(), op.getSpec(), [&] { return op.emitError(); });
    if (mlir::failed(spec))
      return 1;
    Status status = cpu::checkSpec(*spec);
    if (!status.ok())
      return fail(op.getSymName() + ": " + status.message());
    kernels.push_back({op.getSymName().str(), *spec});
  }
  if (form == "mlir") {
    cpu::emitModule(context, kernels, *level)->print(llvm::outs());
    return 0;
  }
  auto output = form == "llvm" ? cpu::Output::LlvmIr : cpu::Output::Assembly;
  Result<std::vector<std::string>> parts = cpu::compileKernels(kernels, *level, output);
  if (!parts.ok())
    return fail(parts.message());
  for (const std::string &part : *parts)
    llvm::outs() << part;
  return 0;
}
