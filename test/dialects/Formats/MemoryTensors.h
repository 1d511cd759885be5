// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Tensors made by hand, bit by bit, for tests of formats.

#ifndef MOEC_TEST_CODEGEN_FORMATS_MEMORYTENSORS_H
#define MOEC_TEST_CODEGEN_FORMATS_MEMORYTENSORS_H

#include "runtime/Support/TensorSource.h"

#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace moec::test {

/// A tensor whose bytes are a string.
struct Stored {
  DType dtype = DType::F32;
  std::vector<int64_t> shape;
  std::string bytes;
};

template <typename T> std::string bytesOf(const std::vector<T> &values) {
  return {reinterpret_cast<const char *>(values.data()), values.size() * sizeof(T)};
}

/// Writes `bits` bits of `value`, `at` bits from the start; none may cross a byte.
inline void putBits(std::string &bytes, int64_t at, int bits, unsigned value) {
  bytes[at / 8] = static_cast<char>(static_cast<unsigned char>(bytes[at / 8]) | (value & ((1u << bits) - 1)) << at % 8);
}

/// A map of tensors that notes what is released.
class MemoryTensors final : public TensorSource {
public:
  std::map<std::string, Stored> tensors;
  mutable std::vector<std::pair<int64_t, int64_t>> released; ///< offset in its tensor and bytes

  Result<TensorView> tensor(const std::string &name) const override {
    auto found = tensors.find(name);
    if (found == tensors.end())
      return Error{"there is no tensor '" + name + "'"};
    const Stored &stored = found->second;
    return TensorView{stored.dtype, stored.shape, reinterpret_cast<const std::byte *>(stored.bytes.data())};
  }
  void release(const TensorView &view) const override {
    for (const auto &[name, stored] : tensors) {
      const auto *begin = reinterpret_cast<const std::byte *>(stored.bytes.data());
      if (view.data < begin || view.data >= begin + stored.bytes.size())
        continue;
      int64_t bytes = byteSize(view.dtype);
      for (int64_t dimension : view.shape)
        bytes *= dimension;
      released.emplace_back(view.data - begin, bytes);
    }
  }
};

} // namespace moec::test

#endif // MOEC_TEST_CODEGEN_FORMATS_MEMORYTENSORS_H
