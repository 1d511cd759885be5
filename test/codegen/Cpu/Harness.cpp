// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Harness.h"

#include "codegen/Common/KernelSignature.h"
#include "codegen/Cpu/KernelBuilder.h"
#include "runtime/CpuInfo.h"

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/IR/ImplicitLocOpBuilder.h"
#include "mlir/IR/MLIRContext.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <thread>

#include <dlfcn.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

namespace moec::cpu {

static constexpr size_t kReadable = 128;
static constexpr unsigned char kBefore = 0xCD, kBehind = 0xFF;

Buffer::Buffer(size_t bytes) : bytes(bytes) {
  size_t page = sysconf(_SC_PAGESIZE);
  size_t usable = (bytes + kReadable + 64 + page - 1) / page * page;
  mapped = usable + page;
  mapping = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED || mprotect(static_cast<char *>(mapping) + usable, page, PROT_NONE) != 0)
    abort();
  start = static_cast<char *>(mapping) + usable - kReadable - bytes;
  std::memset(mapping, kBefore, usable - kReadable);
  std::memset(static_cast<char *>(start) + bytes, kBehind, kReadable);
}

Buffer::Buffer(Buffer &&other) noexcept
    : mapping(std::exchange(other.mapping, nullptr)), mapped(other.mapped), bytes(other.bytes), start(other.start) {}

Buffer &Buffer::operator=(Buffer &&other) noexcept {
  std::swap(mapping, other.mapping);
  std::swap(mapped, other.mapped);
  std::swap(bytes, other.bytes);
  std::swap(start, other.start);
  return *this;
}

Buffer::~Buffer() {
  if (mapping)
    munmap(mapping, mapped);
}

bool Buffer::bordersIntact() const {
  auto *first = static_cast<const unsigned char *>(mapping), *data = static_cast<const unsigned char *>(start);
  return std::all_of(first, data, [](unsigned char c) { return c == kBefore; }) &&
         std::all_of(data + bytes, data + bytes + kReadable, [](unsigned char c) { return c == kBehind; });
}

Library::Library(const Result<std::vector<std::string>> &objects) {
  if (!objects.ok()) {
    ADD_FAILURE() << objects.message();
    return;
  }
  char folder[] = "/tmp/moec-kernels-XXXXXX";
  if (!mkdtemp(folder))
    abort();
  std::string path = std::string(folder) + "/kernels.so";
  Status status = linkShared(*objects, path);
  if (status.ok())
    handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_TRUE(handle) << dlerror();
  unlink(path.c_str());
  EXPECT_EQ(rmdir(folder), 0) << "something was left beside " << path;
}

Library::~Library() {
  if (handle)
    dlclose(handle);
}

moe_kernel Library::symbol(const std::string &name) const {
  void *address = handle ? dlsym(handle, name.c_str()) : nullptr;
  if (!address)
    abort(); // reported when the library was made
  return reinterpret_cast<moe_kernel>(address);
}

std::vector<const Level *> hostLevels() {
  std::vector<const Level *> found;
  for (const Level &level : levels())
    if (runsOn(*cpuLevelFromString(level.name.str()), *machineCpuLevel()))
      found.push_back(&level);
  return found;
}

//===----------------------------------------------------------------------===//
// AMX without AMX
//===----------------------------------------------------------------------===//

