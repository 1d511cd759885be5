// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Tokens that are found in the text before it is split into words.

#ifndef MOEC_RUNTIME_TOKENIZER_ADDEDTOKENS_H
#define MOEC_RUNTIME_TOKENIZER_ADDEDTOKENS_H

#include "runtime/Tokenizer/FlatMap.h"

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moec {

/// One entry of "added_tokens".
struct AddedToken {
  int32_t id = -1;
  std::string content;    ///< not empty
  bool special = false;   ///< left out by decode(skipSpecial), matched only by encode(parseSpecial)
  bool normalized = true; ///< matched after the tokens that are not, in what they leave
  bool singleWord = false, leftStrip = false, rightStrip = false;
};

/// A part of a text: an added token, or text between such tokens.
struct TextPart {
  std::string_view text;
  int32_t id = -1; ///< of the added token, or -1
};

/// A set of added tokens and the search for them: the leftmost match, the
/// longest of those, without overlap; then `singleWord` discards a match next
/// to a word character, and `leftStrip`, `rightStrip` take the white space beside it.
class AddedTokenSet {
public:
  AddedTokenSet();
  void add(const AddedToken &token);

  /// Appends the parts of `text`, none of them empty. Special tokens count as text unless `special`.
  void split(std::string_view text, bool special, std::vector<TextPart> &parts) const;

private:
  struct Node {
    uint32_t next = 0;
  };
  std::vector<AddedToken> tokens;
  std::vector<int32_t> tokenAt;       ///< by trie node: index into `tokens`, or -1
  FlatMap<Node> edges;                ///< node << 8 | byte to node
  std::array<bool, 256> startsWith{}; ///< bytes that begin a token
};

} // namespace moec

#endif // MOEC_RUNTIME_TOKENIZER_ADDEDTOKENS_H
