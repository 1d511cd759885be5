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
  /// The packed tensor that this one is a part of, for messages; empty if it is stored by itself.
  std::string_view packedIn = {};
};

/// Tensors by name, sorted.
using TensorTable = std::map<std::string, StoredTensor>;

/// `model.safetensors`, or `model.safetensors.index.json` and the shards it names.
///
/// `open` reads headers only; shards are mapped and their pages come in when a tensor is read. It refuses an index with
/// duplicate keys, shard names that are not plain file names, absent shards, tensors that the index promises and the
/// shard lacks, and tensors in two shards. Tensors that shards hold and the index forgot are kept: headers are the
/// truth.
///
/// The experts of a layer may be packed as transformers 5 does it: `X.experts.gate_up_proj`, [E, 2 I, H] with the rows
/// of gate before those of up, and `X.experts.down_proj`, [E, H, I]. In F32, F16 and BF16 they are seen as the tensors
/// `X.experts.<e>.gate_proj.weight` and so on that they hold, and not under their own names.
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
    uint64_t offset = 0;             ///< bytes from the start of what `info` describes
    std::vector<int64_t> shape = {}; ///< empty: that of `info`
  };

  Status addShard(const std::string &path);
  Status readIndex(const std::string &path);
  Status unpackExperts();
  /// Makes the `count` matrices of `shape` that lie in `packed`, one in every `stride` bytes from `offset` on,
  /// tensors called "<e>.`name`.weight" beside it.
  Status addMembers(const std::string &packed, std::string_view name, uint64_t offset, uint64_t stride, int64_t count,
                    std::vector<int64_t> shape);

  std::string dir;
  // Behind pointers: the table's views and the places point into them.
  std::vector<std::unique_ptr<SafetensorsFile>> shards;
  std::map<std::string, Place, std::less<>> places;
  TensorTable table;
};

} // namespace moec::hf

#endif // MOEC_FRONTENDS_HUGGINGFACE_CHECKPOINT_H
