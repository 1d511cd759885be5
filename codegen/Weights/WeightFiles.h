// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The files that hold an artifact's weights.

#ifndef MOEC_CODEGEN_WEIGHTS_WEIGHTFILES_H
#define MOEC_CODEGEN_WEIGHTS_WEIGHTFILES_H

#include "codegen/Weights/Journal.h"
#include "codegen/Weights/WeightSink.h"
#include "runtime/Support/Safetensors.h"

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace moec {

/// A finished file, as a manifest lists it.
struct WeightFileEntry {
  std::string file; ///< name inside the artifact
  uint64_t bytes = 0;
  std::string xxh3;
};

/// `weights-00001.safetensors` and so on: the weights in the given order, cut by
/// whole tensors, and `weights.safetensors.index.json`, which says which file
/// holds which weight (`weight_map`, as Hugging Face's indexes have it). What
/// is written is noted in a journal, so that a later process can go on.
class WeightFiles final : public WeightSink {
public:
  static constexpr const char *indexName = "weights.safetensors.index.json";
  /// Bytes of a file between two notes in the journal: what a kill costs.
  static constexpr uint64_t noteBytes = 32u << 20;

  /// Opens the files in `directory`, verifies what `journal` says of them and
  /// reserves their room on disk. A file holds tensors of at most `limit` bytes
  /// together, or one larger tensor. `progress` gets the bytes that were found
  /// right, and the file being read. `journal` must outlive this.
  static Result<std::unique_ptr<WeightFiles>>
  open(const std::string &directory, const std::vector<TensorSpec> &weights, uint64_t limit, Journal &journal,
       const std::function<void(uint64_t, const std::string &)> &progress = nullptr);
  ~WeightFiles() override;

  uint64_t present(size_t weight) const override { return places[weight].present; }
  Status write(size_t weight, uint64_t offset, const void *data, uint64_t size) override;
  /// What is written is synced and noted in another thread, whose errors come from here and `finish`.
  Status advance(size_t weight, uint64_t bytes) override;
  /// Makes everything durable and writes the index. Once.
  Result<std::vector<WeightFileEntry>> finish();

private:
  struct File {
    std::vector<TensorSpec> specs;
    std::unique_ptr<SafetensorsWriter> writer;
    KnownFile known;
    uint64_t written = 0; ///< what `advance` said, as a position in the file
  };
  struct Place {
    size_t file;
    TensorInfo info;
    std::string name;
    uint64_t present; ///< bytes that were found right
  };

  explicit WeightFiles(std::string directory, Journal &journal) : directory(std::move(directory)), journal(journal) {}
  /// A file of which enough is written to note it, or null.
  File *due();
  void takeNotes();
  /// Lets the other thread end: with all that is due noted, or as soon as it can.
  void stop(bool drain);

  std::string directory;
  Journal &journal;
  std::vector<File> files;
  std::vector<Place> places; ///< of each weight

  std::thread notes;
  std::mutex mutex; ///< guards what follows, and each file's `written`
  std::condition_variable changed;
  bool draining = false, stopping = false;
  std::optional<Error> failure;
};

} // namespace moec

#endif // MOEC_CODEGEN_WEIGHTS_WEIGHTFILES_H
