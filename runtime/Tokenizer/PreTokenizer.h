// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Cutting text into the words that BPE never merges across.

#ifndef MOEC_RUNTIME_TOKENIZER_PRETOKENIZER_H
#define MOEC_RUNTIME_TOKENIZER_PRETOKENIZER_H

#include "runtime/Support/Json.h"
#include "runtime/Tokenizer/Regex.h"

#include <deque>
#include <string>
#include <string_view>
#include <vector>

namespace moec {

/// What becomes of the matches of a split's pattern. Source: `SplitDelimiterBehavior`
/// of the `tokenizers` package; the names are those in the file.
enum class SplitBehavior { Isolated, Removed, MergedWithPrevious, MergedWithNext, Contiguous };

/// The "pre_tokenizer" of a tokenizer.json: Split, Digits and ByteLevel steps,
/// alone or in a Sequence. ByteLevel must be there and be last, since after it
/// a text is no longer made of its own characters.
class PreTokenizer {
public:
  /// `json` may be null; `what` names the file.
  static Result<PreTokenizer> parse(const Json &json, const std::string &what);

  /// Appends the words of `text`, well-formed UTF-8, to `words`: views of `text`, or of
  /// strings added to `made` where a space had to be put before. A pattern
  /// that spends the budget of `matcher` splits no further.
  void split(std::string_view text, RegexMatcher &matcher, std::vector<std::string_view> &words,
             std::deque<std::string> &made) const;

private:
  struct Step {
    Regex regex;
    SplitBehavior behavior = SplitBehavior::Isolated;
    bool invert = false;
  };
  Status add(const Json &json, const std::string &what, int depth);

  std::vector<Step> steps;
  bool byteLevel = false;      ///< seen; nothing may follow
  bool addPrefixSpace = false; ///< before the step `prefixStep`, to pieces without one
  size_t prefixStep = 0;
};

} // namespace moec

#endif // MOEC_RUNTIME_TOKENIZER_PRETOKENIZER_H
