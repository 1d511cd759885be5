// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "passes/Moe/ProjectionFormats.h"

#include "runtime/Support/Text.h"

#include "llvm/ADT/STLExtras.h"

using namespace mlir;
using namespace mlir::moe;

namespace {

/// The op that `value` comes from, past ops that only rename or round elements.
Operation *sourceOf(Value value) {
  Operation *op = value.getDefiningOp();
  while (isa_and_nonnull<ReshapeOp, SplitOp, FakeQuantizeOp>(op))
    op = op->getOperand(0).getDefiningOp();
  return op;
}

/// Does an attention take `value`, be it through norms, rotations, reshapes and further projections? What is added to
/// the residual stream has left it.
bool feedsAttention(Value value) {
  return llvm::any_of(value.getUses(), [](OpOperand &use) {
    Operation *user = use.getOwner();
    if (isa<AttentionOp, MlaAttentionOp, CacheAppendOp>(user))
      return true;
    auto linear = dyn_cast<LinearOp>(user);
    if (linear && (use.get() != linear.getX() || linear.getResidual()))
      return false;
    return isa<LinearOp, RmsNormOp, FakeQuantizeOp, ReshapeOp, SplitOp, RopeOp>(user) &&
           llvm::any_of(user->getResults(), feedsAttention);
  });
}

/// Does `value` come from rows that were picked for logits?
bool isOfLogits(Value value) {
  Operation *op = value.getDefiningOp();
  while (isa_and_nonnull<RmsNormOp, FakeQuantizeOp>(op))
    op = op->getOperand(0).getDefiningOp();
  return isa_and_nonnull<GatherRowsOp>(op);
}

} // namespace

Role mlir::moe::roleOf(LinearOp op) {
  if (llvm::any_of(op->getUsers(), llvm::IsaPred<RouteOp>))
    return Role::Router;
  if (isOfLogits(op.getX()))
    return Role::Head;
  bool after = isa_and_nonnull<AttentionOp, MlaAttentionOp>(sourceOf(op.getX()));
  return after || (!op.getResidual() && feedsAttention(op.getResult())) ? Role::Attention : Role::Dense;
}

moec::Result<ProjectionFormats> ProjectionFormats::parse(const std::string &experts, const std::string &attention,
                                                         const std::string &dense, const std::string &head,
                                                         StringRef overrides, StringRef rounding) {
  ProjectionFormats result;
  for (auto [role, name] : {std::pair(Role::Experts, &experts),
                            {Role::Attention, &attention},
                            {Role::Dense, &dense},
                            {Role::Head, &head}}) {
    MOEC_TRY(result.formats[static_cast<size_t>(role)], WeightFormat::parse(*name));
  }
  SmallVector<StringRef> lines;
  overrides.split(lines, '\n', /*MaxSplit=*/-1, /*KeepEmpty=*/false);
  for (StringRef line : lines) {
    line = line.trim();
    if (line.empty() || line.starts_with("#"))
      continue;
    auto [pattern, name] = line.rsplit('=');
    if (pattern.empty() || !line.contains('='))
      return moec::Error{"format " + moec::quote(line.str()) + " is not of the form REGEX=FORMAT"};
    auto regex = std::make_shared<const llvm::Regex>(pattern);
    std::string problem;
    if (!regex->isValid(problem))
      return moec::Error{"format " + moec::quote(line.str()) + " has no valid regular expression: " + problem};
    MOEC_TRY(WeightFormat format, WeightFormat::parse(name));
    result.rules.push_back({pattern.str(), std::move(regex), std::move(format)});
  }
  std::optional<Rounding> known = symbolizeRounding(rounding);
  if (!known)
    return moec::Error{"unknown rounding " + moec::quote(rounding.str()) +
                       ", expected nearest, importance or feedback"};
  result.rounding = *known;
  return result;
}

WeightFormat ProjectionFormats::of(Role role, StringRef name) {
  for (Rule &rule : rules)
    if (rule.regex->match(name)) {
      rule.used = true;
      return rule.format;
    }
  return formats[static_cast<size_t>(role)];
}

std::string ProjectionFormats::unused() const {
  auto found = llvm::find_if(rules, [](const Rule &rule) { return !rule.used; });
  return found == rules.end() ? "" : found->pattern;
}
