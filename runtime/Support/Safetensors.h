// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Reading and writing safetensors files: an 8-byte little-endian header
/// length, a JSON header, then the tensors' bytes without holes.
/// Source: the format description of the safetensors project.

#ifndef MOEC_RUNTIME_SUPPORT_SAFETENSORS_H
#define MOEC_RUNTIME_SUPPORT_SAFETENSORS_H

#include "runtime/Support/DType.h"
#include "runtime/Support/File.h"
#include "runtime/Support/Result.h"

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace moec {

/// A tensor's place in a file: what the header says, nothing mapped.
struct TensorInfo {
  DType dtype = DType::F32;
  std::vector<int64_t> shape; ///< each >= 0; empty for a scalar
  uint64_t begin = 0;         ///< file offset of the first byte
  uint64_t bytes = 0;

  int64_t elements() const; ///< product of the shape; 1 for a scalar
};

/// What the header of a safetensors file says, parsed as hostile: the length
/// is bounded by the file and by 100 MB, every offset is in range, no two
/// tensors overlap, there are no holes, every byte count equals dtype x shape
/// (overflow checked, at most 64 dimensions), no name is given twice, no field
/// is unknown. Memory is bounded by a small multiple of the header.
struct SafetensorsHeader {
  /// A longer header is refused, as by other readers.
  static constexpr uint64_t maxBytes = 100'000'000;

  std::map<std::string, TensorInfo> tensors;   ///< by name, sorted
  std::map<std::string, std::string> metadata; ///< `__metadata__`

  /// `file` is the whole file; `path` names it in errors.
  static Result<SafetensorsHeader> parse(std::string_view file, const std::string &path);
};

/// One validated safetensors file, mapped read-only.
class SafetensorsFile {
public:
  /// Errors as in `MappedFile::open` and `SafetensorsHeader::parse`.
  static Result<SafetensorsFile> open(const std::string &path);

  const std::string &path() const { return file.path(); }
  /// Tensors by name, sorted.
  const std::map<std::string, TensorInfo> &tensors() const { return header.tensors; }
  const std::map<std::string, std::string> &metadata() const { return header.metadata; }
  /// First byte of a tensor of this file. Foreign files align nothing: read
  /// elements with memcpy unless the address says otherwise.
  const std::byte *data(const TensorInfo &info) const { return file.data() + info.begin; }
  const MappedFile &mapping() const { return file; }

private:
  MappedFile file;
  SafetensorsHeader header;
};

/// What a writer needs to know about a tensor beforehand.
struct TensorSpec {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
};

/// Writes one safetensors file whose tensors are filled in any order, by any
/// thread, by offset. The file gets its final name only at `finish` (fsync,
/// rename); a writer destroyed before that removes its temporary file.
/// The first tensor starts at a multiple of 4096 bytes (the header is padded
/// with spaces); the others follow in the given order without holes, so that
/// each is aligned if the sizes before it are.
class SafetensorsWriter {
public:
  /// Reserves the whole file on disk. Errors: a name given twice or not UTF-8, a
  /// shape that is negative or too large, a full disk.
  static Result<SafetensorsWriter> create(const std::string &path, const std::vector<TensorSpec> &tensors,
                                          const std::map<std::string, std::string> &metadata = {});

  /// The same in the file `path` itself, of which the first `keep` bytes are
  /// what an earlier writer of the same tensors wrote (see OutputFile::reopen).
  static Result<SafetensorsWriter> reopen(const std::string &path, const std::vector<TensorSpec> &tensors,
                                          uint64_t keep);

  /// Places of the tensors in the file.
  const std::map<std::string, TensorInfo> &tensors() const { return infos; }
  /// Writes `size` bytes of tensor `name`, `offset` bytes from its begin. Thread-safe.
  Status write(const std::string &name, uint64_t offset, const void *data, uint64_t size);
  /// Bytes of the whole file.
  uint64_t size() const { return fileSize; }
  /// Makes the file durable and gives it its name.
  Status finish();

private:
  /// `keep` as for `reopen`; none: under a temporary name.
  static Result<SafetensorsWriter> open(const std::string &path, const std::vector<TensorSpec> &tensors,
                                        const std::map<std::string, std::string> &metadata,
                                        std::optional<uint64_t> keep);

  uint64_t fileSize = 0;
  std::string path;
  std::unique_ptr<OutputFile> file;
  std::map<std::string, TensorInfo> infos;
};

} // namespace moec

#endif // MOEC_RUNTIME_SUPPORT_SAFETENSORS_H
