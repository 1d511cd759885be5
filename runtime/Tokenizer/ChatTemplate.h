// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The chat formats of the DeepSeek models, rendered without a template
/// engine: messages of the roles system, user and assistant; no tools.
/// Sources: the `chat_template` of each model's tokenizer_config.json.

#ifndef MOEC_RUNTIME_TOKENIZER_CHATTEMPLATE_H
#define MOEC_RUNTIME_TOKENIZER_CHATTEMPLATE_H

#include "runtime/Support/Result.h"
#include "runtime/Tokenizer/Tokenizer.h"

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moec {

/// With `B` and `E` the BOS and EOS tokens, `s` all system messages and
/// `u`, `a` what user and assistant said:
enum class ChatKind {
  V2,  ///< B, then in order: `s\n\n`, `User: u\n\n`, `Assistant: aE`; prompt `Assistant:`
  V3,  ///< B s, then in order: `<｜User｜>u`, `<｜Assistant｜>aE`; prompt `<｜Assistant｜>`
  R1,  ///< as V3; `a` from behind its last `</think>` on; prompt `<｜Assistant｜><think>\n`
  V3_1 ///< as V3; `<｜Assistant｜></think>a` with `a` from behind its first `</think>` on;
       ///< prompt `<｜Assistant｜></think>`, or `<｜Assistant｜><think>` if thinking is wanted
};

/// "V2", "V3", "R1", "V3.1".
std::string_view toString(ChatKind kind);

struct ChatMessage {
  std::string role; ///< "system", "user" or "assistant"
  std::string content;
};

struct ChatOptions {
  /// End with what the assistant's answer begins with.
  bool addGenerationPrompt = true;
  /// Ask V3.1 to reason first; the other formats have no such choice.
  bool thinking = false;
};

/// Which format a model speaks. A chat template decides by what it contains:
///   1. `<｜Assistant｜><think>\n` (as written in jinja): R1;
///   2. `<｜Assistant｜>` and `</think>` and the variable `thinking`: V3.1;
///   3. `<｜User｜>` and `<｜Assistant｜>`: V3;
///   4. `User: ` and `Assistant:`: V2;
/// any other is refused. Without a template the tokens decide: `<｜User｜>` and
/// `<｜Assistant｜>` with `<think>` and `</think>` mean V3.1, whose form the
/// later models without a template share, and without these V3.
Result<ChatKind> detectChatKind(const Tokenizer &tokenizer);

/// The text of a conversation. `bos` and `eos` are the spellings of the
/// tokens. Refuses other roles by name. Control tokens that a message spells
/// out become control tokens, as with the published templates.
Result<std::string> renderChat(ChatKind kind, std::span<const ChatMessage> messages, const ChatOptions &options = {},
                               std::string_view bos = "<｜begin▁of▁sentence｜>",
                               std::string_view eos = "<｜end▁of▁sentence｜>");

/// Detects, renders with the tokenizer's own BOS and EOS, and encodes without a second BOS.
Result<std::vector<int32_t>> encodeChat(const Tokenizer &tokenizer, std::span<const ChatMessage> messages,
                                        const ChatOptions &options = {});

} // namespace moec

#endif // MOEC_RUNTIME_TOKENIZER_CHATTEMPLATE_H
