// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Tokenizer/ChatTemplate.h"
#include "test/runtime/tokenizer_support.h"

#include <gmock/gmock.h>

using namespace moec;
using testing::ElementsAre;
using testing::HasSubstr;

namespace {

const std::vector<ChatMessage> kTalk = {{"system", "S"},
                                        {"user", "one"},
                                        {"assistant", "<think>x</think>two</think>three"},
                                        {"system", "T"},
                                        {"user", "four"}};

std::string render(ChatKind kind, const ChatOptions &options = {}) {
  Result<std::string> text = renderChat(kind, kTalk, options, "B", "E");
  return text.ok() ? *text : "error: " + text.message();
}

TEST(TokenizerChat, RenderedForms) {
  // V3 as jinja renders the template of DeepSeek-V3; the others by the model cards.
  EXPECT_EQ(render(ChatKind::V2), "BS\n\nUser: one\n\nAssistant: <think>x</think>two</think>threeET\n\n"
                                  "User: four\n\nAssistant:");
  EXPECT_EQ(render(ChatKind::V3), "BS\n\nT<｜User｜>one<｜Assistant｜><think>x</think>two</think>threeE"
                                  "<｜User｜>four<｜Assistant｜>");
  EXPECT_EQ(render(ChatKind::R1), "BS\n\nT<｜User｜>one<｜Assistant｜>threeE<｜User｜>four<｜Assistant｜><think>\n");
  EXPECT_EQ(render(ChatKind::V3_1), "BS\n\nT<｜User｜>one<｜Assistant｜></think>two</think>threeE"
                                    "<｜User｜>four<｜Assistant｜></think>");
  EXPECT_EQ(render(ChatKind::V3_1, {.addGenerationPrompt = true, .thinking = true}),
            "BS\n\nT<｜User｜>one<｜Assistant｜></think>two</think>threeE<｜User｜>four<｜Assistant｜><think>");
  for (ChatKind kind : {ChatKind::V2, ChatKind::V3, ChatKind::R1, ChatKind::V3_1})
    EXPECT_THAT(render(kind, {.addGenerationPrompt = false}),
                testing::EndsWith(kind == ChatKind::V2 ? "four\n\n" : "four"));
}

TEST(TokenizerChat, OtherRolesAreRefused) {
  const std::vector<ChatMessage> messages = {{"tool", "x"}};
  Result<std::string> text = renderChat(ChatKind::V3, messages);
  ASSERT_FALSE(text.ok());
  EXPECT_EQ(text.message(), "a chat message has the role 'tool'; 'system', 'user' and 'assistant' are supported");
}

class Detection : public testing::Test {
protected:
  Result<Tokenizer> load(const std::string &chatTemplate, bool think = false) {
    Json tree = byteTokenizer();
    tree["added_tokens"] = {addedToken(256, "<B>", true), addedToken(257, "<E>", true), addedToken(258, "<｜User｜>"),
                            addedToken(259, "<｜Assistant｜>")};
    if (think) {
      tree["added_tokens"].push_back(addedToken(260, "<think>"));
      tree["added_tokens"].push_back(addedToken(261, "</think>"));
    }
    Json config = {{"bos_token", "<B>"}, {"eos_token", {{"content", "<E>"}}}, {"add_bos_token", true}};
    if (!chatTemplate.empty())
      config["chat_template"] = chatTemplate;
    TemporaryDirectory directory;
    write(directory / "tokenizer.json", tree.dump());
    write(directory / "tokenizer_config.json", config.dump());
    return Tokenizer::load(directory.path());
  }

  std::string kind(const std::string &chatTemplate, bool think = false) {
    Result<Tokenizer> tokenizer = load(chatTemplate, think);
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.message();
    Result<ChatKind> kind = detectChatKind(*tokenizer);
    return std::string(kind.ok() ? toString(*kind) : kind.message());
  }
};

TEST_F(Detection, ByTemplateThenByTokens) {
  EXPECT_EQ(kind("{{'<｜User｜>'}}{{'<｜Assistant｜><think>\\n'}}"), "R1");
  EXPECT_EQ(kind("{% if thinking %}{{'<｜User｜>'}}{{'<｜Assistant｜>'}}{{'</think>'}}"), "V3.1");
  EXPECT_EQ(kind("{{'<｜User｜>'}}{{'<｜Assistant｜>'}}"), "V3");
  EXPECT_EQ(kind("{{ 'User: ' }}{{ 'Assistant:' }}"), "V2");
  EXPECT_EQ(kind("{{ '<|im_start|>' }}"),
            "the chat template is none of DeepSeek-V2, V3, R1 and V3.1; it begins '{{ '<|im_start|>' }}'");
  EXPECT_EQ(kind(""), "V3");
  EXPECT_EQ(kind("", /*think=*/true), "V3.1");
}

TEST_F(Detection, ChatIsEncodedWithOneBos) {
  Result<Tokenizer> tokenizer = load("");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.message();
  const std::vector<ChatMessage> messages = {{"user", "a"}};
  Result<std::vector<int32_t>> ids = encodeChat(*tokenizer, messages);
  ASSERT_TRUE(ids.ok()) << ids.message();
  EXPECT_THAT(*ids, ElementsAre(256, 258, 'a', 259));
}

TEST(TokenizerChat, NoFormatNoChat) {
  Result<ChatKind> kind = detectChatKind(makeTokenizer(byteTokenizer()));
  ASSERT_FALSE(kind.ok());
  EXPECT_THAT(kind.message(), HasSubstr("neither a chat template nor the tokens"));
}

} // namespace
