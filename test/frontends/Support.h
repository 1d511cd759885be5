// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// What the importer's tests share: published configs, edits of them, scratch directories.

#ifndef MOEC_TEST_FRONTENDS_SUPPORT_H
#define MOEC_TEST_FRONTENDS_SUPPORT_H

#include "frontends/HuggingFace/Config.h"
#include "frontends/HuggingFace/Inventory.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace moec::hf {

/// The published config.json called `name` ("deepseek-v3").
inline Json publishedJson(const std::string &name) {
  Result<Json> json = readJsonFile(MOEC_TEST_DIR "/frontends/configs/" + name + ".json");
  EXPECT_TRUE(json.ok()) << (json.ok() ? "" : json.message());
  return json.ok() ? *json : Json();
}

inline ModelConfig publishedConfig(const std::string &name) {
  Result<ModelConfig> config = ModelConfig::parse(publishedJson(name), "config.json");
  EXPECT_TRUE(config.ok()) << (config.ok() ? "" : config.message());
  return config.ok() ? *config : ModelConfig();
}

/// `json` with the members of `patch` set; a value of "<absent>" removes the key.
inline Json patched(Json json, const Json &patch) {
  for (const auto &[key, value] : patch.items())
    if (value == "<absent>")
      json.erase(key);
    else
      json[key] = value;
  return json;
}

/// An empty directory that goes away with this.
class ScratchDir {
public:
  ScratchDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "moec-test-XXXXXX").string();
    name = ::mkdtemp(pattern.data());
  }
  ScratchDir(const ScratchDir &) = delete;
  ~ScratchDir() {
    std::error_code ignored;
    std::filesystem::remove_all(name, ignored);
  }
  const std::string &path() const { return name; }
  std::string operator/(const std::string &file) const { return name + "/" + file; }
  void write(const std::string &file, const std::string &content) const {
    std::ofstream(*this / file, std::ios::binary) << content;
  }

private:
  std::string name;
};

inline std::string readText(const std::string &path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

} // namespace moec::hf

#endif // MOEC_TEST_FRONTENDS_SUPPORT_H