/// What its instructions do, by Intel's manual: volume 2, TILELOADD and so on.
namespace {

constexpr int64_t kTileRows = 16, kTileRowBytes = 64;

thread_local struct {
  uint8_t palette = 0, rows[8] = {}, rowBytes[8] = {};
  int8_t data[8][kTileRows][kTileRowBytes] = {};
} tiles;

void emulatedLdtilecfg(const uint8_t *memory) {
  tiles = {};
  tiles.palette = memory[0];
  for (int tile = 0; tile < 8; ++tile) {
    tiles.rowBytes[tile] = memory[16 + 2 * tile];
    tiles.rows[tile] = memory[48 + tile];
  }
}
void emulatedTilerelease() {
  EXPECT_EQ(tiles.palette, 1) << "released before it was configured";
  tiles = {};
}
void emulatedTilezero(uint8_t tile) { std::memset(tiles.data[tile], 0, sizeof tiles.data[tile]); }
void emulatedTileloadd(uint8_t tile, const int8_t *memory, int64_t stride) {
  emulatedTilezero(tile);
  for (int64_t row = 0; row < tiles.rows[tile]; ++row)
    std::memcpy(tiles.data[tile][row], memory + row * stride, tiles.rowBytes[tile]);
}
void emulatedTilestored(uint8_t tile, int8_t *memory, int64_t stride) {
  for (int64_t row = 0; row < tiles.rows[tile]; ++row)
    std::memcpy(memory + row * stride, tiles.data[tile][row], tiles.rowBytes[tile]);
}
void emulatedTdpbssd(uint8_t sums, uint8_t a, uint8_t b) {
  ASSERT_EQ(tiles.rows[sums], tiles.rows[a]);
  ASSERT_EQ(tiles.rowBytes[sums], tiles.rowBytes[b]);
  ASSERT_EQ(tiles.rowBytes[a], 4 * tiles.rows[b]);
  for (int64_t m = 0; m < tiles.rows[sums]; ++m)
    for (int64_t n = 0; n < tiles.rowBytes[sums] / 4; ++n) {
      int32_t sum;
      std::memcpy(&sum, tiles.data[sums][m] + 4 * n, 4);
      for (int64_t k = 0; k < tiles.rowBytes[a]; ++k)
        sum += tiles.data[a][m][k] * tiles.data[b][k / 4][4 * n + k % 4];
      std::memcpy(tiles.data[sums][m] + 4 * n, &sum, 4);
    }
}

void emulatedTdpbf16ps(uint8_t sums, uint8_t a, uint8_t b) {
  ASSERT_EQ(tiles.rows[sums], tiles.rows[a]);
  ASSERT_EQ(tiles.rowBytes[sums], tiles.rowBytes[b]);
  ASSERT_EQ(tiles.rowBytes[a], 4 * tiles.rows[b]);
  auto flushed = [](float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0F, x) : x; };
  auto element = [&](uint8_t tile, int64_t row, int64_t index) {
    uint16_t bits;
    std::memcpy(&bits, tiles.data[tile][row] + 2 * index, 2);
    return flushed(bf16ToFloat(bits));
  };
  for (int64_t m = 0; m < tiles.rows[sums]; ++m)
    for (int64_t n = 0; n < tiles.rowBytes[sums] / 4; ++n) {
      float sum, part[2] = {0, 0};
      for (int64_t k = 0; k < tiles.rowBytes[a] / 2; ++k)
        part[k % 2] = flushed(std::fma(element(a, m, k), element(b, k / 2, 2 * n + k % 2), part[k % 2]));
      std::memcpy(&sum, tiles.data[sums][m] + 4 * n, 4);
      sum = flushed(flushed(sum) + flushed(part[0] + part[1]));
      std::memcpy(tiles.data[sums][m] + 4 * n, &sum, 4);
    }
}

template <class Function> int64_t addressOf(Function *function) { return reinterpret_cast<int64_t>(function); }

/// Kernels of the AMX level for a machine without it, which calls the functions above.
Result<std::vector<std::string>> compileForEmulation(const std::vector<Kernel> &kernels) {
  const std::map<llvm::StringRef, int64_t> functions = {
      {"llvm.x86.ldtilecfg", addressOf(emulatedLdtilecfg)},
      {"llvm.x86.tilerelease", addressOf(emulatedTilerelease)},
      {"llvm.x86.tilezero", addressOf(emulatedTilezero)},
      {"llvm.x86.tileloadd64", addressOf(emulatedTileloadd)},
      {"llvm.x86.tilestored64", addressOf(emulatedTilestored)},
      {"llvm.x86.tdpbssd", addressOf(emulatedTdpbssd)},
      {"llvm.x86.tdpbf16ps", addressOf(emulatedTdpbf16ps)},
  };
  mlir::MLIRContext context(mlir::MLIRContext::Threading::DISABLED);
  auto module = emitModule(context, kernels, *findLevel("x86-64-v4-amx"));
  module->walk([&](mlir::LLVM::CallIntrinsicOp op) {
    auto function = functions.find(op.getIntrin());
    if (function == functions.end())
      return;
    mlir::ImplicitLocOpBuilder b(op.getLoc(), op);
    auto pointer = mlir::LLVM::LLVMPointerType::get(&context);
    mlir::Value address = mlir::LLVM::ConstantOp::create(b, b.getI64Type(), b.getI64IntegerAttr(function->second));
    llvm::SmallVector<mlir::Value> operands = {mlir::LLVM::IntToPtrOp::create(b, pointer, address)};
    llvm::append_range(operands, op.getArgs());
    llvm::SmallVector<mlir::Type> types(op.getArgs().getTypes());
    auto type = mlir::LLVM::LLVMFunctionType::get(mlir::LLVM::LLVMVoidType::get(&context), types);
    mlir::LLVM::CallOp::create(b, type, operands);
    op.erase();
  });
  MOEC_CHECK(lowerToLlvm(*module));
  MOEC_TRY(std::string object, generate(*module, *findLevel("x86-64-v4-vnni"), Output::Object));
  return std::vector{std::move(object)};
}

} // namespace

static bool hasInput(const KernelSpec &spec, DType input) {
  auto *gemm = std::get_if<GemmSpec>(&spec);
  return gemm && gemm->input == input;
}

/// What kernels for AMX without its instructions need.
static bool canEmulateTiles() { return runsOn(CpuLevel::V4Vnni, *machineCpuLevel()); }

std::vector<Kernels::Pairs> Kernels::allPairs() {
  std::vector<Pairs> all = {Pairs::AtOtherLevels};
  if (canEmulateTiles())
    all.push_back(Pairs::ByTiles);
  return all;
}

