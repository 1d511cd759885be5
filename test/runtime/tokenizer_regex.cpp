// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Tokenizer/PreTokenizer.h"
#include "runtime/Tokenizer/Regex.h"
#include "test/runtime/tokenizer_support.h"

#include <gmock/gmock.h>

using namespace moec;
using testing::ElementsAre;
using testing::HasSubstr;

namespace {

std::string translated(std::string_view pattern) {
  Result<std::string> result = translatePattern(pattern, "test");
  return result.ok() ? *result : "error: " + result.message();
}

TEST(TokenizerRegex, Translation) {
  EXPECT_EQ(translated(R"(\s\S\d)"), R"([\p{White_Space}][\P{White_Space}][\p{Nd}])");
  EXPECT_EQ(translated(R"([^\r\n\p{L}]?+)"), "[^\r\n\\p{L}]?+");
  EXPECT_EQ(translated(R"(\p{Han}\p{^Lu}\P{N})"), R"([\p{sc:Han}][\P{Lu}][\P{N}])");
  EXPECT_EQ(translated(R"([\p{L}&&[^\p{Han}]])"), R"((?:(?=[\p{L}])(?:[^\p{sc:Han}])))");
  EXPECT_EQ(translated("[^a[bc]]"), "(?:(?!(?:[a]|[bc]))(?s:.))");
  EXPECT_EQ(translated("x{1,3}+y{,2}z{2,}?"), "(?:x{1,3})+y{0,2}z{2,}?");
  EXPECT_EQ(translated("a{b"), "a\\{b");
  EXPECT_EQ(translated("(?i:'s|(t))"), "(?i:\\'s|(?:t))");
}

TEST(TokenizerRegex, RefusalsSayWhat) {
  const std::pair<const char *, const char *> cases[] = {
      {"(?<n>a)", "group of an unsupported kind at byte 0"},
      {"(*F)", "group of an unsupported kind"},
      {"a(?i)b", "group of an unsupported kind"},
      {R"((a)\1)", "unsupported escape '\\1'"},
      {R"(\K)", "unsupported escape '\\K'"},
      {"[[:alpha:]]", "POSIX bracket"},
      {"[]a]", "empty character class"},
      {"[a", "unmatched '['"},
      {"(a", "unmatched '('"},
      {"a)", "unmatched ')'"},
      {"*a", "nothing to repeat at byte 0"},
      {"a{2}?", "'{n}?'"},
      {R"(\p{Klingon})", "unknown property 'Klingon'"},
      {R"(\p{Xwd})", "unknown property 'Xwd'"},
      {R"(\pL)", "without a property in braces"},
      {R"(\x{110000})", "no character"},
      {R"(\xff)", "above 7f"},
      {"\\", "ends in a backslash"},
  };
  for (const auto &[pattern, reason] : cases)
    EXPECT_THAT(translated(pattern), HasSubstr(reason)) << pattern;
  EXPECT_THAT(translated(std::string(100, '(')), HasSubstr("deeper than 32"));
  EXPECT_THAT(translated(std::string(100, '[')), HasSubstr("deeper than 32"));
  EXPECT_THAT(translated(std::string(100000, 'a')), HasSubstr("at most 65536"));
  Result<Regex> compiled = Regex::compile("(?<=a*)b", "test");
  ASSERT_FALSE(compiled.ok());
  EXPECT_THAT(compiled.message(), HasSubstr("refused by PCRE2"));
}

std::vector<std::string> words(const Json &steps, const std::string &text) {
  Json tree = byteTokenizer();
  tree["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", steps}};
  Result<PreTokenizer> preTokenizer = PreTokenizer::parse(tree["pre_tokenizer"], "test");
  EXPECT_TRUE(preTokenizer.ok()) << preTokenizer.message();
  RegexMatcher matcher(text.size());
  std::vector<std::string_view> views;
  std::deque<std::string> made;
  preTokenizer->split(text, matcher, views, made);
  return {views.begin(), views.end()};
}

Json split(const std::string &pattern, const char *behavior, bool invert = false) {
  return {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", behavior}, {"invert", invert}};
}

const Json kBytes = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};

TEST(TokenizerRegex, SplitBehaviors) {
  const std::string text = "the-final--countdown";
  auto by = [&](const char *behavior) { return words({split("-", behavior), kBytes}, text); };
  // The example in the documentation of the package.
  EXPECT_THAT(by("Removed"), ElementsAre("the", "final", "countdown"));
  EXPECT_THAT(by("Isolated"), ElementsAre("the", "-", "final", "-", "-", "countdown"));
  EXPECT_THAT(by("MergedWithPrevious"), ElementsAre("the-", "final-", "-", "countdown"));
  EXPECT_THAT(by("MergedWithNext"), ElementsAre("the", "-final", "-", "-countdown"));
  EXPECT_THAT(by("Contiguous"), ElementsAre("the", "-", "final", "--", "countdown"));
  EXPECT_THAT(words({split("[a-z]+", "Removed", true), kBytes}, text), ElementsAre("the", "final", "countdown"));
}

TEST(TokenizerRegex, DigitsAndPrefixSpace) {
  Json digits = {{"type", "Digits"}, {"individual_digits", true}};
  EXPECT_THAT(words({digits, kBytes}, "a12½b"), ElementsAre("a", "1", "2", "½", "b"));
  digits["individual_digits"] = false;
  EXPECT_THAT(words({digits, kBytes}, "a12½b"), ElementsAre("a", "12½", "b"));
  Json prefixed = {{"type", "ByteLevel"}, {"add_prefix_space", true}};
  EXPECT_THAT(words(Json::array({prefixed}), "Hello world's"), ElementsAre(" Hello", " world", "'s"));
}

TEST(TokenizerRegex, HostilePatternsEnd) {
  std::string text(100000, 'a');
  text += 'b';
  for (const char *pattern : {"(?:a+)+[xy]", "(?:a|aa)+$", "(?:(?:a?){30}){30}x"}) {
    std::string joined;
    for (const std::string &word : words({split(pattern, "Isolated"), kBytes}, text))
      joined += word;
    EXPECT_EQ(joined, text) << pattern;
  }
}

} // namespace
