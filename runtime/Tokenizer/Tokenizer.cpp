// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Tokenizer/Tokenizer.h"

#include "runtime/Support/File.h"
#include "runtime/Support/Json.h"
#include "runtime/Support/Text.h"
#include "runtime/Tokenizer/AddedTokens.h"
#include "runtime/Tokenizer/Bpe.h"
#include "runtime/Tokenizer/PreTokenizer.h"
#include "runtime/Tokenizer/Utf8.h"

#include <deque>
#include <filesystem>
#include <unordered_map>

namespace moec {

struct Tokenizer::State {
  Bpe bpe;
  PreTokenizer preTokenizer;
  AddedTokenSet plainTokens, normalizedTokens;
  std::unordered_map<std::string, int32_t> addedIds;
  std::vector<std::string> bytes; ///< of each id
  std::vector<bool> special;      ///< of each id
  std::vector<int32_t> prefix, suffix;
  std::optional<int32_t> bos, eos;
  std::string chatTemplate;
  GenerationDefaults generation;

  std::optional<int32_t> find(std::string_view token) const {
    if (auto it = addedIds.find(std::string(token)); it != addedIds.end())
      return it->second;
    return bpe.find(token);
  }
};

namespace {

constexpr size_t kMaxTokenBytes = 1 << 16;

Result<BpeSpec> parseModel(const JsonObject &model) {
  const std::string &what = model.what();
  if (model.has("type")) {
    MOEC_TRY(std::string type, model.string("type"));
    if (type != "BPE")
      return Error{what + ": model type " + quote(type) + " is not supported; BPE is"};
  }
  MOEC_TRY(double dropout, model.numberOr("dropout", 0));
  if (dropout != 0)
    return Error{what + ": model has a dropout of " + std::to_string(dropout) + "; only 0 is supported"};
  for (const char *key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    MOEC_TRY(std::string affix, model.stringOr(key, ""));
    if (!affix.empty())
      return Error{what + ": model has the " + key + " " + quote(affix) + ", which is not supported"};
  }

  BpeSpec spec;
  MOEC_TRY(spec.ignoreMerges, model.booleanOr("ignore_merges", false));
  MOEC_TRY(JsonObject vocab, model.object("vocab"));
  spec.vocab.reserve(vocab.json().size());
  for (const auto &[token, id] : vocab.json().get_ref<const Json::object_t &>()) {
    if (!id.is_number_unsigned())
      return Error{what + ": vocab gives the token " + quote(token) + " the id " + quote(id.dump(), 40) +
                   ", expected an integer from 0"};
    spec.vocab.emplace_back(token, id.get<uint64_t>());
  }
  MOEC_TRY(const Json *merges, model.array("merges"));
  spec.merges.reserve(merges->size());
  for (const Json &merge : *merges) {
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      spec.merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
      continue;
    }
    if (merge.is_string()) {
      const std::string &text = merge.get_ref<const std::string &>();
      // Files that were once a merges.txt may keep its first line.
      if (text.starts_with("#version"))
        continue;
      size_t space = text.find(' ');
      if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
        spec.merges.emplace_back(text.substr(0, space), text.substr(space + 1));
        continue;
      }
    }
    return Error{what + ": merge " + std::to_string(spec.merges.size()) + " is " + quote(merge.dump(), 60) +
                 ", expected two tokens"};
  }
  return spec;
}

Result<AddedToken> parseAddedToken(const Json &json, const std::string &what) {
  MOEC_TRY(JsonObject object, JsonObject::from(json, what));
  AddedToken token;
  MOEC_TRY(int64_t id, object.integer("id", 0, Bpe::kMaxId));
  token.id = int32_t(id);
  MOEC_TRY(token.content, object.string("content"));
  MOEC_TRY(token.special, object.booleanOr("special", false));
  MOEC_TRY(token.normalized, object.booleanOr("normalized", !token.special));
  MOEC_TRY(token.singleWord, object.booleanOr("single_word", false));
  MOEC_TRY(token.leftStrip, object.booleanOr("lstrip", false));
  MOEC_TRY(token.rightStrip, object.booleanOr("rstrip", false));
  if (token.content.empty() || token.content.size() > kMaxTokenBytes)
    return Error{what + ": the added token with the id " + std::to_string(id) + " has " +
                 std::to_string(token.content.size()) + " bytes, expected 1 to " + std::to_string(kMaxTokenBytes)};
  return token;
}

