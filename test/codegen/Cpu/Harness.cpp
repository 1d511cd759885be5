// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Harness.h"

#include "codegen/Common/KernelSignature.h"
#include "runtime/CpuInfo.h"

#include "mlir/IR/MLIRContext.h"

#include <algorithm>
#include <cmath>
#include <numeric>

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

Kernels::Kernels(const std::vector<KernelSpec> &specs) : specs(specs) {
  std::vector<Kernel> kernels;
  for (size_t i = 0; i < specs.size(); ++i)
    kernels.push_back({"k" + std::to_string(i), specs[i]});
  for (const Level *level : hostLevels())
    libraries.push_back(std::make_unique<Library>(compileKernels(kernels, *level, Output::Object)));
}

void Kernels::run(size_t index, const std::vector<Buffer *> &args, moe_step step, int64_t tasks) {
  std::vector<void *> pointers;
  std::vector<std::string> before, result;
  for (Buffer *arg : args) {
    pointers.push_back(arg->data());
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
    moe_kernel kernel = libraries[l]->symbol("k" + std::to_string(index));
    std::string level = hostLevels()[l]->name.str();
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
  }
}

void Kernels::runOnce(size_t index, const std::vector<void *> &args, moe_step step, int64_t tasks) {
  libraries.front()->symbol("k" + std::to_string(index))(args.data(), &step, 0, tasks);
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
