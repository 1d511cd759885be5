// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// How fast the kernels of latent attention are by themselves: one layer, a sequence of `--depth` tokens whose last
/// `--tokens` are in the step.
///
///     bench-attention [--form absorbed] [--cache f32] [--heads 16] [--tokens 1] [--depth 4096] [--threads 1]
///                     [--level x86-64-v4-vnni] [--layers 1] [--seconds 1]
///
/// `--layers` caches take turns, so that with enough of them entries come from memory. Prints one JSON object: least
/// and median milliseconds of a layer, the multiply-adds that the form asks for as GFLOP/s (two each), and the bytes of
/// cache as GB/s. For the expanded form, what expands entries is counted once for each block of tokens.

#include "codegen/Common/KernelSignature.h"
#include "codegen/Cpu/Compile.h"
#include "runtime/KernelAbi.h"
#include "runtime/ThreadPool.h"

#include "mlir/IR/AffineMap.h"
#include "mlir/IR/MLIRContext.h"

#include <CLI/CLI.hpp>
#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <random>

using namespace moec;

namespace {

constexpr int64_t kLatent = 512, kRope = 64, kKey = 128, kValue = 128, kWidth = kLatent + kRope;

struct Options {
  std::string form = "absorbed", cache = "f32", level;
  /// What entries are read as, and stored in.
  DType type() const { return cache == "f32" ? DType::F32 : DType::BF16; }
  CacheCodes codes() const { return cacheCodesFromString(cache); }
  int64_t entryBytes() const {
    return codes() == CacheCodes::None ? kWidth * byteSize(type()) : CodedEntry{kLatent, kRope}.stride();
  }
  int64_t heads = 16, tokens = 1, depth = 4096, layers = 1;
  int threads = 1;
  double seconds = 1;
};

/// The kernels of a form, in the order of their launches.
std::vector<cpu::Kernel> kernelsOf(const Options &options) {
  auto over = [&](auto spec) { // this cache, with as many heads
    spec.heads = options.heads;
    spec.latent = kLatent;
    spec.rope = kRope;
    spec.width = kWidth;
    spec.scale = 1 / std::sqrt(double(kKey + kRope));
    spec.cache = options.type();
    spec.codes = options.codes();
    return spec;
  };
  if (options.form == "expanded") {
    auto spec = over(MlaExpandedSpec());
    spec.nope = kKey;
    spec.value = kValue;
    spec.qHead = kKey + kRope;
    spec.ropeHead = kWidth; // beside absorbed queries, as where both forms are there
    spec.outHead = kValue;
    spec.qStride = options.heads * spec.qHead;
    spec.ropeStride = options.heads * spec.ropeHead;
    spec.outStride = options.heads * spec.outHead;
    return {{"expanded", spec}};
  }
  auto spec = over(MlaAttentionSpec());
  spec.qHead = kWidth;
  spec.qStride = options.heads * kWidth;
  spec.outHead = kLatent;
  spec.outStride = options.heads * kLatent;
  return {{"absorbed", spec},
          {"combine", MlaCombineSpec{spec.heads, spec.latent, spec.outStride, spec.outHead, spec.runBelow}}};
}

double operations(const Options &options, double &bytes) {
  double sum = 0;
  auto heads = double(options.heads);
  for (int64_t position = options.depth - options.tokens; position < options.depth; ++position)
    sum +=
        heads * double(position + 1) * 2.0 * (options.form == "expanded" ? kKey + kRope + kValue : 2 * kLatent + kRope);
  bytes = double(options.depth * options.entryBytes());
  if (options.form == "expanded")
    for (int64_t first = 0; first < options.tokens; first += MlaExpandedSpec::tokenBlock) {
      int64_t last = std::min(first + MlaExpandedSpec::tokenBlock, options.tokens);
      sum += heads * double(options.depth - options.tokens + last) * 2.0 * kLatent * (kKey + kValue);
    }
  return sum;
}

Status run(const Options &options) {
  std::vector<cpu::Kernel> kernels = kernelsOf(options);
  const cpu::Level *level = options.level.empty() ? &cpu::levels().front() : cpu::findLevel(options.level);
  if (!level)
    return Error{"unknown CPU level '" + options.level + "'"};
  MOEC_TRY(std::vector<std::string> objects, cpu::compileKernels(kernels, *level, cpu::Output::Object));
  std::string path = "/tmp/bench-attention-" + std::to_string(getpid()) + ".so";
  MOEC_CHECK(cpu::linkShared(objects, path));
  void *library = dlopen(path.c_str(), RTLD_NOW);
  unlink(path.c_str());
  if (!library)
    return Error{dlerror()};

  const int64_t pages = (options.depth + MOE_PAGE_TOKENS - 1) / MOE_PAGE_TOKENS;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  struct alignas(64) Line {
    char bytes[64];
  };
  std::map<std::string, std::vector<Line>> memory; // aligned as the runtime's
  auto reserve = [&](const std::string &name, int64_t bytes) {
    memory[name].resize(bytes / 64 + 3);
    return memory[name].front().bytes;
  };
  auto floats = [&](const std::string &name, int64_t count, DType type, float deviation) {
    char *bytes = reserve(name, count * byteSize(type));
    for (int64_t i = 0; i < count; ++i) {
      float value = deviation * normal(random);
      uint16_t half = floatToBf16(value);
      std::memcpy(&bytes[i * byteSize(type)], type == DType::F32 ? (const void *)&value : &half, byteSize(type));
    }
  };
  auto codes = [&](const std::string &name, int64_t entries) {
    const CodedEntry layout{kLatent, kRope};
    char *bytes = reserve(name, entries * layout.stride());
    for (int64_t j = 0; j < entries; ++j, bytes += layout.stride()) {
      for (int64_t i = 0; i < kLatent; ++i) {
        float value = normal(random);
        bytes[i] = static_cast<char>(options.codes() == CacheCodes::Int8 ? int(30 * value) : floatToF8e4m3(value));
      }
      for (int64_t g = 0; g < layout.groups(); ++g) {
        float scale = options.codes() == CacheCodes::Int8 ? 1 / 30.0F : 1;
        std::memcpy(bytes + layout.scalesAt() + 4 * g, &scale, 4);
      }
      for (int64_t i = 0; i < kRope; ++i) {
        uint16_t half = floatToBf16(normal(random));
        std::memcpy(bytes + layout.ropeAt() + 2 * i, &half, 2);
      }
    }
  };
  auto integers = [&](const std::string &name, int64_t count, auto value) {
    char *bytes = reserve(name, count * 4);
    for (int64_t i = 0; i < count; ++i) {
      auto number = static_cast<int32_t>(value(i));
      std::memcpy(&bytes[i * 4], &number, 4);
    }
  };
  floats("q", options.tokens * options.heads * kWidth, DType::F32, 1);
  floats("rope_q", options.tokens * options.heads * kWidth, DType::F32, 1);
  floats("w_uk", options.heads * kKey * kLatent, DType::BF16, 0.05F);
  floats("w_uv", options.heads * kValue * kLatent, DType::BF16, 0.05F);
  const int64_t cacheBytes = pages * MOE_PAGE_TOKENS * options.entryBytes(); // of a layer
  if (options.codes() == CacheCodes::None)
    floats("cache", options.layers * cacheBytes / byteSize(options.type()), options.type(), 1);
  else
    codes("cache", options.layers * cacheBytes / options.entryBytes());
  integers("positions", options.tokens, [&](int64_t t) { return options.depth - options.tokens + t; });
  integers("slots", options.tokens, [](int64_t) { return 0; });
  std::vector<int32_t> order(pages);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  integers("page_table", pages, [&](int64_t i) { return order[i]; });
  reserve("parts", MlaAttentionSpec::splitRows * MlaAttentionSpec::maxSpans * 600 * 16 * 4);
  reserve("out", options.tokens * options.heads * kLatent * 4);

  struct Launch {
    moe_kernel kernel;
    std::vector<std::string> names;
    int64_t tasks;
  };
  mlir::MLIRContext context(mlir::MLIRContext::Threading::DISABLED);
  std::vector<Launch> launches;
  for (const cpu::Kernel &kernel : kernels) {
    Launch launch{reinterpret_cast<moe_kernel>(dlsym(library, kernel.symbol.c_str())), {}, 0};
    for (const KernelArg &arg : argumentsOf(kernel.spec))
      launch.names.push_back(arg.name.str());
    launch.tasks = gridOf(kernel.spec, &context).compose(llvm::ArrayRef<int64_t>{options.tokens, 0}).front();
    launches.push_back(std::move(launch));
  }
  MOEC_TRY(std::unique_ptr<ThreadPool> pool, ThreadPool::create(options.threads));
  moe_step step{options.tokens, 0, pages};
  std::vector<double> times;
  double total = 0;
  for (int64_t i = 0; total < options.seconds || i < 3 * options.layers; ++i) {
    auto start = std::chrono::steady_clock::now();
    for (const Launch &launch : launches) {
      std::vector<void *> args;
      for (const std::string &name : launch.names)
        args.push_back(memory[name].front().bytes + (name == "cache" ? i % options.layers * cacheBytes : 0));
      pool->parallelFor(launch.tasks,
                        [&](int64_t begin, int64_t end) { launch.kernel(args.data(), &step, begin, end); });
    }
    double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    total += seconds;
    if (i >= options.layers)
      times.push_back(seconds);
  }
  std::ranges::sort(times);
  double bytes = 0, flops = operations(options, bytes), least = times.front(), median = times[times.size() / 2];
  std::printf(
      "{\"form\": \"%s\", \"cache\": \"%s\", \"level\": \"%s\", \"heads\": %ld, \"tokens\": %ld, \"depth\": %ld, "
      "\"threads\": %d, \"ms_min\": %.4f, \"ms\": %.4f, \"gflops_max\": %.1f, \"gflops\": %.1f, \"gbs\": %.1f}\n",
      options.form.c_str(), options.cache.c_str(), level->name.str().c_str(), long(options.heads), long(options.tokens),
      long(options.depth), options.threads, 1e3 * least, 1e3 * median, 1e-9 * flops / least, 1e-9 * flops / median,
      1e-9 * bytes / median);
  return success();
}

} // namespace

int main(int argc, char **argv) {
  CLI::App app("How fast kernels of latent attention are");
  Options options;
  app.add_option("--form", options.form)->check(CLI::IsMember({"absorbed", "expanded"}));
  app.add_option("--cache", options.cache)->check(CLI::IsMember({"f32", "bf16", "int8", "fp8"}));
  app.add_option("--level", options.level);
  app.add_option("--heads", options.heads)->check(CLI::PositiveNumber);
  app.add_option("--tokens", options.tokens)->check(CLI::PositiveNumber);
  app.add_option("--depth", options.depth)->check(CLI::PositiveNumber);
  app.add_option("--layers", options.layers)->check(CLI::PositiveNumber);
  app.add_option("--threads", options.threads)->check(CLI::PositiveNumber);
  app.add_option("--seconds", options.seconds)->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  Status status = options.tokens > options.depth ? Status(Error{"more tokens than the sequence has"}) : run(options);
  if (!status.ok())
    std::cerr << "bench-attention: " << status.message() << "\n";
  return status.ok() ? 0 : 1;
}
