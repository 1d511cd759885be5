// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Compiles kernels for every level this machine has, runs them on buffers that
/// end 128 bytes before a guard page, and checks what all kernels promise: the
/// same bits however the tasks are split and at every level, and no byte changed
/// outside the buffers.

#ifndef MOEC_TEST_CODEGEN_CPU_HARNESS_H
#define MOEC_TEST_CODEGEN_CPU_HARNESS_H

#include "codegen/Cpu/Compile.h"
#include "runtime/KernelAbi.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

namespace moec::cpu {

/// Memory of `bytes` bytes; the 128 behind it are readable and hold ones (NaN), the page after them is not.
class Buffer {
public:
  explicit Buffer(size_t bytes);
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;
  Buffer(Buffer &&other) noexcept;
  Buffer &operator=(Buffer &&other) noexcept;
  ~Buffer();

  void *data() const { return start; }
  size_t size() const { return bytes; }
  std::string contents() const { return std::string(static_cast<const char *>(start), bytes); }
  void restore(const std::string &contents) { std::memcpy(start, contents.data(), bytes); }
  /// Whether the bytes before and behind are as they were made.
  bool bordersIntact() const;

private:
  void *mapping = nullptr;
  size_t mapped = 0, bytes = 0;
  void *start = nullptr;
};

/// A buffer of `T`.
template <typename T> class Array : public Buffer {
public:
  explicit Array(size_t count, T value = T()) : Buffer(count * sizeof(T)) { std::fill_n(begin(), count, value); }
  explicit Array(const std::vector<T> &values) : Buffer(values.size() * sizeof(T)) {
    std::copy(values.begin(), values.end(), begin());
  }
  T *begin() const { return static_cast<T *>(data()); }
  T *end() const { return begin() + count(); }
  size_t count() const { return size() / sizeof(T); }
  T &operator[](size_t index) const {
    assert(index < count());
    return begin()[index];
  }
};

/// What an untouched float of an output holds.
inline constexpr float kUntouched = -123456.75f;

/// A shared object, loaded.
class Library {
public:
  /// Links and loads; adds a test failure if that cannot be done.
  explicit Library(const Result<std::vector<std::string>> &objects);
  ~Library();
  Library(const Library &) = delete;
  moe_kernel symbol(const std::string &name) const;

private:
  void *handle = nullptr;
};

/// Specs compiled at every level of this machine, and at that of AMX, whose instructions are emulated if need be. There
/// products of bf16 are summed up to other bits: such specs run at the other levels, or, `ByTiles`, all at that one
/// alone.
class Kernels {
public:
  enum class Pairs { AtOtherLevels, ByTiles };
  explicit Kernels(const std::vector<KernelSpec> &specs, Pairs pairs = Pairs::AtOtherLevels);
  /// Those that can be tried here.
  static std::vector<Pairs> allPairs();

  /// Runs spec `index` over `tasks` tasks at every level: at once, in shuffled pieces, and in pieces by two threads.
  /// Checks that the bytes of all buffers are the same each time, and their borders. The buffers are left with the
  /// results. A null argument is passed as a null pointer.
  void run(size_t index, const std::vector<Buffer *> &args, moe_step step, int64_t tasks);
  /// The number of tasks that the lowering would launch.
  int64_t gridOf(size_t index, moe_step step) const;
  /// Runs once, at the best level.
  void runOnce(size_t index, const std::vector<void *> &args, moe_step step, int64_t tasks);

private:
  /// Whether `run` takes spec `index` from a library.
  bool runs(size_t index, size_t library) const;

  std::vector<KernelSpec> specs;
  Pairs pairs;
  std::vector<std::unique_ptr<Library>> libraries;
  std::vector<std::string> levelNames; ///< of the libraries
};

/// Where column `column` of a lane lies in a panel of `k` columns of weights of a type.
inline int64_t inPanel(DType weight, int64_t k, int64_t column, int64_t lane) {
  int64_t together = panelColumns(weight), first = column / together * together, count = std::min(together, k - first);
  return first * kPanelWidth + lane * count + column % together;
}

/// A step of `count` rows of a kind, in which the other kind has another number.
inline moe_step stepOf(Rows rows, int64_t count) {
  return rows == Rows::T ? moe_step{count, 0, 0} : moe_step{count + 5, count, 0};
}

/// The levels this machine can run, best first.
std::vector<const Level *> hostLevels();

class Random {
public:
  explicit Random(uint64_t seed) : engine(seed) {}
  int64_t integer(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine); }
  float normal(float deviation = 1) { return std::normal_distribution<float>(0, deviation)(engine); }
  std::vector<float> normals(size_t count, float deviation = 1);
  std::vector<int32_t> permutation(int32_t count);

private:
  std::mt19937_64 engine;
};

/// The lists that `dispatch` makes, from the expert of each entry.
struct ExpertLists {
  std::vector<int32_t> offsets, active, order;
};
ExpertLists sortByExpert(const std::vector<int32_t> &chosen, int64_t experts);

/// Both NaN, or both the same infinity, or within `tolerance`.
::testing::AssertionResult near(float found, double expected, double tolerance);

} // namespace moec::cpu

#endif // MOEC_TEST_CODEGEN_CPU_HARNESS_H
