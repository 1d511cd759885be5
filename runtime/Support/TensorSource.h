// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Where weights come from, seen by those who only want a tensor by name.

#ifndef MOEC_RUNTIME_SUPPORT_TENSORSOURCE_H
#define MOEC_RUNTIME_SUPPORT_TENSORSOURCE_H

#include "runtime/Support/DType.h"
#include "runtime/Support/Result.h"

#include <string>
#include <vector>

namespace moec {

/// A tensor's bytes, row-major, owned by its source.
struct TensorView {
  DType dtype = DType::F32;
  std::vector<int64_t> shape;
  const std::byte *data = nullptr;
};

/// A set of named tensors: a checkpoint, an artifact, a test's map.
class TensorSource {
public:
  virtual ~TensorSource() = default;
  /// The tensor called `name`; thread-safe. The bytes live as long as the source.
  virtual Result<TensorView> tensor(const std::string &name) const = 0;
  /// Says that the bytes of a view are not needed soon (see MappedFile::release).
  virtual void release(const TensorView &view) const {}
};

} // namespace moec

#endif // MOEC_RUNTIME_SUPPORT_TENSORSOURCE_H
