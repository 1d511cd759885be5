// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Byte-pair encoding over bytes, and the alphabet in which tokenizer.json
/// files spell bytes as printable characters.

#ifndef MOEC_RUNTIME_TOKENIZER_BPE_H
#define MOEC_RUNTIME_TOKENIZER_BPE_H

#include "runtime/Support/Result.h"
#include "runtime/Tokenizer/FlatMap.h"

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace moec {

/// The character that stands for each byte: bytes that are printable in
/// Latin-1 stand for themselves, the others for U+0100 and up, in order.
/// Source: the GPT-2 encoder.
const std::array<char32_t, 256> &byteAlphabet();

/// The bytes that `token` spells in the byte alphabet; `token` itself, as
/// UTF-8, if one of its characters is not in it.
std::string bytesOfToken(std::string_view token);

/// What a tokenizer.json says under "model", before validation.
struct BpeSpec {
  std::vector<std::pair<std::string, uint64_t>> vocab;
  std::vector<std::pair<std::string, std::string>> merges; ///< in order of rank
  bool ignoreMerges = false;
};

/// An immutable BPE model.
class Bpe {
public:
  /// The largest id that a token may have.
  static constexpr uint64_t kMaxId = (1u << 22) - 1;

  /// Refuses ids out of range, ids or tokens given twice, and merges that
  /// name a token that is not in the vocabulary. `what` names the model in errors.
  static Result<Bpe> create(const BpeSpec &spec, const std::string &what);

  /// The id of a token, spelled in the byte alphabet.
  std::optional<int32_t> find(std::string_view token) const;
  /// Tokens by id; absent ids have none.
  const std::unordered_map<std::string, int32_t> &vocab() const { return ids; }
  /// Whether each byte has a token.
  bool coversAllBytes() const;

  /// Working memory of `encode`; one per thread.
  struct Scratch {
    struct Symbol {
      int64_t previous, next; ///< places, or -1
      int32_t id;
      bool merged; ///< into the symbol before it
    };
    struct Candidate {
      uint32_t rank;
      int32_t merged;
      uint64_t place; ///< of the left symbol
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
    std::string spelled;
  };

  /// Appends the tokens of one word, raw bytes. The pair with the lowest rank
  /// is merged first, the leftmost of equals; O(n log n). Bytes without a
  /// token are dropped, as the `tokenizers` package does.
  void encode(std::string_view word, Scratch &scratch, std::vector<int32_t> &out) const;

private:
  struct Merge {
    uint32_t rank = 0;
    int32_t merged = -1;
  };
  static uint64_t pairKey(int32_t left, int32_t right) { return uint64_t(uint32_t(left)) << 32 | uint32_t(right); }

  std::unordered_map<std::string, int32_t> ids;
  FlatMap<Merge> merges;
  std::array<int32_t, 256> byteIds{};
  bool ignoreMerges = false;
};

} // namespace moec

#endif // MOEC_RUNTIME_TOKENIZER_BPE_H
