// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "frontends/HuggingFace/Checkpoint.h"
#include "frontends/HuggingFace/GgufNames.h"
#include "runtime/Support/Json.h"
#include "runtime/Support/Text.h"

#include <algorithm>
#include <charconv>
#include <filesystem>

using namespace moec;
using namespace moec::hf;
namespace fs = std::filesystem;

/// Whether anything, be it a dangling link, has this name.
static bool present(const std::string &path) {
  std::error_code error;
  return fs::exists(fs::symlink_status(path, error));
}

/// A file name without any way out of its directory, and that can be shown as it is.
static bool isPlainFileName(const std::string &name) {
  return !name.empty() && name.size() <= 255 && name != "." && name != ".." &&
         std::ranges::none_of(name, [](unsigned char c) { return c == '/' || c == '\\' || c < 0x20 || c == 0x7f; });
}

constexpr const char *singleName = "/model.safetensors", *indexName = "/model.safetensors.index.json";

/// The names of all GGUF files, sorted.
static std::vector<std::string> ggufFiles(const std::string &directory) {
  std::vector<std::string> files;
  std::error_code error;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end; entry.increment(error))
    if (std::string name = entry->path().filename(); name.ends_with(".gguf") && isPlainFileName(name))
      files.push_back(std::move(name));
  std::ranges::sort(files);
  return files;
}

static uint64_t bytesOf(const TensorView &view) {
  uint64_t bytes = byteSize(view.dtype);
  for (int64_t dim : view.shape)
    bytes *= dim;
  return bytes;
}

uint64_t StoredTensor::bytes() const {
  uint64_t elements = 1;
  for (int64_t dim : shape)
    elements *= dim;
  return blocks ? elements / blocks->elements * blocks->bytes : elements * byteSize(dtype);
}

Result<Checkpoint> Checkpoint::open(const std::string &directory) {
  Checkpoint result;
  result.dir = directory;
  std::error_code error;
  if (!fs::is_directory(directory, error))
    return Error{directory + ": is not a directory" + (error ? " (" + error.message() + ")" : "")};
  std::string single = directory + singleName, index = directory + indexName;
  if (present(single)) {
    MOEC_CHECK(result.addShard(single));
  } else if (present(index)) {
    MOEC_CHECK(result.readIndex(index));
  } else {
    std::vector<std::string> files = ggufFiles(directory);
    if (files.empty())
      return Error{directory + ": holds neither model.safetensors nor model.safetensors.index.json nor a .gguf file"};
    MOEC_CHECK(result.readGguf(files));
    return result;
  }
  MOEC_CHECK(result.unpackExperts());
  return result;
}

bool Checkpoint::isIn(const std::string &directory) {
  return present(directory + singleName) || present(directory + indexName) || !ggufFiles(directory).empty();
}

Status Checkpoint::addShard(const std::string &path) {
  MOEC_TRY(SafetensorsFile opened, SafetensorsFile::open(path));
  shards.push_back(std::make_unique<SafetensorsFile>(std::move(opened)));
  const SafetensorsFile &file = *shards.back();
  for (const auto &[name, info] : file.tensors())
    MOEC_CHECK(
        add(name, {info.dtype, info.shape, file.path()}, {info.dtype, info.shape, file.data(info)}, file.mapping()));
  return success();
}

Status Checkpoint::add(const std::string &name, StoredTensor stored, TensorView view, const MappedFile &file) {
  auto [place, added] = places.try_emplace(name, Place{std::move(view), &file});
  if (!added)
    return Error{file.path() + ": tensor " + quote(name) +
                 (stored.packedIn.empty() ? "" : " in " + quote(stored.packedIn)) + " is also in " +
                 place->second.file->path()};
  table.emplace(name, std::move(stored));
  return success();
}

Status Checkpoint::readIndex(const std::string &path) {
  MOEC_TRY(Json json, readJsonFile(path));
  MOEC_TRY(JsonObject root, JsonObject::from(json, path));
  MOEC_TRY(JsonObject map, root.object("weight_map"));

  std::map<std::string, size_t> shardOf;
  for (const auto &[name, file] : map.json().items()) {
    if (!file.is_string() || !isPlainFileName(file.get_ref<const std::string &>()))
      return Error{path + ": the file of tensor " + quote(name) +
                   " is not the name of a file beside the index, such as model-00001-of-00002.safetensors"};
    const std::string &shard = file.get_ref<const std::string &>();
    if (!shardOf.count(shard)) {
      std::string shardPath = dir + "/" + shard;
      if (!present(shardPath))
        return Error{shardPath + ": shard is absent, but " + path + " places tensor " + quote(name) + " in it"};
      MOEC_CHECK(addShard(shardPath));
      shardOf.emplace(shard, shards.size() - 1);
    }
  }
  if (shardOf.empty())
    return Error{path + ": 'weight_map' names no tensors"};
  for (const auto &[name, file] : map.json().items()) {
    size_t shard = shardOf.at(file.get_ref<const std::string &>());
    auto place = places.find(name);
    if (place == places.end() || place->second.file != &shards[shard]->mapping())
      return Error{shards[shard]->path() + ": tensor " + quote(name) + " is absent, but " + path + " places it there" +
                   (place == places.end() ? "" : "; it is in " + place->second.file->path())};
  }
  return success();
}

