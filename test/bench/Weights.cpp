// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// How fast the materializer makes packed int4 of bf16 and of FP8 blocks, beside limits for the same bytes and threads,
/// all in turn in one run:
///
/// - `memory`: from tensors in memory to weights in memory, beside `memcpy` of in and out: the bytes that come in are
///   copied to a buffer that stays in cache, and the bytes that go out from one, a panel's share at a time;
/// - `files`: from a mapped file to a file, with sums and notes as a compile has them, beside reading the same mapping
///   and writing as much to a file of the same kind, without arithmetic.
///
///     bench-weights DIRECTORY [--experts 32] [--threads 1,2] [--repeat 5] [--from bf16,fp8]
///
/// DIRECTORY gets a source of some GB, which is in the page cache when it is read. Rates count bytes in and bytes out.
/// Prints one JSON object a line.

#include "codegen/Weights/Materialize.h"
#include "codegen/Weights/WeightFiles.h"
#include "dialects/Exec/ExecDialect.h"
#include "dialects/Moe/MoeDialect.h"
#include "runtime/Support/Safetensors.h"

#include "mlir/AsmParser/AsmParser.h"
#include "mlir/IR/MLIRContext.h"

#include <CLI/CLI.hpp>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <random>
#include <thread>

using namespace moec;

namespace {

constexpr int64_t kRows = 2048, kCols = 7168; ///< an expert's gate of DeepSeek-V3
constexpr int64_t kBlock = 128;

/// The source: one file of experts, all in bf16 or all in FP8 with block scales.
class Source final : public TensorSource {
public:
  static Result<std::unique_ptr<Source>> make(const std::string &path, DType type, int64_t experts) {
    std::vector<TensorSpec> specs;
    for (int64_t e = 0; e < experts; ++e) {
      specs.push_back({"w." + std::to_string(e), type, {kRows, kCols}});
      if (type == DType::F8E4M3)
        specs.push_back({"s." + std::to_string(e), DType::F32, {kRows / kBlock, kCols / kBlock}});
    }
    MOEC_TRY(SafetensorsWriter writer, SafetensorsWriter::create(path, specs));
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    // One expert's values, in another order for each: random numbers take longer than everything else.
    std::vector<std::byte> weights(kRows * kCols * byteSize(type));
    for (int64_t i = 0; i < kRows * kCols; ++i) {
      float value = normal(random);
      if (type == DType::F8E4M3) {
        weights[i] = static_cast<std::byte>(floatToF8e4m3(100 * value));
      } else {
        uint16_t bits = floatToBf16(0.02f * value);
        std::memcpy(&weights[2 * i], &bits, 2);
      }
    }
    std::vector<float> scales(kRows / kBlock * (kCols / kBlock));
    for (float &scale : scales)
      scale = 2e-4f * std::exp(0.3f * normal(random));
    for (int64_t e = 0; e < experts; ++e) {
      std::rotate(weights.begin(), weights.begin() + 64 * 1001, weights.end());
      MOEC_CHECK(writer.write("w." + std::to_string(e), 0, weights.data(), weights.size()));
      if (type == DType::F8E4M3)
        MOEC_CHECK(writer.write("s." + std::to_string(e), 0, scales.data(), scales.size() * sizeof(float)));
    }
    MOEC_CHECK(writer.finish());
    MOEC_TRY(SafetensorsFile file, SafetensorsFile::open(path));
    return std::unique_ptr<Source>(new Source(std::move(file)));
  }