/// Fills the tables by id and by content from the vocabulary and `added`.
Status addTokens(Tokenizer::State &state, const JsonObject &file) {
  const std::string &what = file.what();
  size_t count = state.bpe.vocab().size();
  std::vector<bool> known; ///< by id
  auto grow = [&](int32_t id) {
    if (size_t(id) < known.size())
      return;
    known.resize(id + 1);
    state.bytes.resize(id + 1);
    state.special.resize(id + 1);
  };
  for (const auto &[token, id] : state.bpe.vocab()) {
    grow(id);
    state.bytes[id] = bytesOfToken(token);
    known[id] = true;
  }

  const Json none = Json::array();
  const Json *list = &none;
  if (file.has("added_tokens")) {
    MOEC_TRY(list, file.array("added_tokens"));
  }
  for (const Json &json : *list) {
    MOEC_TRY(AddedToken token, parseAddedToken(json, what));
    auto describe = [&] { return what + ": the added token " + quote(token.content); };
    std::optional<int32_t> inVocab = state.bpe.find(token.content);
    if (inVocab && *inVocab != token.id)
      return Error{describe() + " has the id " + std::to_string(token.id) + ", but the vocab gives it " +
                   std::to_string(*inVocab)};
    if (!state.addedIds.emplace(token.content, token.id).second)
      return Error{describe() + " is there twice"};
    grow(token.id);
    if (!inVocab) {
      if (known[token.id])
        return Error{describe() + " has the id " + std::to_string(token.id) + ", which another token has too"};
      known[token.id] = true;
      ++count;
    }
    state.bytes[token.id] = bytesOfToken(token.content);
    state.special[token.id] = token.special;
    (token.normalized ? state.normalizedTokens : state.plainTokens).add(token);
  }
  if (count != state.bytes.size()) {
    size_t hole = 0;
    while (known[hole])
      ++hole;
    return Error{what + ": no token has the id " + std::to_string(hole) + ", but ids go up to " +
                 std::to_string(state.bytes.size() - 1)};
  }
  return success();
}

/// Refuses anything but null and Sequences without members.
Status checkNormalizer(const Json &json, const std::string &what, int depth = 0) {
  if (json.is_null())
    return success();
  MOEC_TRY(JsonObject object, JsonObject::from(json, what));
  MOEC_TRY(std::string type, object.string("type"));
  if (type != "Sequence" || depth > 8)
    return Error{what + ": type " + quote(type) + " is not supported; only tokenizers without normalizer are"};
  MOEC_TRY(const Json *list, object.array("normalizers"));
  for (const Json &member : *list)
    MOEC_CHECK(checkNormalizer(member, what, depth + 1));
  return success();
}

/// Accepts ByteLevel, alone or as the only step of Sequences besides Fuse, which changes nothing then.
Result<int> countByteLevel(const Json &json, const std::string &what, int depth = 0) {
  MOEC_TRY(JsonObject object, JsonObject::from(json, what));
  MOEC_TRY(std::string type, object.string("type"));
  if (type == "ByteLevel")
    return 1;
  if (type == "Fuse" && depth > 0)
    return 0;
  if (type != "Sequence" || depth > 8)
    return Error{what + ": type " + quote(type) + " is not supported; ByteLevel is"};
  MOEC_TRY(const Json *list, object.array("decoders"));
  int count = 0;
  for (const Json &member : *list) {
    MOEC_TRY(int inside, countByteLevel(member, what, depth + 1));
    count += inside;
  }
  return count;
}

