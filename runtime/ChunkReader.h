// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// A text read by a model in chunks of one length, as figures over texts are made.

#ifndef MOEC_RUNTIME_CHUNKREADER_H
#define MOEC_RUNTIME_CHUNKREADER_H

#include "runtime/Model.h"
#include "runtime/Support/Result.h"

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace moec {

/// A model that reads a text in chunks of 256 tokens, each after a
/// begin-of-sequence token and in an empty cache; and how well it foretells it.
class ChunkReader {
public:
  static constexpr int64_t chunkTokens = 256;

  /// Refuses a model without a begin-of-sequence token or with a shorter context.
  static Result<ChunkReader> open(std::unique_ptr<Model> model);
  /// The whole text in the ids of the artifact's tokenizer, without a begin-of-sequence token.
  static Result<std::vector<int32_t>> encode(const std::string &artifact, const std::string &text);

  /// Whole chunks in `ids`, at least one, each id below the vocabulary; `what` names the text in errors.
  Result<int64_t> chunksOf(std::span<const int32_t> ids, const std::string &what) const;
  /// Reads the begin-of-sequence token and `chunkTokens - 1` tokens from
  /// `expected` on, which are what each should be followed by, and one more.
  /// Counts for the perplexity.
  Status read(const int32_t *expected);
  /// The same without counting: for a chunk that is read once more.
  Status readAgain(const int32_t *expected);
  /// Logits [chunkTokens, V] of the last chunk, and those of its token `t`.
  std::span<const float> all() const { return logits; }
  std::span<const float> row(int64_t t) const { return all().subspan(t * vocab(), vocab()); }
  int64_t vocab() const { return model->vocab(); }
  /// exp of the mean of -ln p over all tokens read.
  double perplexity() const;
  Model &operator*() const { return *model; }
  Model *operator->() const { return model.get(); }

private:
  explicit ChunkReader(std::unique_ptr<Model> loaded) : model(std::move(loaded)), logits(chunkTokens * vocab()) {}

  std::unique_ptr<Model> model;
  std::vector<float> logits;
  double sum = 0;
  int64_t count = 0;
};

} // namespace moec

#endif // MOEC_RUNTIME_CHUNKREADER_H
