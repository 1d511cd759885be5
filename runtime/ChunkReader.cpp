// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/ChunkReader.h"

#include "runtime/Sampler.h"
#include "runtime/Tokenizer/Tokenizer.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace moec {

Result<ChunkReader> ChunkReader::open(std::unique_ptr<Model> model) {
  const std::string &artifact = model->artifact().directory();
  if (model->info().bos < 0)
    return Error{artifact + ": the model has no begin-of-sequence token, which each chunk starts with"};
  if (model->maxContext() < chunkTokens)
    return Error{artifact + ": is compiled for a context of " + std::to_string(model->maxContext()) +
                 ", but a chunk has " + std::to_string(chunkTokens) + " tokens"};
  return ChunkReader(std::move(model));
}

Result<std::vector<int32_t>> ChunkReader::encode(const std::string &artifact, const std::string &text) {
  MOEC_TRY(Tokenizer tokenizer, Tokenizer::load(artifact));
  EncodeOptions encoding;
  encoding.addBos = false;
  return tokenizer.encode(text, encoding);
}

Result<int64_t> ChunkReader::chunksOf(std::span<const int32_t> ids, const std::string &what) const {
  const int64_t chunks = ids.size() / chunkTokens;
  if (chunks == 0)
    return Error{what + ": has " + std::to_string(ids.size()) + " tokens, expected at least " +
                 std::to_string(chunkTokens)};
  const int32_t largest = *std::max_element(ids.begin(), ids.begin() + chunks * chunkTokens);
  if (largest >= vocab())
    return Error{what + ": the tokenizer gives the id " + std::to_string(largest) +
                 ", but the model's vocabulary has " + std::to_string(vocab())};
  return chunks;
}

Status ChunkReader::readAgain(const int32_t *expected) {
  std::vector<int32_t> tokens(chunkTokens), positions(chunkTokens), slots(chunkTokens, 0);
  std::iota(positions.begin(), positions.end(), 0);
  tokens[0] = static_cast<int32_t>(model->info().bos);
  std::copy_n(expected, chunkTokens - 1, tokens.begin() + 1);
  return model->step(tokens, positions, slots, /*rows=*/positions, logits);
}

Status ChunkReader::read(const int32_t *expected) {
  MOEC_CHECK(readAgain(expected));
  for (int64_t t = 0; t < chunkTokens; ++t)
    sum += negativeLogProbability(row(t), expected[t]);
  count += chunkTokens;
  return success();
}

double ChunkReader::perplexity() const { return std::exp(sum / static_cast<double>(count)); }

} // namespace moec