/// Reads which ids a post-processor puts before and after a text.
Status parsePostProcessor(const Json &json, const std::string &what, Tokenizer::State &state, int depth = 0) {
  if (json.is_null())
    return success();
  MOEC_TRY(JsonObject object, JsonObject::from(json, what));
  MOEC_TRY(std::string type, object.string("type"));
  if (type == "ByteLevel")
    return success();
  if (type == "Sequence" && depth <= 8) {
    MOEC_TRY(const Json *list, object.array("processors"));
    for (const Json &member : *list)
      MOEC_CHECK(parsePostProcessor(member, what, state, depth + 1));
    return success();
  }
  if (type != "TemplateProcessing")
    return Error{what + ": type " + quote(type) + " is not supported; ByteLevel, TemplateProcessing and Sequence are"};
  MOEC_TRY(const Json *pieces, object.array("single"));
  MOEC_TRY(JsonObject specials, object.object("special_tokens"));
  std::vector<int32_t> before, after;
  bool text = false;
  for (const Json &json : *pieces) {
    MOEC_TRY(JsonObject piece, JsonObject::from(json, what));
    if (piece.has("Sequence") && !text) {
      text = true;
      continue;
    }
    if (!piece.has("SpecialToken"))
      return Error{what + ": 'single' has a part that is neither a SpecialToken nor the one Sequence"};
    MOEC_TRY(JsonObject special, piece.object("SpecialToken"));
    MOEC_TRY(std::string name, special.string("id"));
    MOEC_TRY(JsonObject entry, specials.object(name));
    MOEC_TRY(const Json *ids, entry.array("ids"));
    for (const Json &id : *ids) {
      if (!id.is_number_unsigned() || id.get<uint64_t>() >= state.bytes.size())
        return Error{what + ": the special token " + quote(name) + " has the id " + quote(id.dump(), 40) +
                     ", but there are " + std::to_string(state.bytes.size()) + " tokens"};
      (text ? after : before).push_back(id.get<int32_t>());
    }
  }
  if (!text)
    return Error{what + ": 'single' has no Sequence"};
  // A later processor works on what an earlier one made.
  state.prefix.insert(state.prefix.begin(), before.begin(), before.end());
  state.suffix.insert(state.suffix.end(), after.begin(), after.end());
  return success();
}

Result<std::shared_ptr<Tokenizer::State>> parseTokenizer(const Json &json, const std::string &path) {
  auto state = std::make_shared<Tokenizer::State>();
  MOEC_TRY(JsonObject file, JsonObject::from(json, path));
  MOEC_TRY(std::string version, file.stringOr("version", "1.0"));
  if (version != "1.0")
    return Error{path + ": version is " + quote(version) + ", expected '1.0'"};
  MOEC_TRY(JsonObject model, file.object("model"));
  MOEC_TRY(BpeSpec spec, parseModel(model));
  MOEC_TRY(state->bpe, Bpe::create(spec, path));
  // With a token for each byte nothing is unknown, so neither setting has an effect.
  MOEC_TRY(bool byteFallback, model.booleanOr("byte_fallback", false));
  if ((byteFallback || model.has("unk_token")) && !state->bpe.coversAllBytes())
    return Error{path +
                 ": model has an unk_token or byte_fallback and no token for some bytes, which is not supported"};
  MOEC_CHECK(addTokens(*state, file));

  const Json none;
  auto member = [&](const char *key) -> const Json & {
    auto it = json.find(key);
    return it == json.end() ? none : *it;
  };
  MOEC_CHECK(checkNormalizer(member("normalizer"), path + ": normalizer"));
  MOEC_TRY(state->preTokenizer, PreTokenizer::parse(member("pre_tokenizer"), path));
  MOEC_CHECK(parsePostProcessor(member("post_processor"), path + ": post_processor", *state));
  MOEC_TRY(int decoders, countByteLevel(member("decoder"), path + ": decoder"));
  if (decoders != 1)
    return Error{path + ": decoder has " + std::to_string(decoders) + " ByteLevel steps, expected 1"};
  return state;
}

/// "bos_token" and its like: null, a string, or an object with "content".
Result<std::optional<int32_t>> namedToken(const JsonObject &config, const char *key, const Tokenizer::State &state) {
  if (!config.has(key))
    return std::optional<int32_t>();
  std::string content;
  if (config.json()[key].is_object()) {
    MOEC_TRY(JsonObject token, config.object(key));
    MOEC_TRY(content, token.string("content"));
  } else {
    MOEC_TRY(content, config.string(key));
  }
  std::optional<int32_t> id = state.find(content);
  if (!id)
    return Error{config.what() + ": " + key + " is " + quote(content) + ", which tokenizer.json does not have"};
  return id;
}

