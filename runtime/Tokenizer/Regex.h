// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The regular expressions of tokenizer.json files, run by PCRE2.
///
/// The files are written for Oniguruma with Ruby's syntax, so a pattern is
/// translated first. What the two engines understand differently and the
/// translation handles:
///   - `^` and `$` match at every line break;
///   - `\s` is White_Space (PCRE2's has U+180E besides), `\d` is Nd, `\w` is
///     Alphabetic, M, Nd, Pc and ²³¹¼½¾; `\h` is a hexadecimal digit, `\v` is U+000B;
///   - `\p{Han}` is the Script property (PCRE2: Script_Extensions);
///   - `[a[b]]` is a union and `[a&&b]` an intersection;
///   - `x{1,3}+` repeats (PCRE2: is possessive), `x{,3}` has no lower bound.
/// What is left out is refused by name: back references, named groups,
/// subexpression calls, POSIX brackets, inline options but `i`, octal escapes.
/// One difference stays: categories and properties come from the Unicode
/// version of PCRE2 (14 in 10.42), so characters assigned later count as
/// unassigned, and derived properties such as Alphabetic differ for a few.

#ifndef MOEC_RUNTIME_TOKENIZER_REGEX_H
#define MOEC_RUNTIME_TOKENIZER_REGEX_H

#include "runtime/Support/Result.h"

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

struct pcre2_real_code_8;

namespace moec {

/// A compiled pattern; immutable, may be shared by threads.
class Regex {
public:
  /// `what` names the pattern in errors.
  static Result<Regex> compile(std::string_view pattern, const std::string &what);
  /// Matches `text` and nothing else.
  static Result<Regex> literal(std::string_view text, const std::string &what);

  const pcre2_real_code_8 *code() const { return compiled.get(); }

private:
  std::shared_ptr<const pcre2_real_code_8> compiled;
};

/// `pattern` as PCRE2 must see it to mean what Oniguruma would make of it.
Result<std::string> translatePattern(std::string_view pattern, const std::string &what);

/// What one thread needs for matching, and the bound on its work: a match that
/// backtracks beyond some thousand steps draws on a budget that grows with
/// `textSize`, and once a budget is spent such a match counts as failed.
class RegexMatcher {
public:
  explicit RegexMatcher(size_t textSize);
  ~RegexMatcher();
  RegexMatcher(const RegexMatcher &) = delete;

  enum class Outcome { Match, NoMatch, GaveUp };
  /// Finds the first match of `regex` in `text`, well-formed UTF-8, at or
  /// after byte `start`; sets `found` to its begin and end.
  Outcome search(const Regex &regex, std::string_view text, size_t start, std::pair<size_t, size_t> &found);

private:
  struct State;
  std::unique_ptr<State> state;
};

} // namespace moec

#endif // MOEC_RUNTIME_TOKENIZER_REGEX_H
