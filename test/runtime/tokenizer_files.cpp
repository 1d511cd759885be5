// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "test/runtime/tokenizer_support.h"

#include <gmock/gmock.h>

#include <functional>

using namespace moec;
using testing::HasSubstr;

namespace {

struct Bad {
  const char *name;
  std::function<void(Json &)> change;
  const char *message;
};

class BadTokenizer : public testing::TestWithParam<Bad> {};

TEST_P(BadTokenizer, IsRefusedInASentence) {
  Json tree = byteTokenizer({{"a", "b"}});
  GetParam().change(tree);
  Result<Tokenizer> tokenizer = loadTokenizer(tree);
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_THAT(tokenizer.message(), HasSubstr("tokenizer.json: "));
  EXPECT_THAT(tokenizer.message(), HasSubstr(GetParam().message));
}

Json sequence(const char *list, const Json &member) { return {{"type", "Sequence"}, {list, Json::array({member})}}; }

Json nested(const char *list, int depth) {
  Json json = {{"type", "Sequence"}, {list, Json::array()}};
  for (int i = 0; i < depth; ++i)
    json = sequence(list, json);
  return json;
}

const Bad kBad[] = {
    {"Version", [](Json &t) { t["version"] = "2.0"; }, "version is '2.0'"},
    {"NoModel", [](Json &t) { t.erase("model"); }, "'model' is missing"},
    {"ModelIsList", [](Json &t) { t["model"] = Json::array(); }, "'model'"},
    {"ModelType", [](Json &t) { t["model"]["type"] = "Unigram"; }, "model type 'Unigram' is not supported"},
    {"Dropout", [](Json &t) { t["model"]["dropout"] = 0.1; }, "dropout"},
    {"Prefix", [](Json &t) { t["model"]["continuing_subword_prefix"] = "##"; }, "continuing_subword_prefix '##'"},
    {"Suffix", [](Json &t) { t["model"]["end_of_word_suffix"] = "</w>"; }, "end_of_word_suffix '</w>'"},
    {"UnkToken",
     [](Json &t) { t["model"].update({{"vocab", {{"a", 0}}}, {"merges", Json::array()}, {"unk_token", "a"}}); },
     "unk_token"},
    {"IdTwice", [](Json &t) { t["model"]["vocab"]["zz"] = 5; }, "the id 5 twice"},
    {"IdNegative", [](Json &t) { t["model"]["vocab"]["zz"] = -1; }, "the id '-1', expected an integer from 0"},
    {"IdFraction", [](Json &t) { t["model"]["vocab"]["zz"] = 1.5; }, "the id '1.5'"},
    {"IdString", [](Json &t) { t["model"]["vocab"]["zz"] = "1"; }, "the id '\"1\"'"},
    {"IdHuge", [](Json &t) { t["model"]["vocab"]["zz"] = 1ull << 40; }, "at most 4194303 is supported"},
    {"IdGap", [](Json &t) { t["model"]["vocab"]["zz"] = 300; }, "no token has the id 257, but ids go up to 300"},
    {"VocabIsList", [](Json &t) { t["model"]["vocab"] = Json::array(); }, "vocab' is"},
    {"MergeNumber", [](Json &t) { t["model"]["merges"].push_back(7); }, "merge 1 is '7', expected two tokens"},
    {"MergeOneToken", [](Json &t) { t["model"]["merges"].push_back("ab"); }, "expected two tokens"},
    {"MergeThreeTokens", [](Json &t) { t["model"]["merges"].push_back("a b c"); }, "expected two tokens"},
    {"MergeLongList", [](Json &t) { t["model"]["merges"].push_back({"a", "b", "c"}); }, "expected two tokens"},
    {"MergeUnknown", [](Json &t) { t["model"]["merges"].push_back("a zz"); }, "needs the token 'zz'"},
    {"MergeResultUnknown", [](Json &t) { t["model"]["merges"].push_back("b a"); }, "needs the token 'ba'"},
    {"AddedNoId", [](Json &t) { t["added_tokens"] = {{{"content", "x"}}}; }, "'id' is missing"},
    {"AddedHugeId", [](Json &t) { t["added_tokens"] = Json::array({addedToken(1 << 30, "<x>")}); },
     "from 0 to 4194303"},
    {"AddedGap", [](Json &t) { t["added_tokens"] = Json::array({addedToken(300, "<x>")}); }, "no token has the id 257"},
    {"AddedOtherId", [](Json &t) { t["added_tokens"] = Json::array({addedToken(257, "a")}); },
     "but the vocab gives it 97"},
    {"AddedTakenId", [](Json &t) { t["added_tokens"] = Json::array({addedToken(5, "<x>")}); },
     "which another token has too"},
    {"AddedTwice", [](Json &t) { t["added_tokens"] = {addedToken(257, "<x>"), addedToken(258, "<x>")}; },
     "is there twice"},
    {"AddedEmpty", [](Json &t) { t["added_tokens"] = Json::array({addedToken(257, "")}); }, "has 0 bytes"},
    {"Normalizer", [](Json &t) { t["normalizer"] = {{"type", "NFC"}}; }, "normalizer: type 'NFC' is not supported"},
    {"NormalizerInside", [](Json &t) { t["normalizer"] = sequence("normalizers", {{"type", "NFKC"}}); }, "'NFKC'"},
    {"NormalizerDeep", [](Json &t) { t["normalizer"] = nested("normalizers", 20); }, "normalizer"},
    {"NoPreTokenizer", [](Json &t) { t["pre_tokenizer"] = nullptr; }, "has no ByteLevel step"},
    {"PreTokenizer", [](Json &t) { t["pre_tokenizer"] = {{"type", "Metaspace"}}; },
     "type 'Metaspace' is not supported"},
    {"PreTokenizerDeep", [](Json &t) { t["pre_tokenizer"] = nested("pretokenizers", 20); }, "nested deeper than 8"},
    {"AfterByteLevel",
     [](Json &t) {
       t["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {t["pre_tokenizer"], t["pre_tokenizer"]}}};
     },
     "'ByteLevel' after ByteLevel"},
    {"Behavior",
     [](Json &t) { t["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "Kept"}}; },
     "'behavior' is 'Kept'"},
    {"Pattern",
     [](Json &t) { t["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Glob", "a"}}}, {"behavior", "Removed"}}; },
     "either 'Regex' or 'String'"},
    {"PostProcessor", [](Json &t) { t["post_processor"] = {{"type", "BertProcessing"}}; }, "'BertProcessing'"},
    {"TemplateId",
     [](Json &t) {
       t["post_processor"] = {{"type", "TemplateProcessing"},
                              {"single", {{{"SpecialToken", {{"id", "B"}}}}, {{"Sequence", {{"id", "A"}}}}}},
                              {"special_tokens", {{"B", {{"ids", {9999}}}}}}};
     },
     "the special token 'B' has the id '9999', but there are 257 tokens"},
    {"NoDecoder", [](Json &t) { t["decoder"] = nullptr; }, "decoder"},
    {"Decoder", [](Json &t) { t["decoder"] = {{"type", "Metaspace"}}; }, "decoder: type 'Metaspace'"},
    {"TwoDecoders",
     [](Json &t) {
       t["decoder"] = {{"type", "Sequence"}, {"decoders", {{{"type", "ByteLevel"}}, {{"type", "ByteLevel"}}}}};
     },
     "2 ByteLevel steps"},
};

INSTANTIATE_TEST_SUITE_P(TokenizerFiles, BadTokenizer, testing::ValuesIn(kBad),
                         [](const auto &info) { return std::string(info.param.name); });

TEST(TokenizerFiles, TokenTwiceIsRefused) {
  std::string text = byteTokenizer().dump();
  text.replace(text.find("\"a\":97"), 6, "\"a\":97,\"a\":256");
  TemporaryDirectory directory;
  write(directory / "tokenizer.json", text);
  Result<Tokenizer> tokenizer = Tokenizer::load(directory.path());
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_THAT(tokenizer.message(), HasSubstr("'a' is given twice"));
}

TEST(TokenizerFiles, EveryTruncationIsRefused) {
  const std::string text = byteTokenizer({{"a", "b"}}).dump();
  TemporaryDirectory directory;
  for (size_t size = 0; size < text.size(); size += 37) {
    write(directory / "tokenizer.json", text.substr(0, size));
    EXPECT_FALSE(Tokenizer::load(directory.path()).ok()) << size;
  }
}

TEST(TokenizerFiles, AbsentFile) {
  TemporaryDirectory directory;
  Result<Tokenizer> tokenizer = Tokenizer::load(directory.path());
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_THAT(tokenizer.message(), HasSubstr("tokenizer.json"));
}

class BadConfig : public testing::TestWithParam<std::pair<const char *, const char *>> {};

TEST_P(BadConfig, IsRefusedInASentence) {
  auto [text, message] = GetParam();
  TemporaryDirectory directory;
  write(directory / "tokenizer.json", byteTokenizer().dump());
  write(directory / "tokenizer_config.json", text);
  Result<Tokenizer> tokenizer = Tokenizer::load(directory.path());
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_THAT(tokenizer.message(), HasSubstr("tokenizer_config.json"));
  EXPECT_THAT(tokenizer.message(), HasSubstr(message));
}

INSTANTIATE_TEST_SUITE_P(TokenizerFiles, BadConfig,
                         testing::Values(std::pair(R"([])", "expected an object"),
                                         std::pair(R"({"bos_token": 5})", "'bos_token' is 5, expected a string"),
                                         std::pair(R"({"bos_token": "<none>"})",
                                                   "bos_token is '<none>', which tokenizer.json does not have"),
                                         std::pair(R"({"eos_token": {"lstrip": true}})", "content' is missing"),
                                         std::pair(R"({"add_bos_token": true})", "there is no bos_token"),
                                         std::pair(R"({"add_bos_token": "yes"})", "expected true or false"),
                                         std::pair(R"({"chat_template": 3})", "chat_template"),
                                         std::pair(R"({"chat_template": [{"name": "default"}]})",
                                                   "'template' is missing")));

TEST(TokenizerFiles, GenerationConfig) {
  TemporaryDirectory directory;
  write(directory / "tokenizer.json", byteTokenizer().dump());
  write(directory / "generation_config.json", R"({"eos_token_id": [1, 7], "temperature": 0.5, "top_k": 20})");
  Result<Tokenizer> tokenizer = Tokenizer::load(directory.path());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.message();
  EXPECT_THAT(tokenizer->generationDefaults().eosIds, testing::ElementsAre(1, 7));
  EXPECT_EQ(tokenizer->generationDefaults().topK, 20);
  write(directory / "generation_config.json", R"({"eos_token_id": "two"})");
  tokenizer = Tokenizer::load(directory.path());
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_THAT(tokenizer.message(), HasSubstr("generation_config.json: 'eos_token_id' is '\"two\"'"));
}

TEST(TokenizerFiles, NamedAndSeparateChatTemplates) {
  TemporaryDirectory directory;
  write(directory / "tokenizer.json", byteTokenizer().dump());
  write(directory / "tokenizer_config.json",
        R"({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]})");
  EXPECT_EQ(Tokenizer::load(directory.path())->chatTemplate(), "d");
  write(directory / "chat_template.jinja", "file");
  EXPECT_EQ(Tokenizer::load(directory.path())->chatTemplate(), "file");
}

} // namespace
