// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Weights/WeightFiles.h"

#include "runtime/Support/Json.h"

#include <algorithm>
#include <cstdio>

using namespace moec;

static uint64_t bytesOf(const TensorSpec &spec) {
  uint64_t bytes = byteSize(spec.dtype);
  for (int64_t dim : spec.shape)
    bytes *= dim;
  return bytes;
}

Result<std::unique_ptr<WeightFiles>>
WeightFiles::open(const std::string &directory, const std::vector<TensorSpec> &weights, uint64_t limit,
                  Journal &journal, const std::function<void(uint64_t, const std::string &)> &progress) {
  std::unique_ptr<WeightFiles> result(new WeightFiles(directory, journal));
  std::vector<File> &files = result->files;
  uint64_t used = 0;
  for (const TensorSpec &spec : weights) {
    uint64_t bytes = bytesOf(spec);
    if (files.empty() || (used > 0 && used + bytes > limit)) {
      char name[40];
      std::snprintf(name, sizeof name, "weights-%05zu.safetensors", files.size() + 1);
      files.emplace_back().known.name = name;
      used = 0;
    }
    files.back().specs.push_back(spec);
    used += bytes;
  }
  uint64_t verified = 0;
  for (size_t i = 0; i < files.size(); ++i) {
    File &file = files[i];
    const std::string name = file.known.name;
    MOEC_TRY(file.known, journal.verify(name, [&](uint64_t bytes) {
      if (progress)
        progress(verified + bytes, name);
    }));
    verified += file.known.bytes;
    file.written = file.known.bytes;
    MOEC_TRY(SafetensorsWriter writer, SafetensorsWriter::reopen(directory + "/" + name, file.specs, file.known.bytes));
    for (const TensorSpec &spec : file.specs) {
      const TensorInfo &info = writer.tensors().at(spec.name);
      uint64_t end = std::clamp(file.known.bytes, info.begin, info.begin + info.bytes);
      result->places.push_back({i, info, spec.name, end - info.begin});
    }
    file.writer = std::make_unique<SafetensorsWriter>(std::move(writer));
  }
  result->notes = std::thread([files = result.get()] { files->takeNotes(); });
  return result;
}

WeightFiles::~WeightFiles() { stop(/*drain=*/false); }

Status WeightFiles::write(size_t weight, uint64_t offset, const void *data, uint64_t size) {
  const Place &place = places[weight];
  return files[place.file].writer->write(place.name, offset, data, size);
}

Status WeightFiles::advance(size_t weight, uint64_t bytes) {
  const Place &place = places[weight];
  std::lock_guard lock(mutex);
  if (failure)
    return *failure;
  File &file = files[place.file];
  file.written = std::max(file.written, place.info.begin + bytes);
  changed.notify_one();
  return success();
}

WeightFiles::File *WeightFiles::due() {
  for (File &file : files)
    if (file.written >= file.known.bytes + noteBytes ||
        (file.written > file.known.bytes && file.written == file.writer->size()))
      return &file;
  return nullptr;
}

void WeightFiles::takeNotes() {
  std::unique_lock lock(mutex);
  while (!stopping) {
    File *file = due();
    if (!file && draining)
      return;
    if (!file) {
      changed.wait(lock);
      continue;
    }
    uint64_t bytes = file->written;
    lock.unlock();
    Status status = journal.extend(file->known, bytes);
    lock.lock();
    if (!status.ok()) {
      failure = status.takeError();
      return;
    }
  }
}

void WeightFiles::stop(bool drain) {
  {
    std::lock_guard lock(mutex);
    (drain ? draining : stopping) = true;
    changed.notify_one();
  }
  if (notes.joinable())
    notes.join();
}

Result<std::vector<WeightFileEntry>> WeightFiles::finish() {
  stop(/*drain=*/true);
  if (failure)
    return *failure;
  std::vector<WeightFileEntry> entries;
  Json map = Json::object();
  uint64_t total = 0;
  for (File &file : files) {
    if (file.known.bytes < file.writer->size()) // nothing but empty weights
      MOEC_CHECK(journal.extend(file.known, file.writer->size()));
    MOEC_CHECK(file.writer->finish());
    entries.push_back({file.known.name, file.known.bytes, file.known.hash.hex()});
    for (const TensorSpec &spec : file.specs) {
      map[spec.name] = file.known.name;
      total += bytesOf(spec);
    }
  }
  Json index = {{"metadata", {{"total_size", total}}}, {"weight_map", std::move(map)}};
  MOEC_CHECK(writeFile(directory + "/" + indexName, index.dump(2) + "\n"));
  return entries;
}
