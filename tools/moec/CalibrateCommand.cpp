// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "tools/moec/CalibrateCommand.h"

#include <CLI/CLI.hpp>

#include <cstdio>
#include <iostream>
#include <limits>

#include <unistd.h>

using namespace moec;

CalibrateCommand::CalibrateCommand(CLI::App &app) {
  command =
      app.add_subcommand("calibrate", "Keep what an artifact's weights are multiplied with while it reads a text");
  command->add_option("ARTIFACT", options.artifact, "artifact directory")->required();
  command->add_option("-f,--file", options.file, "text to read")->required()->type_name("TEXT");
  command->add_option("-o,--output", options.output, "safetensors file to write (docs/calibration.md)")
      ->required()
      ->type_name("CALIBRATION");
  command->add_option("--tokens", options.tokens, "tokens to read at most, in chunks of 256 (default: the whole text)")
      ->check(CLI::Range(int64_t(256), std::numeric_limits<int64_t>::max()))
      ->type_name("N");
  command->add_option("--threads", options.threads, "threads (default: the physical cores available)")
      ->check(CLI::Range(1, 1024))
      ->type_name("N");
  command->add_flag(
      "!--no-sensitivity", options.sensitivity,
      "do not measure what noise in each layer's experts costs: the first 2048 tokens are then read once, "
      "not once more for each layer");
  command->add_flag("--json", json, "print JSON");
  command->footer(
      "The text is read as moe-run perplexity reads it. The file takes 2 bytes for each number that meets a weight, so "
      "a model of hidden size 7168 with 61 layers makes about 6 MB a token; its size is reserved before anything is "
      "read. An expert that fewer than 128 tokens chose saw too little: the error of a weight is weighed by the mean "
      "square of its inputs, which over 128 draws is known to an eighth (sqrt(2 / 128)), and over fewer is chance.");
}

Status CalibrateCommand::run() {
  const bool terminal = isatty(STDERR_FILENO);
  if (terminal)
    options.progress = [](int64_t done, int64_t total) {
      std::fprintf(stderr, "\r\033[Kread %lld of %lld tokens%s", static_cast<long long>(done),
                   static_cast<long long>(total), done == total ? "\r\033[K" : "");
    };
  Result<CalibrateReport> report = calibrate(options);
  if (!report.ok())
    return Error{(terminal ? "\r\033[K" : "") + report.message()};
  std::cout << (json ? report->json().dump() + "\n" : report->text()) << std::flush;
  if (!std::cout)
    return Error{"standard output cannot be written"};
  return success();
}
