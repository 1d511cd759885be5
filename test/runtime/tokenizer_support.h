// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Small tokenizers for the tests, as the trees of their tokenizer.json files.

#ifndef MOEC_TEST_RUNTIME_TOKENIZER_SUPPORT_H
#define MOEC_TEST_RUNTIME_TOKENIZER_SUPPORT_H

#include "runtime/Support/Json.h"
#include "runtime/Tokenizer/Bpe.h"
#include "runtime/Tokenizer/Tokenizer.h"
#include "runtime/Tokenizer/Utf8.h"
#include "test/runtime/TemporaryDirectory.h"

#include <fstream>
#include <stdexcept>

namespace moec {

using test::TemporaryDirectory;

inline void write(const std::string &path, const std::string &text) { std::ofstream(path) << text; }

/// The id that each byte has in `byteTokenizer`.
inline int32_t byteId(char byte) { return uint8_t(byte); }

/// A tokenizer whose words are what ByteLevel's own pattern splits: tokens 0
/// to 255 are the bytes, 256 and up what `merges` make, in order.
inline Json byteTokenizer(const std::vector<std::pair<std::string, std::string>> &merges = {}) {
  Json vocab = Json::object(), list = Json::array();
  for (char32_t character : byteAlphabet()) {
    std::string token;
    appendUtf8(token, character);
    vocab[token] = vocab.size();
  }
  for (const auto &[left, right] : merges) {
    list.push_back(left + " " + right);
    vocab[left + right] = vocab.size();
  }
  Json byteLevel = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  return {{"version", "1.0"},
          {"added_tokens", Json::array()},
          {"normalizer", nullptr},
          {"pre_tokenizer", byteLevel},
          {"post_processor", nullptr},
          {"decoder", byteLevel},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", list}}}};
}

inline Json addedToken(int32_t id, const std::string &content, bool special = false) {
  return {{"id", id},        {"content", content}, {"single_word", false},  {"lstrip", false},
          {"rstrip", false}, {"special", special}, {"normalized", !special}};
}

inline Result<Tokenizer> loadTokenizer(const Json &tree) {
  TemporaryDirectory directory;
  write(directory / "tokenizer.json", tree.dump());
  return Tokenizer::load(directory.path());
}

/// For trees that are known to be good.
inline Tokenizer makeTokenizer(const Json &tree) {
  Result<Tokenizer> tokenizer = loadTokenizer(tree);
  if (!tokenizer.ok())
    throw std::runtime_error(tokenizer.message());
  return *tokenizer;
}

} // namespace moec

#endif // MOEC_TEST_RUNTIME_TOKENIZER_SUPPORT_H
