// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The files that hold an artifact's weights.

#ifndef MOEC_CODEGEN_WEIGHTS_WEIGHTFILES_H
#define MOEC_CODEGEN_WEIGHTS_WEIGHTFILES_H

#include "runtime/Support/Safetensors.h"

#include <cstdint>
#include <string>
#include <vector>

namespace moec {

/// A finished file, as a manifest lists it.
struct WeightFileEntry {
  std::string file; ///< name inside the artifact
  uint64_t bytes = 0;
  std::string xxh3;
};

/// `weights-00001.safetensors` and so on: the weights in the given order, cut by
/// whole tensors, and `weights.safetensors.index.json`, which says which file
/// holds which weight (`weight_map`, as Hugging Face's indexes have it).
class WeightFiles {
public:
  static constexpr const char *indexName = "weights.safetensors.index.json";

  /// Makes the files in `directory` and reserves their room on disk. A file
  /// holds tensors of at most `limit` bytes together, or one larger tensor.
  static Result<WeightFiles> create(const std::string &directory, const std::vector<TensorSpec> &weights,
                                    uint64_t limit);

  /// Writes `size` bytes of the weight with this index, `offset` bytes from its begin. Thread-safe.
  Status write(size_t weight, uint64_t offset, const void *data, uint64_t size);

  /// Makes everything durable and writes the index. Once.
  Result<std::vector<WeightFileEntry>> finish();

private:
  struct File {
    std::string name;
    std::vector<TensorSpec> specs;
    std::unique_ptr<SafetensorsWriter> writer;
  };

  std::string directory;
  std::vector<File> files;
  struct Place {
    size_t file;
    std::string name;
  };
  std::vector<Place> places; ///< of each weight
};

} // namespace moec

#endif // MOEC_CODEGEN_WEIGHTS_WEIGHTFILES_H
