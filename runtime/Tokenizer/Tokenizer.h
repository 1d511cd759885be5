// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Text to token ids and back: byte-level BPE from a Hugging Face
/// tokenizer.json, equal id for id to the `tokenizers` package.
///
/// Supported: model BPE over bytes (merges as "a b" or ["a", "b"],
/// ignore_merges); pre-tokenizers Split (Regex or String, all behaviors),
/// Digits, ByteLevel and Sequence of them; no normalizer; decoder ByteLevel;
/// post-processors ByteLevel, TemplateProcessing and Sequence; added tokens
/// with all their flags. Everything else is refused by name. Truncation and
/// padding settings are ignored, as `transformers` does unless asked.
/// Known difference: character classes of characters assigned after the
/// Unicode version of PCRE2 (see Regex.h).

#ifndef MOEC_RUNTIME_TOKENIZER_TOKENIZER_H
#define MOEC_RUNTIME_TOKENIZER_TOKENIZER_H

#include "runtime/Support/Result.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moec {

struct EncodeOptions {
  /// Put around the text what the tokenizer puts there on its own: the BOS
  /// token where the model wants one. Templated chat text already has it.
  bool addBos = true;
  /// Find special tokens in the text. If false their spelling is ordinary
  /// text; added tokens that are not special are found in either case.
  bool parseSpecial = true;
};

/// What generation_config.json asks for; absent fields are empty.
struct GenerationDefaults {
  std::vector<int64_t> eosIds; ///< "eos_token_id", one or several
  std::optional<bool> doSample;
  std::optional<double> temperature, topP;
  std::optional<int64_t> topK;
};

/// Immutable; copies share their data and any thread may use any of them.
class Tokenizer {
public:
  /// Loads `path`: a tokenizer.json, or a directory that holds one. In a
  /// directory tokenizer_config.json (add_bos_token, bos_token, eos_token,
  /// chat_template), chat_template.jinja and generation_config.json are read
  /// too, if they are there.
  ///
  /// BOS: the post-processor of tokenizer.json decides, and if it adds nothing
  /// `add_bos_token: true` does; with a tokenizer_class of LlamaTokenizerFast a
  /// stated `add_bos_token` or `add_eos_token` replaces the post-processor, as
  /// in `transformers`.
  static Result<Tokenizer> load(const std::string &path);

  /// The ids of `text`. Bytes that are not UTF-8 count as U+FFFD. Takes
  /// O(n log n), also for hostile patterns (see RegexMatcher).
  std::vector<int32_t> encode(std::string_view text, const EncodeOptions &options = {}) const;

  /// The text of `ids`: UTF-8 whatever the ids are, with U+FFFD where tokens do
  /// not make up characters. Ids without a token give nothing; special tokens
  /// give nothing if `skipSpecial`.
  std::string decode(std::span<const int32_t> ids, bool skipSpecial = true) const;

  /// Ids are in [0, vocabSize) and each has a token. A model may have more logits.
  int64_t vocabSize() const;
  /// The id of a token as spelled in tokenizer.json: "<｜User｜>", "Ġthe".
  std::optional<int32_t> tokenId(std::string_view token) const;
  /// The bytes that a token adds to the text, empty if there is no such id.
  std::string_view tokenBytes(int32_t id) const;
  bool isSpecial(int32_t id) const;

  /// From tokenizer_config.json.
  std::optional<int32_t> bosId() const;
  std::optional<int32_t> eosId() const;
  /// Whether `addBos` has an effect.
  bool addsBos() const;
  /// The chat template's text, empty if there is none.
  const std::string &chatTemplate() const;
  const GenerationDefaults &generationDefaults() const;

  struct State;

private:
  Tokenizer() = default;
  std::shared_ptr<const State> state;
};

/// Decodes ids one at a time, and gives out whole characters only: the parts
/// together are what `Tokenizer::decode` makes of all the ids.
class StreamDecoder {
public:
  explicit StreamDecoder(Tokenizer tokenizer, bool skipSpecial = true)
      : tokenizer(std::move(tokenizer)), skipSpecial(skipSpecial) {}

  /// The text that `id` completes; may be empty.
  std::string push(int32_t id);
  /// What is left at the end: U+FFFD if a character is incomplete. Starts over.
  std::string flush();

private:
  Tokenizer tokenizer;
  bool skipSpecial;
  std::string pending; ///< the begin of a character, at most 3 bytes
};

} // namespace moec

#endif // MOEC_RUNTIME_TOKENIZER_TOKENIZER_H