namespace {

/// `<model>-<number>-of-<count>.gguf`
struct GgufPart {
  std::string model;
  int number = 0, count = 0;

  static std::optional<GgufPart> of(const std::string &file) {
    constexpr size_t tail = std::string_view("-00001-of-00002.gguf").size(), digits = 5;
    if (file.size() <= tail)
      return std::nullopt;
    GgufPart part{file.substr(0, file.size() - tail)};
    for (auto [place, number] : {std::pair(tail - 1, &part.number), {tail - 10, &part.count}}) {
      const char *begin = file.data() + file.size() - place;
      if (std::from_chars(begin, begin + digits, *number).ptr != begin + digits)
        return std::nullopt;
    }
    if (part.number < 1 || part.number > part.count || part.file(part.number) != file)
      return std::nullopt;
    return part;
  }

  std::string file(int which) const {
    auto padded = [](int value) {
      std::string text = std::to_string(value);
      return std::string(5 - std::min<size_t>(text.size(), 5), '0') + text;
    };
    return model + "-" + padded(which) + "-of-" + padded(count) + ".gguf";
  }
};

} // namespace

Status Checkpoint::readGguf(const std::vector<std::string> &files) {
  std::optional<GgufPart> first = GgufPart::of(files.front());
  for (const std::string &file : files) {
    std::optional<GgufPart> part = GgufPart::of(file);
    if (files.size() > 1 && (!first || !part || part->model != first->model || part->count != first->count))
      return Error{dir + ": holds " + files.front() + " and " + (&file == &files.front() ? files.back() : file) +
                   ", which are no parts of one model, such as model-00001-of-00002.gguf and its like"};
  }
  for (int number = 1; first && number <= first->count; ++number)
    if (std::string file = first->file(number); !std::ranges::binary_search(files, file))
      return Error{dir + "/" + file + ": part is absent, but " + files.front() + " is one of " +
                   std::to_string(first->count)};
  for (const std::string &file : files)
    MOEC_CHECK(addGguf(dir + "/" + file));
  return success();
}

Status Checkpoint::addGguf(const std::string &path) {
  MOEC_TRY(GgufFile opened, GgufFile::open(path));
  ggufs.push_back(std::make_unique<GgufFile>(std::move(opened)));
  const GgufFile &file = *ggufs.back();
  // Only the first part must say what it is.
  const auto &metadata = file.header().metadata;
  auto architecture = metadata.find("general.architecture");
  const auto *text = architecture == metadata.end() ? nullptr : std::get_if<std::string_view>(&architecture->second);
  if (text ? *text != "deepseek2" : architecture != metadata.end() || ggufs.size() == 1)
    return Error{path + ": 'general.architecture' is " + (text ? quote(*text) : "no text") +
                 ", but only the tensors of deepseek2 are read"};
  for (const auto &[name, info] : file.header().tensors) {
    if (name.ends_with(".attn_k_b.weight") || name.ends_with(".attn_v_b.weight"))
      return Error{path + ": tensor " + quote(name) + " is one half of 'attn_kv_b', and halves are not read; a file " +
                   "with 'attn_kv_b' is needed"};
    std::optional<std::string> ours = fromGgufName(name);
    if (!ours)
      return Error{path + ": unexpected tensor " + quote(name) + ", which deepseek2 models do not have"};
    MOEC_TRY(TensorView view, file.tensor(name));
    const GgufType &type = *ggufType(info.type);
    StoredTensor stored{DType::U8, info.shape, file.mapping().path(), name, &type};
    if (type.elements == 1)
      stored.dtype = type.valueType, stored.blocks = nullptr;
    const bool isFamily = ours->find("{e}") != std::string::npos;
    if (isFamily) {
      if (info.shape.size() != 3)
        return Error{path + ": tensor " + quote(name) + " is " + shapeToString(info.shape) +
                     ", expected [experts, rows, columns]"};
      MOEC_CHECK(countExperts(name, info.shape, path));
      stored.shape.erase(stored.shape.begin());
      view.shape[0] = info.shape[1];
    }
    if (!stored.blocks)
      view = {stored.dtype, stored.shape, view.data};
    MOEC_CHECK(isFamily ? addMembers(*ours, stored, view, file.mapping(), info.shape[0], stored.bytes())
                        : add(*ours, stored, view, file.mapping()));
  }
  return success();
}

