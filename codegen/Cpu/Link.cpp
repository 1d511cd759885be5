// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Cpu/Compile.h"

#include "lld/Common/Driver.h"
#include "llvm/ADT/ScopeExit.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"
#include "llvm/Support/raw_ostream.h"

#include <mutex>

LLD_HAS_DRIVER(elf)

namespace moec::cpu {

static Status writeFile(const std::string &path, const std::string &bytes) {
  std::error_code error;
  llvm::raw_fd_ostream stream(path, error);
  if (!error) {
    stream << bytes;
    stream.close();
    error = stream.error();
    stream.clear_error();
  }
  if (error)
    return Error{path + ": cannot be written: " + error.message()};
  return success();
}

Status linkShared(llvm::ArrayRef<std::string> objects, const std::string &path) {
  // The linker reads files; beside the result there is room for as much again.
  // Absolute, as the library takes a relative prefix to be one inside the system's folder for temporary files.
  llvm::SmallString<128> prefix(path), folder;
  llvm::sys::fs::make_absolute(prefix);
  prefix += ".objects";
  if (std::error_code error = llvm::sys::fs::createUniqueDirectory(prefix, folder))
    return Error{path + ": no folder for object files can be made beside it: " + error.message()};
  llvm::scope_exit cleanUp([&] { llvm::sys::fs::remove_directories(folder); });

  std::vector<std::string> args = {
      "ld.lld",          "-shared",     "-z",          "defs", "-z", "now", "-z", "noexecstack", "--hash-style=both",
      "--build-id=none", "--strip-all", "--threads=1", "-o",   path};
  for (auto [index, object] : llvm::enumerate(objects)) {
    std::string name = (folder + "/" + llvm::Twine(index) + ".o").str();
    MOEC_CHECK(writeFile(name, object));
    args.push_back(name);
  }
  std::vector<const char *> pointers;
  for (const std::string &arg : args)
    pointers.push_back(arg.c_str());

  std::string messages;
  llvm::raw_string_ostream stream(messages);
  // The linker keeps its state in globals.
  static std::mutex mutex;
  std::lock_guard lock(mutex);
  lld::Result result = lld::lldMain(pointers, stream, stream, {{lld::Gnu, &lld::elf::link}});
  if (result.retCode != 0) {
    llvm::StringRef first = llvm::StringRef(messages).trim().split('\n').first;
    return Error{path + ": cannot be linked: " + first.str()};
  }
  return success();
}

} // namespace moec::cpu
