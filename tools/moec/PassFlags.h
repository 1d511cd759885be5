// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef MOEC_TOOLS_MOEC_PASSFLAGS_H
#define MOEC_TOOLS_MOEC_PASSFLAGS_H

#include "tools/Driver/Compilation.h"

#include <vector>

namespace CLI {
class App;
class Option;
} // namespace CLI

namespace moec {

/// Adds -O0 to -O3 and --pass-pipeline to a command that optimizes; `options` must outlive the parsing.
std::vector<CLI::Option *> addPassOptions(CLI::App &command, PassOptions &options);

} // namespace moec

#endif // MOEC_TOOLS_MOEC_PASSFLAGS_H