Status Checkpoint::reconcile(ModelConfig &config) const {
  if (ggufs.empty())
    return success();
  struct Fact {
    const char *key, *configKey;
    int64_t expected;
  };
  const Fact facts[] = {{"deepseek2.block_count", "num_hidden_layers", config.layers},
                        {"deepseek2.embedding_length", "hidden_size", config.hidden},
                        {"deepseek2.expert_count", "n_routed_experts", config.experts}};
  for (const auto &file : ggufs)
    for (const auto &[key, configKey, expected] : facts) {
      auto entry = file->header().metadata.find(key);
      if (entry == file->header().metadata.end())
        continue;
      const auto *found = std::get_if<uint64_t>(&entry->second);
      if (!found || *found != static_cast<uint64_t>(expected))
        return Error{file->mapping().path() + ": the metadata " + quote(key) + " is " +
                     (found ? std::to_string(*found) : "no unsigned integer") + ", but " + config.path + " has " +
                     quote(configKey) + " " + std::to_string(expected)};
    }
  config.quantization.reset();
  return success();
}

Status Checkpoint::countExperts(const std::string &name, const std::vector<int64_t> &shape, std::string_view file) {
  // Far more than any model has; what a header may claim is worse. Each has bytes of its own, so the sum cannot
  // overflow.
  constexpr int64_t maxExperts = 1 << 20;
  if ((packedExperts += shape[0]) <= maxExperts)
    return success();
  return Error{std::string(file) + ": tensor " + quote(name) + " is " + shapeToString(shape) + ", but more than " +
               std::to_string(maxExperts) + " packed experts are not supported"};
}

Status Checkpoint::unpackExperts() {
  constexpr std::string_view gateUp = ".experts.gate_up_proj", down = ".experts.down_proj";
  std::vector<std::string> packed;
  for (const auto &[name, stored] : table) {
    const std::vector<int64_t> &shape = stored.shape;
    bool isGateUp = name.ends_with(gateUp);
    if ((isGateUp || name.ends_with(down)) && shape.size() == 3 && stored.bytes() > 0 &&
        (!isGateUp || shape[1] % 2 == 0) &&
        (stored.dtype == DType::F32 || stored.dtype == DType::F16 || stored.dtype == DType::BF16)) {
      packed.push_back(name);
      MOEC_CHECK(countExperts(name, shape, stored.file));
    }
  }
  for (const std::string &name : packed) {
    StoredTensor stored = table.at(name);
    const Place whole = places.at(name);
    // The name of the whole lives as long as its shard.
    for (const auto &shard : shards)
      if (&shard->mapping() == whole.file)
        stored.packedIn = shard->tensors().find(name)->first;
    const bool isDown = name.ends_with(down);
    const std::string prefix = name.substr(0, name.rfind('.') + 1);
    const int64_t experts = stored.shape[0];
    stored.shape = {isDown ? stored.shape[1] : stored.shape[1] / 2, stored.shape[2]};
    const uint64_t matrix = stored.bytes(), stride = isDown ? matrix : 2 * matrix;
    TensorView view{stored.dtype, stored.shape, whole.view.data};
    if (isDown) {
      MOEC_CHECK(addMembers(prefix + "{e}.down_proj.weight", stored, view, *whole.file, experts, stride));
    } else {
      MOEC_CHECK(addMembers(prefix + "{e}.gate_proj.weight", stored, view, *whole.file, experts, stride));
      view.data += matrix;
      MOEC_CHECK(addMembers(prefix + "{e}.up_proj.weight", stored, view, *whole.file, experts, stride));
    }
    table.erase(name);
    places.erase(name);
  }
  return success();
}

Status Checkpoint::addMembers(const std::string &family, const StoredTensor &stored, TensorView view,
                              const MappedFile &file, int64_t count, uint64_t stride) {
  constexpr std::string_view marker = "{e}";
  for (int64_t e = 0; e < count; ++e, view.data += stride) {
    std::string member = family;
    MOEC_CHECK(add(member.replace(member.rfind(marker), marker.size(), std::to_string(e)), stored, view, file));
  }
  return success();
}

Result<TensorView> Checkpoint::tensor(const std::string &name) const {
  auto place = places.find(name);
  if (place == places.end())
    return Error{dir + ": the checkpoint has no tensor " + quote(name)};
  return place->second.view;
}

void Checkpoint::release(const TensorView &view) const {
  const uint64_t bytes = bytesOf(view);
  std::less_equal<const std::byte *> notAfter;
  auto releaseIn = [&](const MappedFile &file) {
    if (notAfter(file.data(), view.data) && notAfter(view.data + bytes, file.data() + file.size()))
      file.release(view.data - file.data(), bytes);
  };
  for (const auto &shard : shards)
    releaseIn(shard->mapping());
  for (const auto &gguf : ggufs)
    releaseIn(gguf->mapping());
}