Kernels::Kernels(const std::vector<KernelSpec> &specs, Pairs pairs) : specs(specs), pairs(pairs) {
  std::vector<Kernel> kernels;
  for (size_t i = 0; i < specs.size(); ++i)
    kernels.push_back({"k" + std::to_string(i), specs[i]});
  const std::vector<const Level *> levels = hostLevels();
  for (const Level *level : levels)
    if (pairs == Pairs::AtOtherLevels || level->isa == Isa::Amx) {
      libraries.push_back(std::make_unique<Library>(compileKernels(kernels, *level, Output::Object)));
      levelNames.push_back(level->name.str());
    }
  // Other kernels than those of codes and of bf16 are the same with AMX.
  bool uses =
      pairs == Pairs::ByTiles || llvm::any_of(specs, [](const KernelSpec &spec) { return hasInput(spec, DType::U8); });
  if (uses && canEmulateTiles() && levels.front()->isa != Isa::Amx) {
    libraries.push_back(std::make_unique<Library>(compileForEmulation(kernels)));
    levelNames.push_back("x86-64-v4-amx, emulated");
  }
}

bool Kernels::runs(size_t index, size_t library) const {
  return pairs == Pairs::ByTiles || !hasInput(specs[index], DType::BF16) ||
         !levelNames[library].starts_with("x86-64-v4-amx");
}

void Kernels::run(size_t index, const std::vector<Buffer *> &all, moe_step step, int64_t tasks) {
  std::vector<void *> pointers;
  std::vector<Buffer *> args;
  std::vector<std::string> before, result;
  for (Buffer *arg : all) {
    pointers.push_back(arg ? arg->data() : nullptr);
    if (!arg)
      continue;
    args.push_back(arg);
    before.push_back(arg->contents());
  }
  auto restore = [&] {
    for (size_t i = 0; i < args.size(); ++i)
      args[i]->restore(before[i]);
  };
  auto check = [&](const std::string &how) {
    for (size_t i = 0; i < args.size(); ++i) {
      EXPECT_TRUE(args[i]->bordersIntact()) << "argument " << i << ", " << how;
      if (result.size() <= i)
        result.push_back(args[i]->contents());
      else
        EXPECT_TRUE(result[i] == args[i]->contents()) << "argument " << i << " has other bits, " << how;
    }
  };
  Random random(tasks + 1);
  for (size_t l = 0; l < libraries.size(); ++l) {
    if (!runs(index, l))
      continue;
    moe_kernel kernel = libraries[l]->symbol("k" + std::to_string(index));
    const std::string &level = levelNames[l];
    restore();
    kernel(pointers.data(), &step, 0, tasks);
    check(level + " at once");
    restore();
    std::vector<std::pair<int64_t, int64_t>> pieces;
    for (int64_t begin = 0; begin < tasks;) {
      int64_t end = std::min(tasks, begin + random.integer(1, 3));
      pieces.push_back({begin, end});
      begin = end;
    }
    for (int32_t i : random.permutation(pieces.size()))
      kernel(pointers.data(), &step, pieces[i].first, pieces[i].second);
    check(level + " in pieces");
    if (level.ends_with("emulated")) // by code that has one set of tiles for all threads
      continue;
    restore();
    std::atomic<size_t> next{0};
    auto work = [&] {
      for (size_t i = next++; i < pieces.size(); i = next++)
        kernel(pointers.data(), &step, pieces[i].first, pieces[i].second);
    };
    std::thread other(work);
    work();
    other.join();
    check(level + " by two threads");
  }
}

void Kernels::runOnce(size_t index, const std::vector<void *> &args, moe_step step, int64_t tasks) {
  size_t library = 0;
  while (!runs(index, library))
    ++library;
  libraries[library]->symbol("k" + std::to_string(index))(args.data(), &step, 0, tasks);
}

int64_t Kernels::gridOf(size_t index, moe_step step) const {
  mlir::MLIRContext context(mlir::MLIRContext::Threading::DISABLED);
  mlir::AffineMap map = moec::gridOf(specs[index], &context);
  llvm::SmallVector<int64_t> results = map.compose(llvm::ArrayRef<int64_t>{step.tokens, step.rows});
  return *std::min_element(results.begin(), results.end());
}

std::vector<float> Random::normals(size_t count, float deviation) {
  std::vector<float> values(count);
  for (float &value : values)
    value = normal(deviation);
  return values;
}

std::vector<int32_t> Random::permutation(int32_t count) {
  std::vector<int32_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), engine);
  return order;
}

ExpertLists sortByExpert(const std::vector<int32_t> &chosen, int64_t experts) {
  ExpertLists lists;
  lists.offsets.push_back(0);
  lists.active.assign(experts + 1, 0);
  for (int64_t e = 0; e < experts; ++e) {
    for (size_t i = 0; i < chosen.size(); ++i)
      if (chosen[i] == e)
        lists.order.push_back(i);
    if (int32_t(lists.order.size()) > lists.offsets.back())
      lists.active[++lists.active[0]] = e;
    lists.offsets.push_back(lists.order.size());
  }
  return lists;
}

::testing::AssertionResult near(float found, double expected, double tolerance) {
  bool equal = std::isnan(expected) ? std::isnan(found) : found == expected || std::fabs(found - expected) <= tolerance;
  if (equal)
    return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "found " << found << ", expected " << expected << " within " << tolerance;
}

} // namespace moec::cpu
