// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The tensors of a checkpoint directory in Hugging Face layout.

#ifndef MOEC_FRONTENDS_HUGGINGFACE_CHECKPOINT_H
#define MOEC_FRONTENDS_HUGGINGFACE_CHECKPOINT_H

#include "dialects/Formats/Gguf.h"
#include "frontends/HuggingFace/Config.h"
#include "runtime/Support/Safetensors.h"
#include "runtime/Support/TensorSource.h"

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace moec::hf {

/// What headers say about one tensor.
struct StoredTensor {
  DType dtype = DType::F32;   ///< of the elements, or U8 if they lie in blocks
  std::vector<int64_t> shape; ///< in elements
  std::string_view file;      ///< path of the shard, for messages
  /// The tensor of the file that this one is, or is a part of, if that has another name; for messages.
  std::string_view packedIn = {};
  /// The blocks of a GGUF file that its elements lie in, else null. Its view is U8 [rows, bytes of a row].
  const GgufType *blocks = nullptr;

  /// "BF16", "Q4_K", ...
  std::string_view typeName() const { return blocks ? blocks->name : toString(dtype); }
  uint64_t bytes() const;
};

/// Tensors by name, sorted.
using TensorTable = std::map<std::string, StoredTensor>;

/// `model.safetensors`, or `model.safetensors.index.json` and the shards it names, or else one GGUF file or its parts
/// `name-00001-of-00003.gguf` and so on.
///
/// `open` reads headers only; shards are mapped and their pages come in when a tensor is read. It refuses an index with
/// duplicate keys, shard names that are not plain file names, absent shards, tensors that the index promises and the
/// shard lacks, and tensors in two shards. Tensors that shards hold and the index forgot are kept: headers are the
/// truth.
///
/// The experts of a layer may be packed as transformers 5 does it: `X.experts.gate_up_proj`, [E, 2 I, H] with the rows
/// of gate before those of up, and `X.experts.down_proj`, [E, H, I]. In F32, F16 and BF16 they are seen as the tensors
/// `X.experts.<e>.gate_proj.weight` and so on that they hold, and not under their own names.
///
/// The tensors of a GGUF file, of the architecture `deepseek2`, have the names of a checkpoint here, stacked experts
/// those of single ones. `open` refuses files that are no parts of one model, absent parts, tensors of unknown names
/// and types, and `kv_b_proj` in two halves, of which one is stored transposed.
class Checkpoint final : public TensorSource {
public:
  static Result<Checkpoint> open(const std::string &directory);
  /// Whether there are tensors to open, good or bad.
  static bool isIn(const std::string &directory);

  const std::string &directory() const { return dir; }
  const TensorTable &tensors() const { return table; }

  /// Compares `config` with the metadata of GGUF files, and takes its `quantization_config` away, since that is of the
  /// checkpoint that such a file was made from. Does nothing where there is none.
  Status reconcile(ModelConfig &config) const;

  Result<TensorView> tensor(const std::string &name) const override;
  void release(const TensorView &view) const override;

private:
  struct Place {
    TensorView view;
    const MappedFile *file;
  };

  Status addShard(const std::string &path);
  Status readIndex(const std::string &path);
  Status readGguf(const std::vector<std::string> &files);
  Status addGguf(const std::string &path);
  Status unpackExperts();
  /// The error is that there is a tensor of this name already.
  Status add(const std::string &name, StoredTensor stored, TensorView view, const MappedFile &file);
  /// Adds `count` tensors like `stored`, called `family` with a number for `{e}`: the first is `view`, and each
  /// begins `stride` bytes after the one before.
  Status addMembers(const std::string &family, const StoredTensor &stored, TensorView view, const MappedFile &file,
                    int64_t count, uint64_t stride);
  /// Counts the experts in a packed tensor of the table's size; the error is that there are too many.
  Status countExperts(const std::string &name, const std::vector<int64_t> &shape, std::string_view file);

  std::string dir;
  // Behind pointers: the table's views and the places point into them.
  std::vector<std::unique_ptr<SafetensorsFile>> shards;
  std::vector<std::unique_ptr<GgufFile>> ggufs;
  int64_t packedExperts = 0;
  std::map<std::string, Place, std::less<>> places;
  TensorTable table;
};

} // namespace moec::hf

#endif // MOEC_FRONTENDS_HUGGINGFACE_CHECKPOINT_H