Status applyConfig(const JsonObject &config, Tokenizer::State &state) {
  MOEC_TRY(state.bos, namedToken(config, "bos_token", state));
  MOEC_TRY(state.eos, namedToken(config, "eos_token", state));
  MOEC_TRY(bool addBos, config.booleanOr("add_bos_token", false));
  MOEC_TRY(bool addEos, config.booleanOr("add_eos_token", false));
  MOEC_TRY(std::string tokenizerClass, config.stringOr("tokenizer_class", ""));
  for (auto [wanted, name, id] : {std::tuple(addBos, "bos", state.bos), std::tuple(addEos, "eos", state.eos)})
    if (wanted && !id)
      return Error{config.what() + ": add_" + name + "_token is true, but there is no " + name + "_token"};
  bool llama = tokenizerClass == "LlamaTokenizerFast" || tokenizerClass == "LlamaTokenizer";
  auto decide = [&](const char *key, bool wanted, std::optional<int32_t> id, std::vector<int32_t> &ids) {
    if (wanted && (llama || ids.empty()))
      ids = {*id};
    else if (llama && config.has(key))
      ids.clear();
  };
  decide("add_bos_token", addBos, state.bos, state.prefix);
  decide("add_eos_token", addEos, state.eos, state.suffix);

  if (config.has("chat_template")) {
    const Json &value = config.json()["chat_template"];
    if (!value.is_array()) {
      MOEC_TRY(state.chatTemplate, config.string("chat_template"));
      return success();
    }
    for (const Json &entry : value) {
      MOEC_TRY(JsonObject named, JsonObject::from(entry, config.what() + ": chat_template"));
      MOEC_TRY(std::string name, named.string("name"));
      if (name == "default") {
        MOEC_TRY(state.chatTemplate, named.string("template"));
      }
    }
  }
  return success();
}

Status applyGenerationConfig(const JsonObject &config, GenerationDefaults &defaults) {
  if (config.has("eos_token_id")) {
    const Json &eos = config.json()["eos_token_id"];
    for (const Json &id : eos.is_array() ? eos : Json::array({eos})) {
      if (!id.is_number_unsigned() || id.get<uint64_t>() > Bpe::kMaxId)
        return Error{config.what() + ": 'eos_token_id' is " + quote(eos.dump(), 60) + ", expected token ids"};
      defaults.eosIds.push_back(id.get<int64_t>());
    }
  }
  if (config.has("do_sample")) {
    MOEC_TRY(defaults.doSample, config.boolean("do_sample"));
  }
  if (config.has("temperature")) {
    MOEC_TRY(defaults.temperature, config.number("temperature"));
  }
  if (config.has("top_p")) {
    MOEC_TRY(defaults.topP, config.number("top_p"));
  }
  if (config.has("top_k")) {
    MOEC_TRY(defaults.topK, config.integer("top_k", 0, Bpe::kMaxId));
  }
  return success();
}

/// Turns the tokens of one text without added tokens into ids.
class WordEncoder {
public:
  WordEncoder(const Tokenizer::State &state, size_t textSize, std::vector<int32_t> &out)
      : state(state), out(out), matcher(textSize) {}

  void encode(std::string_view text) {
    words.clear();
    state.preTokenizer.split(text, matcher, words, made);
    for (std::string_view word : words) {
      auto [it, isNew] = cache.try_emplace(word);
      if (isNew) {
        it->second.first = out.size();
        state.bpe.encode(word, scratch, out);
        it->second.second = out.size() - it->second.first;
        continue;
      }
      // The ids of an earlier, equal word are still in `out`.
      auto [begin, count] = it->second;
      for (size_t i = 0; i < count; ++i)
        out.push_back(out[begin + i]);
    }
  }

private:
  const Tokenizer::State &state;
  std::vector<int32_t> &out;
  RegexMatcher matcher;
  Bpe::Scratch scratch;
  std::vector<std::string_view> words;
  std::deque<std::string> made; ///< kept, since `cache` has views of it
  std::unordered_map<std::string_view, std::pair<size_t, size_t>> cache;
};

} // namespace

