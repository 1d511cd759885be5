// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// What a compile did and why: as tables, as JSON, and as a page made of the same JSON.

#ifndef MOEC_TOOLS_DRIVER_EXPLAIN_H
#define MOEC_TOOLS_DRIVER_EXPLAIN_H

#include "runtime/Support/File.h"
#include "runtime/Support/Json.h"
#include "runtime/Support/Result.h"

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace moec {

class Compilation;

struct Report {
  /// A layer, or what comes before and after all layers.
  struct Part {
    std::string name;             ///< "layers.3", "lm_head"
    uint64_t checkpointBytes = 0; ///< of the tensors that its weights are made of, each counted once
    uint64_t bytes = 0;           ///< of its weights in the artifact
    double flopsBefore = 0;       ///< of one decode step at `context`, as imported; see `mlir::moe::DecodeCost`
    double flopsAfter = 0;        ///< the same, optimized
  };
  /// What a fusion did to an op that it is for.
  struct Fusion {
    std::string pass, op;
    bool fused = false;
    std::string text; ///< what it became a part of, or why it was left
  };
  struct Weight {
    std::string name, type;
    uint64_t bytes = 0;
    std::string reason; ///< why it is stored like this
  };
  struct Launch {
    std::string label, kernel;
  };
  /// A buffer of the arena, alive from its first to its last launch, both included.
  struct Buffer {
    std::string name, dtype;
    uint64_t offset = 0, bytes = 0;
    size_t firstLaunch = 0, lastLaunch = 0;
  };

  Json model; ///< as in a manifest
  std::string target, passes;
  int64_t context = 0; ///< tokens that `flops` are counted at
  int64_t maxTokens = 0;
  uint64_t arenaBytes = 0, cacheBytesPerToken = 0;
  std::string cacheType;   ///< what caches hold: "f32"
  std::vector<Part> parts; ///< in the order of the program
  std::vector<Fusion> fusions;
  std::vector<Weight> weights;
  std::vector<Launch> launches;
  std::vector<Buffer> buffers;

  /// Sums over all parts.
  Part total() const;
  std::string text() const;
  Json json() const;
};

/// A page that needs nothing but itself, from `Report::json`.
std::string reportHtml(const Json &report);

/// `name`.html and `name`.json. They appear when they are written, and not at all if they are not.
class ReportFiles {
public:
  /// Fails where one of them could not be written later. A `name` that ends in .html or .json stands for both.
  static Result<ReportFiles> create(std::string name);
  Status write(const Report &report);

private:
  ReportFiles(OutputFile html, OutputFile json) : html(std::move(html)), json(std::move(json)) {}
  OutputFile html, json;
};

/// Looks on at a compile and fills its report.
class Explainer {
public:
  /// Sees the model as it was imported, and hears what fusions say from now on. `compilation` must outlive this.
  explicit Explainer(Compilation &compilation);
  ~Explainer();

  void optimized();         ///< to be called after `Compilation::optimize`
  Result<Report> lowered(); ///< and this after `Compilation::lower`

private:
  class Listener;
  void countFlops(double Report::Part::*flops);
  Report::Part &part(const std::string &name);

  Compilation &compilation;
  Report report;
  std::map<std::string, size_t> partIndex;
  std::shared_ptr<std::vector<Report::Fusion>> heard;
};

} // namespace moec

#endif // MOEC_TOOLS_DRIVER_EXPLAIN_H