  Result<TensorView> tensor(const std::string &name) const override {
    const TensorInfo &info = file.tensors().at(name);
    return TensorView{info.dtype, info.shape, file.data(info)};
  }
  void release(const TensorView &view) const override {
    int64_t bytes = byteSize(view.dtype);
    for (int64_t dim : view.shape)
      bytes *= dim;
    file.mapping().release(view.data - file.mapping().data(), bytes);
  }
  const MappedFile &mapping() const { return file.mapping(); }

private:
  explicit Source(SafetensorsFile file) : file(std::move(file)) {}
  SafetensorsFile file;
};

double secondsOf(const std::function<void()> &work) {
  auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Calls `work(begin, end)` for the parts of [0, size) that each thread gets.
void onThreads(unsigned threads, uint64_t size, const std::function<void(uint64_t, uint64_t)> &work) {
  std::vector<std::jthread> others;
  for (unsigned t = 0; t < threads; ++t)
    others.emplace_back(work, size * t / threads, size * (t + 1) / threads);
}

/// The tensors of a source, copied to memory that no file is behind.
class MemorySource final : public TensorSource {
public:
  explicit MemorySource(const Source &from)
      : bytes(from.mapping().data(), from.mapping().data() + from.mapping().size()), from(from) {}
  Result<TensorView> tensor(const std::string &name) const override {
    MOEC_TRY(TensorView view, from.tensor(name));
    view.data = bytes.data() + (view.data - from.mapping().data());
    return view;
  }
  const std::vector<std::byte> bytes;

private:
  const Source &from;
};

class MemorySink final : public WeightSink {
public:
  explicit MemorySink(uint64_t size) : bytes(size) {}
  uint64_t present(size_t) const override { return 0; }
  Status write(size_t, uint64_t offset, const void *data, uint64_t size) override {
    std::memcpy(&bytes[offset], data, size);
    return success();
  }
  Status advance(size_t, uint64_t) override { return success(); }
  std::vector<std::byte> bytes;
};

/// `in` through a buffer, and as much of another one as there is room for in `out`.
void copyInMemory(unsigned threads, const std::vector<std::byte> &in, std::vector<std::byte> &out) {
  onThreads(threads, in.size(), [&](uint64_t begin, uint64_t end) {
    constexpr uint64_t piece = 128 << 10;
    std::vector<std::byte> buffer(piece);
    auto outAt = [&](uint64_t at) { return static_cast<uint64_t>(static_cast<double>(at) * out.size() / in.size()); };
    for (uint64_t at = begin; at < end; at += piece) {
      uint64_t size = std::min(piece, end - at);
      std::memcpy(buffer.data(), &in[at], size);
      std::memcpy(&out[outAt(at)], buffer.data(), outAt(at + size) - outAt(at));
    }
  });
}

void copyFiles(unsigned threads, const MappedFile &in, const std::string &path, uint64_t outBytes) {
  constexpr uint64_t piece = 128 << 10;
  int fd = ::open(path.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600);
  if (fd < 0 || ::posix_fallocate(fd, 0, static_cast<off_t>(outBytes)) != 0)
    std::abort();
  onThreads(threads, in.size(), [&](uint64_t begin, uint64_t end) {
    std::vector<std::byte> buffer(piece);
    uint64_t written = outBytes * begin / in.size();
    for (uint64_t at = begin; at < end; at += piece) {
      uint64_t size = std::min(piece, end - at);
      std::memcpy(buffer.data(), in.data() + at, size);
      uint64_t upTo = outBytes * (at + size) / in.size();
      if (::pwrite(fd, buffer.data(), upTo - written, static_cast<off_t>(written)) < 0)
        std::abort();
      written = upTo;
    }
  });
  in.release(0, in.size());
  ::close(fd);
}

double medianOf(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

Status run(const std::string &directory, int64_t experts, const std::vector<unsigned> &threadCounts, int repeat,
           const std::vector<std::string> &formats) {
  mlir::MLIRContext context;
  context.loadDialect<mlir::moe::MoeDialect, mlir::exec::ExecDialect>();
  const std::string out = directory + "/out";
  for (DType type : {DType::BF16, DType::F8E4M3}) {
    bool fp8 = type == DType::F8E4M3;
    if (std::ranges::find(formats, fp8 ? "fp8" : "bf16") == formats.end())
      continue;
    const std::string path = directory + "/source.safetensors";
    MOEC_TRY(auto source, Source::make(path, type, experts));
    std::string steps = "[" + std::string(fp8 ? "#moe.dequant<fp8 128x128, f32>, " : "") + "#moe.stack<" +
                        std::to_string(experts) +
                        ">, #moe.quantize<int4, group = 32, scale = f16>, #moe.pack_groups<32>]";
    WeightJob job{"w",
                  fp8 ? std::vector<std::string>{"w.{e}", "s.{e}"} : std::vector<std::string>{"w.{e}"},
                  mlir::cast<mlir::ArrayAttr>(mlir::parseAttribute(steps, &context)),
                  DType::U8,
                  {experts, kRows / 32, kCols / 32, 576}};
    auto inBytes = source->mapping().size(), outBytes = static_cast<uint64_t>(job.bytes());
    MemorySource memory(*source);
    MemorySink sink(outBytes);
    for (unsigned threads : threadCounts) {
      MaterializeOptions options;
      options.threads = threads;
      Status outcome = success();
      std::vector<double> made, copied, filed, fileCopied;
      for (int i = 0; i < repeat; ++i) {
        copied.push_back(secondsOf([&] { copyInMemory(threads, memory.bytes, sink.bytes); }));
        made.push_back(secondsOf([&] { outcome = materialize({job}, memory, sink, options); }));
        MOEC_CHECK(std::move(outcome));

        std::filesystem::remove_all(out);
        std::filesystem::create_directories(out);
        fileCopied.push_back(secondsOf([&] { copyFiles(threads, source->mapping(), out + "/copy", outBytes); }));
        std::filesystem::remove(out + "/copy");
        MOEC_TRY(Journal journal, Journal::open(directory + "/out.notes", out, "bench"));
        MOEC_TRY(auto files, WeightFiles::open(out, {{job.name, job.dtype, job.shape}}, 4ull << 30, journal));
        filed.push_back(secondsOf([&] { outcome = materialize({job}, *source, *files, options); }));
        MOEC_CHECK(std::move(outcome));
        MOEC_TRY(auto entries, files->finish());
      }
      auto rate = [&](const std::vector<double> &seconds) {
        return static_cast<double>(inBytes + outBytes) / medianOf(seconds) / 1e9;
      };
      std::printf("{\"from\": \"%s\", \"threads\": %u, \"bytes_in\": %llu, \"bytes_out\": %llu, "
                  "\"memory\": %.2f, \"memcpy\": %.2f, \"files\": %.2f, \"file_copy\": %.2f}\n",
                  fp8 ? "fp8" : "bf16", threads, static_cast<unsigned long long>(inBytes),
                  static_cast<unsigned long long>(outBytes), rate(made), rate(copied), rate(filed), rate(fileCopied));
      std::fflush(stdout);
    }
    std::filesystem::remove_all(out);
    std::filesystem::remove(directory + "/out.notes");
    std::filesystem::remove(path);
  }
  return success();
}

} // namespace

int main(int argc, char **argv) {
  CLI::App app("How fast weights are made");
  std::string directory;
  int64_t experts = 32;
  std::vector<unsigned> threads = {1, 2};
  int repeat = 5;
  std::vector<std::string> formats = {"bf16", "fp8"};
  app.add_option("DIRECTORY", directory, "where the source and the weights go")->required();
  app.add_option("--experts", experts, "matrices of 2048 x 7168")->check(CLI::Range(1, 4096));
  app.add_option("--threads", threads, "thread counts")->delimiter(',');
  app.add_option("--repeat", repeat, "runs, of which the median counts")->check(CLI::Range(1, 1000));
  app.add_option("--from", formats, "what is read")->delimiter(',')->check(CLI::IsMember({"bf16", "fp8"}));
  CLI11_PARSE(app, argc, argv);
  std::filesystem::create_directories(directory);
  if (Status status = run(directory, experts, threads, repeat, formats); !status.ok()) {
    std::cerr << "bench-weights: " << status.message() << "\n";
    return 1;
  }
  return 0;
}
