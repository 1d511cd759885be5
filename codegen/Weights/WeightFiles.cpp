// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Weights/WeightFiles.h"

#include "runtime/Hash.h"
#include "runtime/Support/Json.h"

#include <cstdio>
#include <filesystem>

using namespace moec;

static uint64_t bytesOf(const TensorSpec &spec) {
  uint64_t bytes = byteSize(spec.dtype);
  for (int64_t dim : spec.shape)
    bytes *= dim;
  return bytes;
}

Result<WeightFiles> WeightFiles::create(const std::string &directory, const std::vector<TensorSpec> &weights,
                                        uint64_t limit) {
  WeightFiles result;
  result.directory = directory;
  uint64_t used = 0;
  for (const TensorSpec &spec : weights) {
    uint64_t bytes = bytesOf(spec);
    if (result.files.empty() || (used > 0 && used + bytes > limit)) {
      char name[40];
      std::snprintf(name, sizeof name, "weights-%05zu.safetensors", result.files.size() + 1);
      result.files.push_back({name, {}, nullptr});
      used = 0;
    }
    result.files.back().specs.push_back(spec);
    result.places.push_back({result.files.size() - 1, spec.name});
    used += bytes;
  }
  for (File &file : result.files) {
    MOEC_TRY(SafetensorsWriter writer, SafetensorsWriter::create(directory + "/" + file.name, file.specs));
    file.writer = std::make_unique<SafetensorsWriter>(std::move(writer));
  }
  return result;
}

Status WeightFiles::write(size_t weight, uint64_t offset, const void *data, uint64_t size) {
  const Place &place = places[weight];
  return files[place.file].writer->write(place.name, offset, data, size);
}

Result<std::vector<WeightFileEntry>> WeightFiles::finish() {
  std::vector<WeightFileEntry> entries;
  Json map = Json::object();
  uint64_t total = 0;
  for (File &file : files) {
    MOEC_CHECK(file.writer->finish());
    std::string path = directory + "/" + file.name;
    MOEC_TRY(std::string hash, xxh3HexOfFile(path));
    std::error_code error;
    entries.push_back({file.name, std::filesystem::file_size(path, error), hash});
    for (const TensorSpec &spec : file.specs) {
      map[spec.name] = file.name;
      total += bytesOf(spec);
    }
  }
  Json index = {{"metadata", {{"total_size", total}}}, {"weight_map", std::move(map)}};
  MOEC_CHECK(writeFile(directory + "/" + indexName, index.dump(2) + "\n"));
  return entries;
}
