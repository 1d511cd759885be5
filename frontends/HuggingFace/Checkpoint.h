// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The tensors of a checkpoint directory in Hugging Face layout.

#ifndef MOEC_FRONTENDS_HUGGINGFACE_CHECKPOINT_H
#define MOEC_FRONTENDS_HUGGINGFACE_CHECKPOINT_H

#include "runtime/Support/Safetensors.h"
#include "runtime/Support/TensorSource.h"

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace moec::hf {

/// What headers say about one tensor.
struct StoredTensor {
  DType dtype = DType::F32;
  std::vector<int64_t> shape;
  std::string_view file; ///< path of the shard, for messages
};

/// Tensors by name, sorted.
using TensorTable = std::map<std::string, StoredTensor>;

/// `model.safetensors`, or `model.safetensors.index.json` and the shards it names.
///
/// `open` reads headers only; shards are mapped and their pages come in when a tensor is read. It refuses an index with
/// duplicate keys, shard names that are not plain file names, absent shards, tensors that the index promises and the
/// shard lacks, and tensors in two shards. Tensors that shards hold and the index forgot are kept: headers are the
/// truth.
class Checkpoint final : public TensorSource {
public:
  static Result<Checkpoint> open(const std::string &directory);

  const std::string &directory() const { return dir; }
  const TensorTable &tensors() const { return table; }

  Result<TensorView> tensor(const std::string &name) const override;
  void release(const TensorView &view) const override;

private:
  struct Place {
    size_t shard;
    const TensorInfo *info;
  };

  Status addShard(const std::string &path);
  Status readIndex(const std::string &path);

  std::string dir;
  // Behind pointers: the table's views and the places point into them.
  std::vector<std::unique_ptr<SafetensorsFile>> shards;
  std::map<std::string, Place, std::less<>> places;
  TensorTable table;
};

} // namespace moec::hf

#endif // MOEC_FRONTENDS_HUGGINGFACE_CHECKPOINT_H
