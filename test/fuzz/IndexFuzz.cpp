// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "frontends/HuggingFace/Checkpoint.h"
#include "runtime/Support/Json.h"
#include "test/fuzz/FuzzTarget.h"

#include <cstring>
#include <filesystem>
#include <fstream>

#include <unistd.h>

using namespace moec;
using namespace moec::fuzz;
namespace fs = std::filesystem;

namespace {

/// A checkpoint directory of this process: small shards, to which the input is the index.
class Directory {
public:
  Directory() {
    std::string pattern = fs::temp_directory_path() / "moec-fuzz-index-XXXXXX";
    require(mkdtemp(pattern.data()), "a temporary directory can be made");
    path = pattern;
    shard("a",
          R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
          R"("u":{"dtype":"BF16","shape":[],"data_offsets":[8,10]}})",
          10);
    shard("b",
          R"({"m.experts.gate_up_proj":{"dtype":"BF16","shape":[2,2,1],"data_offsets":[0,8]},)"
          R"("m.experts.down_proj":{"dtype":"BF16","shape":[2,1,1],"data_offsets":[8,12]}})",
          12);
    // It claims a tensor of `a`, and one that is a part of `b`.
    shard("c",
          R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
          R"("m.experts.1.down_proj.weight":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
          2);
    write("broken", "{}");
  }
  ~Directory() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }

  void write(const std::string &name, std::string_view content) const {
    std::ofstream(path + "/" + name, std::ios::binary | std::ios::trunc) << content;
  }

  std::string path;

private:
  void shard(const std::string &name, const std::string &header, size_t dataBytes) const {
    const uint64_t length = header.size();
    std::string content(8, '\0');
    std::memcpy(content.data(), &length, 8);
    write(name, content + header + std::string(dataBytes, '\x5a'));
  }
};

/// Every tensor that the index places is where it says, and all bytes can be read.
void checkCheckpoint(const hf::Checkpoint &checkpoint, std::string_view index) {
  require(!checkpoint.tensors().empty(), "a checkpoint has tensors");
  unsigned sum = 0;
  for (const auto &[name, stored] : checkpoint.tensors()) {
    Result<TensorView> view = checkpoint.tensor(name);
    require(view.ok(), "a listed tensor can be had");
    require(view->shape == stored.shape && view->dtype == stored.dtype, "a tensor is as listed");
    uint64_t bytes = byteSize(view->dtype);
    for (int64_t dim : view->shape)
      bytes *= dim;
    for (uint64_t i = 0; i < bytes; ++i)
      sum += static_cast<unsigned>(view->data[i]);
    require(sum > 0, "its bytes are those of the shard");
  }
  Result<Json> json = parseJson(index, "in");
  require(json.ok(), "an index is JSON");
  for (const auto &[name, file] : json->at("weight_map").items()) {
    auto found = checkpoint.tensors().find(name);
    if (found == checkpoint.tensors().end())
      require(name.starts_with("m.experts."), "only packed tensors go by other names");
    else
      require(found->second.file == checkpoint.directory() + "/" + file.get<std::string>(),
              "a tensor is in the shard that the index names");
  }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const Directory directory;
  std::string_view index(reinterpret_cast<const char *>(data), size);
  directory.write("model.safetensors.index.json", index);
  Result<hf::Checkpoint> checkpoint = hf::Checkpoint::open(directory.path);
  if (checkpoint) {
    checkCheckpoint(*checkpoint, index);
    return 0;
  }
  // The index or a shard, always in the directory.
  const std::string &message = checkpoint.message();
  const size_t end = message.find(": ");
  require(message.starts_with(directory.path + "/") && end != std::string::npos, "error names a file: " + message);
  requireSentence(message, message.substr(0, end));
  require(message.find('/', directory.path.size() + 1) > end,
          "no file outside the directory is looked for: " + message);
  return 0;
}
