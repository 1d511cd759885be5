// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef MOEC_TOOLS_MOEC_PLANCOMMAND_H
#define MOEC_TOOLS_MOEC_PLANCOMMAND_H

#include "runtime/Support/Result.h"
#include "tools/Driver/Plan.h"

#include <CLI/App.hpp>

#include <string>

namespace moec {

/// `moec plan`: what a compile will need and what its result will do.
class PlanCommand {
public:
  /// Adds the subcommand to `app`, which must outlive this, and this the parsing.
  explicit PlanCommand(CLI::App &app);
  PlanCommand(const PlanCommand &) = delete;

  bool isChosen() const { return command->parsed(); }
  Status run();

private:
  CLI::App *command;
  PlanOptions options;
  std::string diskRate;
  bool json = false;
};

} // namespace moec

#endif // MOEC_TOOLS_MOEC_PLANCOMMAND_H
