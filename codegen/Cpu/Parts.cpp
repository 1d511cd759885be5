// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Kernels made of others: functions of the module that one kernel alone calls.

#include "codegen/Common/KernelSignature.h"
#include "codegen/Cpu/Emitters.h"

namespace moec::cpu {

namespace {

/// The parts of a kernel, emitted before it.
class Parts {
public:
  Parts(KernelBuilder &b, llvm::StringRef symbol, llvm::ArrayRef<KernelSpec> specs, const Tiles &tiles) : b(b) {
    for (const KernelSpec &spec : specs) {
      std::string name = (symbol + "_part" + llvm::Twine(parts.size())).str();
      std::visit([&](const auto &s) { emit(b, name, s, tiles); }, spec);
      b.hide(name);
      parts.push_back({std::move(name), args});
      args += std::ssize(argumentsOf(spec));
    }
  }

  size_t count() const { return parts.size(); }
  /// Of all parts together.
  int64_t argCount() const { return args; }
  /// Runs tasks [begin, end) of part `index`.
  void run(size_t index, Val begin, Val end) { b.call(parts[index].symbol, parts[index].firstArg, begin, end); }

private:
  struct Part {
    std::string symbol;
    int64_t firstArg;
  };
  KernelBuilder &b;
  llvm::SmallVector<Part> parts;
  int64_t args = 0;
};

/// Counts `some` of `all` in `arrivals`. Who counts the last runs `body`, with all that the others wrote before they
/// counted, and leaves `arrivals` at 0.
void atLast(KernelBuilder &b, Ptr arrivals, Val some, Val all, llvm::function_ref<void()> body) {
  some = b.convert(some, b.i32);
  Val before = b.atomicAdd(arrivals, some);
  b.ifThen(before + some == b.convert(all, b.i32), [&] {
    arrivals.store(before.like(0));
    body();
  });
}

} // namespace

void emit(KernelBuilder &b, llvm::StringRef symbol, const RowsSpec &spec, const Tiles &tiles) {
  Parts parts(b, symbol, spec.parts, tiles);
  b.kernel(symbol, [&] {
    b.tasks([&](Val task) {
      for (size_t i = 0; i < parts.count(); ++i)
        parts.run(i, task, task + 1);
    });
  });
}

void emit(KernelBuilder &b, llvm::StringRef symbol, const GemmChainSpec &spec, const Tiles &tiles) {
  const auto &gemm = std::get<GemmSpec>(spec.parts.front());
  constexpr int64_t tokenBlock = GemmSpec::tokenBlock;
  Parts parts(b, symbol, spec.parts, tiles);
  b.kernel(symbol, [&] {
    Ptr arrivals = b.arg(parts.argCount(), b.i32);
    Val rows = gemm.rows == Rows::R ? b.rows() : b.tokens();
    Val blocks = (rows + (tokenBlock - 1)) / tokenBlock, tasksOfBlock = b.cI64(gemm.parts());
    // Neighbouring tasks read one stream of weights: they are run, and counted, together.
    auto [begin, end] = b.taskRange();
    b.loop(begin / tasksOfBlock, (end + (tasksOfBlock - 1)) / tasksOfBlock, 1,
           [&, begin = begin, end = end](Val block) {
             Val first = b.max(begin, block * tasksOfBlock), last = b.min(end, (block + 1) * tasksOfBlock);
             parts.run(0, first, last);
             atLast(b, arrivals + 1 + block, last - first, tasksOfBlock, [&] {
               parts.run(1, block * tokenBlock, b.min((block + 1) * tokenBlock, rows));
               atLast(b, arrivals, b.cI64(1), blocks, [&] {
                 for (size_t i = 2; i < parts.count(); ++i)
                   parts.run(i, b.cI64(0), b.cI64(1));
               });
             });
           });
  });
}

void emit(KernelBuilder &b, llvm::StringRef symbol, const MlaValuesSpec &spec, const Tiles &tiles) {
  const int64_t heads = std::get<MlaCombineSpec>(spec.parts.front()).heads;
  const int64_t panels = std::get<GemmSpec>(spec.parts.back()).parts();
  constexpr int64_t tokenBlock = GemmSpec::tokenBlock;
  Parts parts(b, symbol, spec.parts, tiles);
  b.kernel(symbol, [&] {
    b.tasks([&](Val task) {
      Val block = task / heads, head = task % heads;
      b.loop(block * tokenBlock, b.min((block + 1) * tokenBlock, b.tokens()), 1, [&](Val token) {
        Val row = token * heads + head;
        parts.run(0, row, row + 1);
      });
    });
    auto [begin, end] = b.taskRange();
    parts.run(1, begin * panels, end * panels);
  });
}

} // namespace moec::cpu
