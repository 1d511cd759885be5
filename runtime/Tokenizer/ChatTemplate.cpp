// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Tokenizer/ChatTemplate.h"

#include "runtime/Support/Text.h"

namespace moec {

static constexpr std::string_view kUser = "<｜User｜>", kAssistant = "<｜Assistant｜>";
static constexpr std::string_view kThink = "<think>", kEndThink = "</think>";

std::string_view toString(ChatKind kind) {
  switch (kind) {
  case ChatKind::V2:
    return "V2";
  case ChatKind::V3:
    return "V3";
  case ChatKind::R1:
    return "R1";
  case ChatKind::V3_1:
    return "V3.1";
  }
  return "";
}

Result<ChatKind> detectChatKind(const Tokenizer &tokenizer) {
  const std::string &text = tokenizer.chatTemplate();
  if (text.empty()) {
    auto has = [&](std::string_view token) { return tokenizer.tokenId(token).has_value(); };
    if (!has(kUser) || !has(kAssistant))
      return Error{"the tokenizer has neither a chat template nor the tokens '<｜User｜>' and '<｜Assistant｜>'"};
    return has(kThink) && has(kEndThink) ? ChatKind::V3_1 : ChatKind::V3;
  }
  auto has = [&](std::string_view part) { return text.find(part) != std::string::npos; };
  if (has("<｜Assistant｜><think>\\n"))
    return ChatKind::R1;
  if (has(kAssistant) && has(kEndThink) && has("thinking"))
    return ChatKind::V3_1;
  if (has(kAssistant) && has(kUser))
    return ChatKind::V3;
  if (has("User: ") && has("Assistant:"))
    return ChatKind::V2;
  return Error{"the chat template is none of DeepSeek-V2, V3, R1 and V3.1; it begins " + quote(text, 60)};
}

/// What follows the first or the last `</think>`, or all if there is none.
static std::string_view withoutReasoning(std::string_view content, bool last) {
  size_t at = last ? content.rfind(kEndThink) : content.find(kEndThink);
  return at == std::string_view::npos ? content : content.substr(at + kEndThink.size());
}

Result<std::string> renderChat(ChatKind kind, std::span<const ChatMessage> messages, const ChatOptions &options,
                               std::string_view bos, std::string_view eos) {
  for (const ChatMessage &message : messages)
    if (message.role != "system" && message.role != "user" && message.role != "assistant")
      return Error{"a chat message has the role " + quote(message.role) +
                   "; 'system', 'user' and 'assistant' are supported"};
  std::string text(bos);
  if (kind == ChatKind::V2) {
    for (const auto &[role, content] : messages) {
      if (role == "system")
        text.append(content).append("\n\n");
      else if (role == "user")
        text.append("User: ").append(content).append("\n\n");
      else
        text.append("Assistant: ").append(content).append(eos);
    }
    if (options.addGenerationPrompt)
      text += "Assistant:";
    return text;
  }

  bool first = true;
  for (const auto &[role, content] : messages)
    if (role == "system") {
      text.append(first ? "" : "\n\n").append(content);
      first = false;
    }
  bool afterUser = false;
  for (const auto &[role, content] : messages) {
    if (role == "user") {
      text.append(kUser).append(content);
      afterUser = true;
    } else if (role == "assistant") {
      if (kind == ChatKind::V3_1) {
        if (afterUser)
          text.append(kAssistant).append(kEndThink);
        text.append(withoutReasoning(content, /*last=*/false));
      } else {
        text.append(kAssistant);
        text.append(kind == ChatKind::R1 ? withoutReasoning(content, /*last=*/true) : content);
      }
      text.append(eos);
      afterUser = false;
    }
  }
  if (!options.addGenerationPrompt)
    return text;
  if (kind == ChatKind::V3)
    text.append(kAssistant);
  else if (kind == ChatKind::R1)
    text.append(kAssistant).append(kThink).append("\n");
  else if (afterUser)
    text.append(kAssistant).append(options.thinking ? kThink : kEndThink);
  return text;
}

Result<std::vector<int32_t>> encodeChat(const Tokenizer &tokenizer, std::span<const ChatMessage> messages,
                                        const ChatOptions &options) {
  MOEC_TRY(ChatKind kind, detectChatKind(tokenizer));
  if (!tokenizer.bosId() || !tokenizer.eosId())
    return Error{"the tokenizer names no BOS or no EOS token, which chat needs"};
  MOEC_TRY(std::string text, renderChat(kind, messages, options, tokenizer.tokenBytes(*tokenizer.bosId()),
                                        tokenizer.tokenBytes(*tokenizer.eosId())));
  return tokenizer.encode(text, {.addBos = false, .parseSpecial = true});
}

} // namespace moec