Result<Tokenizer> Tokenizer::load(const std::string &path) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  bool directory = fs::is_directory(path, ignored);
  std::string file = directory ? (fs::path(path) / "tokenizer.json").string() : path;
  MOEC_TRY(Json json, readJsonFile(file));
  MOEC_TRY(std::shared_ptr<State> state, parseTokenizer(json, file));
  if (directory) {
    auto beside = [&](const char *name) -> std::optional<std::string> {
      fs::path candidate = fs::path(path) / name;
      if (fs::symlink_status(candidate, ignored).type() == fs::file_type::not_found)
        return std::nullopt;
      return candidate.string();
    };
    if (auto config = beside("tokenizer_config.json")) {
      MOEC_TRY(Json tree, readJsonFile(*config));
      MOEC_TRY(JsonObject object, JsonObject::from(tree, *config));
      MOEC_CHECK(applyConfig(object, *state));
    }
    if (auto jinja = beside("chat_template.jinja")) {
      MOEC_TRY(state->chatTemplate, readFile(*jinja, 1 << 20));
    }
    if (auto generation = beside("generation_config.json")) {
      MOEC_TRY(Json tree, readJsonFile(*generation));
      MOEC_TRY(JsonObject object, JsonObject::from(tree, *generation));
      MOEC_CHECK(applyGenerationConfig(object, state->generation));
    }
  }
  Tokenizer tokenizer;
  tokenizer.state = std::move(state);
  return tokenizer;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, const EncodeOptions &options) const {
  std::string repaired;
  if (!isWellFormedUtf8(text)) {
    appendWellFormed(repaired, text, /*last=*/true);
    text = repaired;
  }
  std::vector<int32_t> out;
  if (options.addBos)
    out = state->prefix;
  WordEncoder words(*state, text.size(), out);
  std::vector<TextPart> outer, inner;
  state->plainTokens.split(text, options.parseSpecial, outer);
  for (const TextPart &part : outer) {
    if (part.id >= 0) {
      out.push_back(part.id);
      continue;
    }
    inner.clear();
    state->normalizedTokens.split(part.text, options.parseSpecial, inner);
    for (const TextPart &piece : inner) {
      if (piece.id >= 0)
        out.push_back(piece.id);
      else
        words.encode(piece.text);
    }
  }
  if (options.addBos)
    out.insert(out.end(), state->suffix.begin(), state->suffix.end());
  return out;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skipSpecial) const {
  std::string bytes, text;
  for (int32_t id : ids)
    if (!(skipSpecial && isSpecial(id)))
      bytes += tokenBytes(id);
  appendWellFormed(text, bytes, /*last=*/true);
  return text;
}

int64_t Tokenizer::vocabSize() const { return int64_t(state->bytes.size()); }

std::optional<int32_t> Tokenizer::tokenId(std::string_view token) const { return state->find(token); }

std::string_view Tokenizer::tokenBytes(int32_t id) const {
  return id >= 0 && size_t(id) < state->bytes.size() ? std::string_view(state->bytes[id]) : std::string_view();
}

bool Tokenizer::isSpecial(int32_t id) const {
  return id >= 0 && size_t(id) < state->special.size() && state->special[id];
}

std::optional<int32_t> Tokenizer::bosId() const { return state->bos; }
std::optional<int32_t> Tokenizer::eosId() const { return state->eos; }
bool Tokenizer::addsBos() const { return !state->prefix.empty(); }
const std::string &Tokenizer::chatTemplate() const { return state->chatTemplate; }
const GenerationDefaults &Tokenizer::generationDefaults() const { return state->generation; }

std::string StreamDecoder::push(int32_t id) {
  std::string text;
  if (skipSpecial && tokenizer.isSpecial(id))
    return text;
  pending += tokenizer.tokenBytes(id);
  pending.erase(0, appendWellFormed(text, pending, /*last=*/false));
  return text;
}

std::string StreamDecoder::flush() {
  std::string text;
  appendWellFormed(text, pending, /*last=*/true);
  pending.clear();
  return text;
}

} // namespace moec
