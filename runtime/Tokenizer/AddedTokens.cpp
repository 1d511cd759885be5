// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Tokenizer/AddedTokens.h"

#include "runtime/Tokenizer/Regex.h"
#include "runtime/Tokenizer/Utf8.h"

#include <algorithm>

namespace moec {
namespace {

/// The begin of the last character of `text`, which is not empty.
size_t lastCharacter(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (uint8_t(text[at]) & 0xC0) == 0x80)
    --at;
  return at;
}

/// A word character in the sense of Rust's `\w`: UTS #18, Annex C.
bool isWordCharacter(std::string_view character) {
  static const Result<Regex> word =
      Regex::compile("[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}]", "word character");
  assert(word.ok());
  thread_local RegexMatcher matcher(/*textSize=*/0); // One character never needs its budget.
  std::pair<size_t, size_t> found;
  return matcher.search(*word, character, 0, found) == RegexMatcher::Outcome::Match;
}

bool endsInWord(std::string_view text) { return !text.empty() && isWordCharacter(text.substr(lastCharacter(text))); }

bool startsWithWord(std::string_view text) {
  return !text.empty() && isWordCharacter(text.substr(0, decodeUtf8(text).length));
}

/// Where the white space at the end of `text` begins.
size_t trailingSpace(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    size_t begin = lastCharacter(text.substr(0, end));
    if (!isWhiteSpace(decodeUtf8(text.substr(begin)).codePoint))
      break;
    end = begin;
  }
  return end;
}

/// How long the white space at the start of `text` is.
size_t leadingSpace(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    Utf8Char c = decodeUtf8(text.substr(at));
    if (!isWhiteSpace(c.codePoint))
      break;
    at += c.length;
  }
  return at;
}

} // namespace

AddedTokenSet::AddedTokenSet() : tokenAt{-1} {}

void AddedTokenSet::add(const AddedToken &token) {
  assert(!token.content.empty());
  startsWith[uint8_t(token.content[0])] = true;
  uint32_t node = 0;
  for (char byte : token.content) {
    Node &edge = edges[uint64_t(node) << 8 | uint8_t(byte)];
    if (edge.next == 0) {
      edge.next = uint32_t(tokenAt.size());
      tokenAt.push_back(-1);
    }
    node = edge.next;
  }
  tokenAt[node] = int32_t(tokens.size());
  tokens.push_back(token);
}

void AddedTokenSet::split(std::string_view text, bool special, std::vector<TextPart> &parts) const {
  size_t done = 0;     ///< text before this is in `parts`
  size_t spaceEnd = 0; ///< of the last run of white space after a token
  for (size_t at = 0; !tokens.empty() && at < text.size();) {
    const AddedToken *match = nullptr;
    if (startsWith[uint8_t(text[at])]) {
      uint32_t node = 0;
      for (size_t i = at; i < text.size(); ++i) {
        const Node *edge = edges.find(uint64_t(node) << 8 | uint8_t(text[i]));
        if (!edge)
          break;
        node = edge->next;
        if (tokenAt[node] >= 0)
          match = &tokens[tokenAt[node]];
      }
    }
    if (!match) {
      ++at;
      continue;
    }
    size_t begin = at, end = at + match->content.size();
    at = end; // Also a discarded match hides what overlaps it.
    if (match->special && !special)
      continue;
    if (match->singleWord && (endsInWord(text.substr(0, begin)) || startsWithWord(text.substr(end))))
      continue;
    if (match->leftStrip)
      begin = begin < done ? done : done + trailingSpace(text.substr(done, begin - done));
    if (match->rightStrip) {
      // Tokens that are white space themselves must not make this quadratic.
      if (end >= spaceEnd)
        spaceEnd = end + leadingSpace(text.substr(end));
      end = spaceEnd;
    }
    if (done < begin)
      parts.push_back({text.substr(done, begin - done), -1});
    parts.push_back({text.substr(begin, end - begin), match->id});
    done = end;
  }
  if (done < text.size())
    parts.push_back({text.substr(done), -1});
}

} // namespace moec
