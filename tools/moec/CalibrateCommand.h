// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef MOEC_TOOLS_MOEC_CALIBRATECOMMAND_H
#define MOEC_TOOLS_MOEC_CALIBRATECOMMAND_H

#include "runtime/Support/Result.h"
#include "tools/Driver/Calibrate.h"

#include <CLI/App.hpp>

namespace moec {

/// `moec calibrate`: a text read by an artifact, for quantizers.
class CalibrateCommand {
public:
  /// Adds the subcommand to `app`, which must outlive this, and this the parsing.
  explicit CalibrateCommand(CLI::App &app);
  CalibrateCommand(const CalibrateCommand &) = delete;

  bool isChosen() const { return command->parsed(); }
  Status run();

private:
  CLI::App *command;
  CalibrateOptions options;
  bool json = false;
};

} // namespace moec

#endif // MOEC_TOOLS_MOEC_CALIBRATECOMMAND_H
