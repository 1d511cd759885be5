// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// When launches and their tasks ran, as a file that Perfetto and Chrome's tracing page show.

#ifndef MOEC_TOOLS_MOERUN_TRACE_H
#define MOEC_TOOLS_MOERUN_TRACE_H

#include "runtime/Model.h"
#include "runtime/Support/File.h"
#include "runtime/Support/Result.h"

#include <chrono>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace moec {

/// Writes trace events (the JSON object format of the Trace Event Format, complete events, microseconds). Each recorded
/// model run is a process: its first thread shows launches, the others the tasks that each thread of the pool ran. An
/// earlier file of that name stays until `finish`.
class Trace {
public:
  static Result<Trace> create(const std::string &path);

  /// From here on `add` takes launches of `model`, and tasks come by themselves. `name` is what the process is called.
  void begin(Model &model, const std::string &name);
  void add(const LaunchView &view);
  /// Writes what was recorded since `begin`.
  Status end();
  /// Once, after the last `end`.
  Status finish();

private:
  using Clock = std::chrono::steady_clock;
  struct Event {
    size_t launch;
    int thread; ///< 0: the launch as a whole
    Clock::time_point start, finish;
  };
  struct Recording { // apart, as workers point to it
    std::mutex mutex;
    std::map<std::thread::id, int> threads;
    std::vector<Event> events;
  };

  explicit Trace(OutputFile file) : file(std::move(file)) {}
  void write(const Json &event);
  Status flush();

  OutputFile file;
  uint64_t written = 0;
  std::string pending; ///< comes after that
  Clock::time_point origin = Clock::now();
  std::unique_ptr<Recording> recording = std::make_unique<Recording>();
  Model *model = nullptr;
  std::string name;
  int process = 0;
  bool first = true;
};

} // namespace moec

#endif // MOEC_TOOLS_MOERUN_TRACE_H
