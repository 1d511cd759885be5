// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Tokenizer/PreTokenizer.h"

#include "runtime/Support/Text.h"
#include "runtime/Tokenizer/Utf8.h"

#include <algorithm>
#include <optional>

namespace moec {
namespace {

constexpr size_t kMaxSteps = 64;
constexpr int kMaxDepth = 8;

/// ByteLevel's own pattern. Source: the GPT-2 encoder.
constexpr std::string_view kGpt2Pattern =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

Result<SplitBehavior> parseBehavior(const std::string &name, const std::string &what) {
  static constexpr std::pair<std::string_view, SplitBehavior> names[] = {
      {"Isolated", SplitBehavior::Isolated},
      {"Removed", SplitBehavior::Removed},
      {"MergedWithPrevious", SplitBehavior::MergedWithPrevious},
      {"MergedWithNext", SplitBehavior::MergedWithNext},
      {"Contiguous", SplitBehavior::Contiguous}};
  for (const auto &[known, behavior] : names)
    if (name == known)
      return behavior;
  return Error{what + ": 'behavior' is " + quote(name) + ", which is none of the five that a Split may have"};
}

/// A stretch of the text, and whether the pattern matched it.
struct Piece {
  size_t begin, end;
  bool match;
};

void join(std::vector<Piece> &pieces, SplitBehavior behavior) {
  std::vector<Piece> joined;
  bool previous = false;
  auto fold = [&](const Piece &piece, bool merge) {
    if (merge && !joined.empty()) {
      joined.back().begin = std::min(joined.back().begin, piece.begin);
      joined.back().end = std::max(joined.back().end, piece.end);
    } else {
      joined.push_back(piece);
    }
    previous = piece.match;
  };
  switch (behavior) {
  case SplitBehavior::Isolated:
    return;
  case SplitBehavior::Removed:
    std::erase_if(pieces, [](const Piece &piece) { return piece.match; });
    return;
  case SplitBehavior::Contiguous:
    for (const Piece &piece : pieces)
      fold(piece, piece.match == previous);
    break;
  case SplitBehavior::MergedWithPrevious:
    for (const Piece &piece : pieces)
      fold(piece, piece.match && !previous);
    break;
  case SplitBehavior::MergedWithNext:
    for (size_t i = pieces.size(); i-- > 0;)
      fold(pieces[i], pieces[i].match && !previous);
    std::reverse(joined.begin(), joined.end());
    break;
  }
  pieces.swap(joined);
}

/// Cuts `text` at the matches of `regex`. False if the matcher gave up; what follows is then one piece.
bool cut(std::string_view text, const Regex &regex, RegexMatcher &matcher, std::vector<Piece> &pieces) {
  bool complete = true;
  size_t done = 0, from = 0;
  std::optional<size_t> lastEnd;
  std::pair<size_t, size_t> found;
  while (from <= text.size()) {
    RegexMatcher::Outcome outcome = matcher.search(regex, text, from, found);
    if (outcome != RegexMatcher::Outcome::Match) {
      complete = outcome == RegexMatcher::Outcome::NoMatch;
      break;
    }
    if (found.first == found.second && lastEnd == found.second) {
      // An empty match right after a match is none; look on behind the next character.
      from = found.second < text.size() ? found.second + decodeUtf8(text.substr(found.second)).length : text.size() + 1;
      continue;
    }
    if (done < found.first)
      pieces.push_back({done, found.first, false});
    pieces.push_back({found.first, found.second, true});
    done = from = found.second;
    lastEnd = found.second;
  }
  if (done < text.size())
    pieces.push_back({done, text.size(), false});
  return complete;
}

} // namespace

Result<PreTokenizer> PreTokenizer::parse(const Json &json, const std::string &what) {
  PreTokenizer result;
  if (!json.is_null())
    MOEC_CHECK(result.add(json, what + ": pre_tokenizer", 0));
  if (!result.byteLevel)
    return Error{what + ": pre_tokenizer has no ByteLevel step; only byte-level tokenizers are supported"};
  return result;
}

Status PreTokenizer::add(const Json &json, const std::string &what, int depth) {
  MOEC_TRY(JsonObject object, JsonObject::from(json, what));
  MOEC_TRY(std::string type, object.string("type"));
  if (depth > kMaxDepth || steps.size() > kMaxSteps)
    return Error{what + ": more than " + std::to_string(kMaxSteps) + " steps or sequences nested deeper than " +
                 std::to_string(kMaxDepth)};
  if (type == "Sequence") {
    MOEC_TRY(const Json *list, object.array("pretokenizers"));
    for (size_t i = 0; i < list->size(); ++i)
      MOEC_CHECK(add((*list)[i], what + "[" + std::to_string(i) + "]", depth + 1));
    return success();
  }
  if (type != "Split" && type != "Digits" && type != "ByteLevel")
    return Error{what + ": type " + quote(type) + " is not supported; Sequence, Split, Digits and ByteLevel are"};
  if (byteLevel)
    return Error{what + ": a step " + quote(type) + " after ByteLevel is not supported"};

  if (type == "ByteLevel") {
    MOEC_TRY(addPrefixSpace, object.booleanOr("add_prefix_space", true));
    MOEC_TRY(bool useRegex, object.booleanOr("use_regex", true));
    byteLevel = true;
    prefixStep = steps.size();
    if (useRegex) {
      MOEC_TRY(Regex regex, Regex::compile(kGpt2Pattern, what));
      steps.push_back({regex, SplitBehavior::Isolated, false});
    }
    return success();
  }
  if (type == "Digits") {
    MOEC_TRY(bool individual, object.booleanOr("individual_digits", false));
    MOEC_TRY(Regex regex, Regex::compile("\\p{N}", what));
    steps.push_back({regex, individual ? SplitBehavior::Isolated : SplitBehavior::Contiguous, false});
    return success();
  }
  Step step;
  MOEC_TRY(std::string behavior, object.string("behavior"));
  MOEC_TRY(step.behavior, parseBehavior(behavior, what));
  MOEC_TRY(step.invert, object.booleanOr("invert", false));
  MOEC_TRY(JsonObject pattern, object.object("pattern"));
  if (pattern.has("Regex") == pattern.has("String"))
    return Error{what + ": 'pattern' needs either 'Regex' or 'String'"};
  bool isRegex = pattern.has("Regex");
  MOEC_TRY(std::string text, pattern.string(isRegex ? "Regex" : "String"));
  MOEC_TRY(step.regex, isRegex ? Regex::compile(text, what) : Regex::literal(text, what));
  steps.push_back(std::move(step));
  return success();
}

void PreTokenizer::split(std::string_view text, RegexMatcher &matcher, std::vector<std::string_view> &words,
                         std::deque<std::string> &made) const {
  std::vector<std::string_view> current = {text}, next;
  std::vector<Piece> pieces;
  for (size_t i = 0;; ++i) {
    if (addPrefixSpace && i == prefixStep)
      for (std::string_view &word : current)
        if (!word.starts_with(' '))
          word = made.emplace_back(" ").append(word);
    if (i == steps.size())
      break;
    const Step &step = steps[i];
    bool complete = true;
    next.clear();
    for (std::string_view word : current) {
      if (!complete) {
        next.push_back(word);
        continue;
      }
      pieces.clear();
      complete = cut(word, step.regex, matcher, pieces);
      if (step.invert)
        for (Piece &piece : pieces)
          piece.match = !piece.match;
      join(pieces, step.behavior);
      for (const Piece &piece : pieces)
        if (piece.begin < piece.end)
          next.push_back(word.substr(piece.begin, piece.end - piece.begin));
    }
    current.swap(next);
  }
  words.insert(words.end(), current.begin(), current.end());
}

} // namespace moec
