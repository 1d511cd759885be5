// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "tools/moe-run/Trace.h"

using namespace moec;

Result<Trace> Trace::create(const std::string &path) {
  MOEC_TRY(OutputFile file, OutputFile::create(path));
  Trace trace(std::move(file));
  trace.pending = "{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n";
  return trace;
}

Status Trace::flush() {
  MOEC_CHECK(file.writeAt(written, pending.data(), pending.size()));
  written += pending.size();
  pending.clear();
  return success();
}

void Trace::write(const Json &event) {
  pending += (first ? "" : ",\n") + event.dump();
  first = false;
}

void Trace::begin(Model &model, const std::string &name) {
  this->model = &model;
  this->name = name;
  recording->threads.clear();
  recording->events.clear();
  model.setTaskObserver([recording = recording.get()](const TaskView &view) {
    std::lock_guard lock(recording->mutex);
    const int next = static_cast<int>(recording->threads.size()) + 1;
    const int thread = recording->threads.try_emplace(std::this_thread::get_id(), next).first->second;
    recording->events.push_back({view.launch, thread, view.start, view.finish});
  });
}

void Trace::add(const LaunchView &view) { recording->events.push_back({view.launch, 0, view.start, view.finish}); }

Status Trace::end() {
  model->setTaskObserver(nullptr);
  const Artifact &artifact = model->artifact();
  const auto nameThread = [&](int thread, const std::string &what) {
    write({{"ph", "M"}, {"name", "thread_name"}, {"pid", process}, {"tid", thread}, {"args", {{"name", what}}}});
  };
  write({{"ph", "M"}, {"name", "process_name"}, {"pid", process}, {"args", {{"name", name}}}});
  nameThread(0, "launches");
  for (int thread = 1; thread <= static_cast<int>(recording->threads.size()); ++thread)
    nameThread(thread, "thread " + std::to_string(thread));
  const auto micros = [](Clock::duration time) { return std::chrono::duration<double, std::micro>(time).count(); };
  for (const Event &event : recording->events) {
    const LaunchInfo &launch = artifact.launches()[event.launch];
    const KernelInfo &kernel = artifact.kernels()[launch.kernel];
    write({{"ph", "X"},
           {"name", event.thread == 0 && !launch.label.empty() ? launch.label : kernel.symbol},
           {"cat", kernel.kind},
           {"pid", process},
           {"tid", event.thread},
           {"ts", micros(event.start - origin)},
           {"dur", micros(event.finish - event.start)},
           {"args", {{"launch", event.launch}, {"kernel", kernel.symbol}}}});
  }
  ++process;
  return flush();
}

Status Trace::finish() {
  pending += "\n]}\n";
  MOEC_CHECK(flush());
  return file.commit();
}
