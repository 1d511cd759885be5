// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "tools/Driver/CompileRate.h"

#include "codegen/Common/KernelSpec.h"
#include "codegen/Weights/Journal.h"
#include "codegen/Weights/Materialize.h"
#include "codegen/Weights/WeightFiles.h"
#include "dialects/Moe/MoeDialect.h"
#include "frontends/HuggingFace/Checkpoint.h"
#include "runtime/Support/Safetensors.h"
#include "runtime/Support/Text.h"

#include "mlir/IR/MLIRContext.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <thread>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

using namespace moec;
namespace fs = std::filesystem;

namespace {

/// A directory of a new name inside another, gone with this.
class Scratch {
public:
  static Result<Scratch> create(const std::string &parent) {
    Scratch result;
    result.directory = parent + "/.moec-measure-XXXXXX";
    if (!mkdtemp(result.directory.data())) {
      result.directory.clear();
      return Error{parent + ": cannot be written to (" + errnoToString(errno) +
                   "), but --measure makes some weights there: call it where the artifact will be"};
    }
    return result;
  }
  Scratch(Scratch &&other) noexcept : directory(std::exchange(other.directory, {})) {}
  Scratch &operator=(Scratch &&) = delete;
  ~Scratch() {
    std::error_code ignored;
    if (!directory.empty())
      fs::remove_all(directory, ignored);
  }
  const std::string &path() const { return directory; }

private:
  Scratch() = default;
  std::string directory;
};

// Some tens of tiles for every core, and a fraction of a second of a slow disk.
constexpr int64_t rows = 16384, cols = 4096, panel = 32;
constexpr uint64_t bytes = uint64_t{rows} * cols * 2;

/// Writes the checkpoint and has the system forget it, so that it is read from the disk again.
Status writeSource(const std::string &path) {
  MOEC_TRY(SafetensorsWriter writer, SafetensorsWriter::create(path, {{"w", DType::BF16, {rows, cols}}}));
  // Small numbers that differ, so that no file system stores them as holes.
  std::vector<uint16_t> chunk(1u << 20);
  for (size_t i = 0; i < chunk.size(); ++i)
    chunk[i] = static_cast<uint16_t>(0x3c00 + i * 40503 % 0x100);
  for (uint64_t offset = 0; offset < bytes; offset += chunk.size() * 2)
    MOEC_CHECK(writer.write("w", offset, chunk.data(), chunk.size() * 2));
  MOEC_CHECK(writer.finish());
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0)
    return Error{path + ": " + errnoToString(errno)};
  posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
  close(file);
  return success();
}

} // namespace

Result<double> moec::measureCompileRate(const std::string &directory) {
  MOEC_TRY(Scratch scratch, Scratch::create(directory));
  MOEC_CHECK(writeSource(scratch.path() + "/model.safetensors"));
  const std::string output = scratch.path() + "/output";
  std::error_code error;
  if (!fs::create_directory(output, error))
    return Error{output + ": " + error.message()};

  mlir::MLIRContext context;
  context.loadDialect<mlir::moe::MoeDialect>();
  const std::vector<WeightJob> jobs = {
      {"w",
       {"w"},
       mlir::ArrayAttr::get(&context, mlir::moe::PackPanelsAttr::get(&context, panel, panelColumns(DType::BF16))),
       DType::BF16,
       {1, rows / panel, cols, panel}}};

  const auto begin = std::chrono::steady_clock::now();
  MOEC_TRY(hf::Checkpoint checkpoint, hf::Checkpoint::open(scratch.path()));
  MOEC_TRY(Journal journal, Journal::open(scratch.path() + "/notes", output, "measure"));
  MOEC_TRY(auto files, WeightFiles::open(output, {{"w", DType::BF16, jobs.front().shape}}, bytes, journal));
  MaterializeOptions options;
  options.threads = std::max(1u, std::thread::hardware_concurrency()); // as a compile does
  MOEC_CHECK(materialize(jobs, checkpoint, *files, options));
  MOEC_TRY(auto entries, files->finish());
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  return 2.0 * static_cast<double>(bytes) / seconds.count();
}
