// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// What the tests of the reference interpreter share: seeded numbers and checkpoints in memory.

#ifndef MOEC_TEST_DIALECTS_MOE_REFERENCE_COMMON_H
#define MOEC_TEST_DIALECTS_MOE_REFERENCE_COMMON_H

#include "dialects/Moe/Reference/Recipe.h"

#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

namespace moec::test {

using mlir::moe::reference::IndexTensor;
using mlir::moe::reference::Tensor;

/// Numbers that are the same on every machine.
class Random {
public:
  explicit Random(uint32_t seed) : engine(seed) {}
  /// In [-1, 1), a multiple of 2^-23: exact in float.
  double real() { return double(int32_t(engine() >> 8)) * 0x1p-23 - 1; }
  int64_t below(int64_t end) { return engine() % end; }
  template <typename T> Tensor<T> tensor(std::vector<int64_t> shape) {
    Tensor<T> result(std::move(shape));
    for (T &value : result.data)
      value = T(real());
    return result;
  }

private:
  std::mt19937 engine;
};

/// A checkpoint in memory.
class MapSource final : public TensorSource {
public:
  void add(const std::string &name, DType dtype, std::vector<int64_t> shape, std::vector<std::byte> bytes) {
    tensors[name] = {dtype, std::move(shape), std::move(bytes)};
  }
  template <typename T>
  void add(const std::string &name, DType dtype, std::vector<int64_t> shape, const std::vector<T> &elements) {
    std::vector<std::byte> bytes(elements.size() * sizeof(T));
    std::memcpy(bytes.data(), elements.data(), bytes.size());
    add(name, dtype, std::move(shape), std::move(bytes));
  }
  void add(const std::string &name, const Tensor<float> &tensor) { add(name, DType::F32, tensor.shape, tensor.data); }

  Result<TensorView> tensor(const std::string &name) const override {
    auto it = tensors.find(name);
    if (it == tensors.end())
      return Error{"tensor '" + name + "' is not in the checkpoint"};
    return TensorView{it->second.dtype, it->second.shape, it->second.bytes.data()};
  }

private:
  struct Stored {
    DType dtype;
    std::vector<int64_t> shape;
    std::vector<std::byte> bytes;
  };
  std::map<std::string, Stored> tensors;
};

} // namespace moec::test

#endif // MOEC_TEST_DIALECTS_MOE_REFERENCE_COMMON_H
