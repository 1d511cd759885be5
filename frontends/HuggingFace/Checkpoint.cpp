// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "frontends/HuggingFace/Checkpoint.h"
#include "runtime/Support/Json.h"
#include "runtime/Support/Text.h"

#include <algorithm>
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

Result<Checkpoint> Checkpoint::open(const std::string &directory) {
  Checkpoint result;
  result.dir = directory;
  std::error_code error;
  if (!fs::is_directory(directory, error))
    return Error{directory + ": is not a directory" + (error ? " (" + error.message() + ")" : "")};
  std::string single = directory + "/model.safetensors", index = single + ".index.json";
  if (present(single))
    MOEC_CHECK(result.addShard(single));
  else if (present(index))
    MOEC_CHECK(result.readIndex(index));
  else
    return Error{directory + ": holds neither model.safetensors nor model.safetensors.index.json"};
  MOEC_CHECK(result.unpackExperts());
  return result;
}

Status Checkpoint::addShard(const std::string &path) {
  MOEC_TRY(SafetensorsFile opened, SafetensorsFile::open(path));
  shards.push_back(std::make_unique<SafetensorsFile>(std::move(opened)));
  const SafetensorsFile &file = *shards.back();
  for (const auto &[name, info] : file.tensors()) {
    auto [place, added] = places.try_emplace(name, Place{shards.size() - 1, &info});
    if (!added)
      return Error{path + ": tensor " + quote(name) + " is also in " + shards[place->second.shard]->path()};
    table.emplace(name, StoredTensor{info.dtype, info.shape, file.path()});
  }
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
    if (place == places.end() || place->second.shard != shard)
      return Error{shards[shard]->path() + ": tensor " + quote(name) + " is absent, but " + path + " places it there" +
                   (place == places.end() ? "" : "; it is in " + shards[place->second.shard]->path())};
  }
  return success();
}

Status Checkpoint::unpackExperts() {
  constexpr std::string_view gateUp = ".experts.gate_up_proj", down = ".experts.down_proj";
  // Far more than any model has; what a header may claim is worse.
  constexpr int64_t maxExperts = 1 << 20;
  int64_t total = 0;
  std::vector<std::string> packed;
  for (const auto &[name, stored] : table) {
    const std::vector<int64_t> &shape = stored.shape;
    bool isGateUp = name.ends_with(gateUp);
    if ((isGateUp || name.ends_with(down)) && shape.size() == 3 && places.find(name)->second.info->bytes > 0 &&
        (!isGateUp || shape[1] % 2 == 0) &&
        (stored.dtype == DType::F32 || stored.dtype == DType::F16 || stored.dtype == DType::BF16)) {
      packed.push_back(name);
      // Each has bytes of its own, so the sum cannot overflow.
      if ((total += shape[0]) > maxExperts)
        return Error{std::string(stored.file) + ": tensor " + quote(name) + " is " + shapeToString(shape) +
                     ", but more than " + std::to_string(maxExperts) + " packed experts are not supported"};
    }
  }
  for (const std::string &name : packed) {
    const std::vector<int64_t> shape = table.at(name).shape;
    const int64_t experts = shape[0], rows = shape[1], cols = shape[2];
    // Its bytes are in the file, so they can be counted.
    const uint64_t matrix = static_cast<uint64_t>(rows) * cols * byteSize(table.at(name).dtype);
    if (name.ends_with(down)) {
      MOEC_CHECK(addMembers(name, "down_proj", 0, matrix, experts, {rows, cols}));
    } else {
      MOEC_CHECK(addMembers(name, "gate_proj", 0, matrix, experts, {rows / 2, cols}));
      MOEC_CHECK(addMembers(name, "up_proj", matrix / 2, matrix, experts, {rows / 2, cols}));
    }
    table.erase(name);
    places.erase(name);
  }
  return success();
}

Status Checkpoint::addMembers(const std::string &packed, std::string_view name, uint64_t offset, uint64_t stride,
                              int64_t count, std::vector<int64_t> shape) {
  const Place whole = places.find(packed)->second;
  const std::string &path = shards[whole.shard]->path();
  const std::string prefix = packed.substr(0, packed.rfind('.') + 1);
  for (int64_t e = 0; e < count; ++e) {
    std::string member = prefix + std::to_string(e) + "." + std::string(name) + ".weight";
    auto [place, added] = places.try_emplace(member, Place{whole.shard, whole.info, offset + e * stride, shape});
    if (!added)
      return Error{path + ": tensor " + quote(member) + ", a part of " + quote(packed) + ", is also in " +
                   shards[place->second.shard]->path()};
    // The name of the whole lives as long as its shard.
    std::string_view wholeName = shards[whole.shard]->tensors().find(packed)->first;
    table.emplace(member, StoredTensor{whole.info->dtype, shape, path, wholeName});
  }
  return success();
}

Result<TensorView> Checkpoint::tensor(const std::string &name) const {
  auto place = places.find(name);
  if (place == places.end())
    return Error{dir + ": the checkpoint has no tensor " + quote(name)};
  const auto &[shard, info, offset, shape] = place->second;
  return TensorView{info->dtype, shape.empty() ? info->shape : shape, shards[shard]->data(*info) + offset};
}

void Checkpoint::release(const TensorView &view) const {
  uint64_t bytes = byteSize(view.dtype);
  for (int64_t dim : view.shape)
    bytes *= dim;
  std::less_equal<const std::byte *> notAfter;
  for (const std::unique_ptr<SafetensorsFile> &shard : shards) {
    const MappedFile &file = shard->mapping();
    if (notAfter(file.data(), view.data) && notAfter(view.data + bytes, file.data() + file.size())) {
      file.release(view.data - file.data(), bytes);
      return;
    }
  }
}
