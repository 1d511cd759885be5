// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Which format the weights of a projection are asked to take.

#ifndef MOEC_PASSES_MOE_PROJECTIONFORMATS_H
#define MOEC_PASSES_MOE_PROJECTIONFORMATS_H

#include "dialects/Moe/MoeDialect.h"
#include "passes/Moe/WeightFormat.h"
#include "runtime/Support/Result.h"

#include "llvm/Support/Regex.h"

#include <array>
#include <memory>
#include <string>
#include <vector>

namespace mlir::moe {

/// What a projection is for.
enum class Role : uint8_t { Experts, Attention, Dense, Head, Router };

/// What a linear is for, which follows from what is around it.
Role roleOf(LinearOp op);

/// The formats that are asked for by role and, before that, by name, and how codes are chosen: see the options of
/// `moe-quantize`.
class ProjectionFormats {
public:
  /// `overrides` are lines of REGEX=FORMAT; empty ones and those that begin with '#' say nothing.
  static moec::Result<ProjectionFormats> parse(const std::string &experts, const std::string &attention,
                                               const std::string &dense, const std::string &head,
                                               llvm::StringRef overrides, llvm::StringRef rounding);

  /// Of the weight whose first tensor is `name`; routers keep theirs unless they are named.
  WeightFormat of(Role role, llvm::StringRef name);
  /// A regular expression that no name given to `of` has matched, or an empty string.
  std::string unused() const;

  Rounding rounding = Rounding::Nearest;

private:
  struct Rule {
    std::string pattern;
    std::shared_ptr<const llvm::Regex> regex; ///< shared, as passes are copied
    WeightFormat format;
    bool used = false;
  };

  std::array<WeightFormat, 5> formats; ///< by role
  std::vector<Rule> rules;
};

} // namespace mlir::moe

#endif // MOEC_PASSES_MOE_PROJECTIONFORMATS_H
