// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Lets the Python tests drive the tokenizer. Reads JSON from stdin and writes JSON, an
/// array with a result for each element of the input:
///
///   tokenize encode MODEL [--bos] [--no-special]          strings to arrays of ids
///   tokenize decode MODEL [--keep-special]                arrays of ids to strings
///   tokenize stream MODEL [--keep-special]                the same, to the parts that come token by token
///   tokenize chat MODEL [--no-prompt] [--thinking]        arrays of {"role", "content"} to strings
///   tokenize encode-raw MODEL [--bos] [--no-special]      the whole input, any bytes, to one array of ids
///
/// Errors go to stderr, with exit code 1.

#include "runtime/Support/Json.h"
#include "runtime/Tokenizer/ChatTemplate.h"
#include "runtime/Tokenizer/Tokenizer.h"

#include <iostream>
#include <iterator>
#include <set>

using namespace moec;

static Result<Json> run(const std::string &verb, const std::string &model, const std::set<std::string> &flags,
                        const std::string &input) {
  MOEC_TRY(Tokenizer tokenizer, Tokenizer::load(model));
  Json results = Json::array();
  if (verb == "encode-raw") {
    results.push_back(tokenizer.encode(input, {flags.contains("--bos"), !flags.contains("--no-special")}));
    return results;
  }
  MOEC_TRY(Json items, parseJson(input, "stdin"));
  bool skip = !flags.contains("--keep-special");
  for (const Json &item : items) {
    if (verb == "encode") {
      EncodeOptions options{flags.contains("--bos"), !flags.contains("--no-special")};
      results.push_back(tokenizer.encode(item.get<std::string>(), options));
    } else if (verb == "decode") {
      results.push_back(tokenizer.decode(item.get<std::vector<int32_t>>(), skip));
    } else if (verb == "stream") {
      StreamDecoder decoder(tokenizer, skip);
      Json parts = Json::array();
      for (const Json &id : item)
        parts.push_back(decoder.push(id.get<int32_t>()));
      parts.push_back(decoder.flush());
      results.push_back(std::move(parts));
    } else if (verb == "chat") {
      std::vector<ChatMessage> messages;
      for (const Json &message : item)
        messages.push_back({message.at("role").get<std::string>(), message.at("content").get<std::string>()});
      MOEC_TRY(ChatKind kind, detectChatKind(tokenizer));
      MOEC_TRY(std::string text,
               renderChat(kind, messages, {!flags.contains("--no-prompt"), flags.contains("--thinking")}));
      results.push_back(text);
    } else {
      return Error{"unknown verb " + verb};
    }
  }
  return results;
}

int main(int argc, char **argv) {
  if (argc < 3) {
    std::cerr << "usage: tokenize encode|encode-raw|decode|stream|chat MODEL [flags]\n";
    return 2;
  }
  std::string input{std::istreambuf_iterator<char>(std::cin), {}};
  auto result = run(argv[1], argv[2], {argv + 3, argv + argc}, input);
  if (!result) {
    std::cerr << result.message() << "\n";
    return 1;
  }
  std::cout << result->dump() << "\n";
}
