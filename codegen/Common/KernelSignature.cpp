// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Common/KernelSignature.h"

#include "mlir/IR/AffineExpr.h"
#include "llvm/ADT/STLExtras.h"

using namespace mlir;
using namespace moec;

namespace {

using Args = SmallVector<KernelArg>;

KernelArg in(StringRef name, DType type = DType::F32) { return {name, type, /*written=*/false}; }
KernelArg out(StringRef name, DType type = DType::F32) { return {name, type, /*written=*/true}; }
KernelArg index(StringRef name) { return in(name, DType::I32); }

Args arguments(const EmbedSpec &s) { return {index("tokens"), in("table", s.table), out("out")}; }
Args arguments(const GatherRowsSpec &) { return {in("x"), index("rows"), out("out")}; }
Args arguments(const RmsNormSpec &s) {
  return s.weight ? Args{in("x"), in("g"), out("out")} : Args{in("x"), out("out")};
}
Args arguments(const GemmSpec &s) {
  Args args = {in("x", s.input), in("w", s.weight)};
  if (s.scaleCols)
    args.push_back(in("scales"));
  if (s.epilogue == Epilogue::Add)
    args.push_back(in("residual"));
  args.push_back(out("y", s.output));
  if (s.epilogue == Epilogue::Argmax)
    args.push_back(out("candidates"));
  if (s.routing != Routing::None)
    args.append({index("offsets"), index("active"), index("order")});
  return args;
}
Args arguments(const RopeAnglesSpec &) { return {index("positions"), out("out")}; }
Args arguments(const RopeSpec &) { return {in("x"), in("angles"), out("out")}; }
Args arguments(const CacheAppendSpec &s) {
  return {in("latent"),   in("rope_key"),      index("positions"),
          index("slots"), index("page_table"), out("cache", cacheElement(s))};
}
Args arguments(const MlaAttentionSpec &s) {
  return {in("q"),      index("positions"), index("slots"), index("page_table"), in("cache", cacheElement(s)),
          out("parts"), out("out")};
}
Args arguments(const MlaCombineSpec &) { return {in("parts"), index("positions"), index("slots"), out("out")}; }
Args arguments(const MlaExpandedSpec &s) {
  Args args = {in("q"),
               in("rope_q"),
               index("positions"),
               index("slots"),
               index("page_table"),
               in("cache", cacheElement(s)),
               in("w_uk", s.weight),
               in("w_uv", s.weight),
               out("out")};
  if (s.output != DType::F32)
    args.push_back(out("rounded", s.output));
  return args;
}
Args arguments(const RouteSpec &s) {
  Args args = {in("logits")};
  if (s.bias)
    args.push_back(in("bias"));
  args.append({out("weights"), out("chosen", DType::I32)});
  return args;
}
Args arguments(const DispatchSpec &) {
  return {index("chosen"), out("offsets", DType::I32), out("active", DType::I32), out("order", DType::I32)};
}
Args arguments(const CombineSpec &s) {
  Args args = {in("y"), in("weights")};
  if (!s.members.empty())
    args.push_back(index("chosen"));
  if (s.residual)
    args.push_back(in("residual"));
  args.push_back(out("out"));
  return args;
}
Args arguments(const ArgmaxSpec &) { return {in("candidates"), out("out", DType::I32)}; }
Args arguments(const ElementwiseSpec &) { return {in("a"), in("b"), out("out")}; }
Args arguments(const FakeQuantizeSpec &) { return {in("x"), out("out")}; }
Args arguments(const QuantizeRowsSpec &) { return {in("x"), out("out", DType::U8)}; }
Args arguments(const CastRowsSpec &s) { return {in("x"), out("out", s.to)}; }

template <MadeOfParts Spec> Args arguments(const Spec &s) {
  Args args;
  for (const KernelSpec &part : s.parts)
    llvm::append_range(args, argumentsOf(part));
  if (std::is_same_v<Spec, GemmChainSpec>)
    args.push_back(out("arrivals", DType::I32));
  return args;
}

/// The grid of a kind is its rows, which are `T` where it has no choice, or several for each of them, unless an
/// overload says otherwise.
template <class Spec> SmallVector<AffineExpr> grid(const Spec &s, AffineExpr t, AffineExpr r) {
  AffineExpr rows = t;
  if constexpr (requires { s.rows; })
    rows = s.rows == Rows::R ? r : t;
  if constexpr (requires { s.rowsPerToken; })
    rows = rows * s.rowsPerToken;
  return {rows};
}
SmallVector<AffineExpr> grid(const GatherRowsSpec &, AffineExpr, AffineExpr r) { return {r}; }
SmallVector<AffineExpr> grid(const GemmSpec &s, AffineExpr t, AffineExpr r) {
  AffineExpr rows = s.rows == Rows::R ? r : t;
  if (s.routing != Routing::None)
    return {getAffineConstantExpr(s.batch * s.parts(), t.getContext()), rows * s.topk * s.parts()};
  return {rows.ceilDiv(GemmSpec::tokenBlock) * (s.batch * s.parts())};
}
SmallVector<AffineExpr> grid(const MlaAttentionSpec &s, AffineExpr t, AffineExpr) {
  return {t * (s.blocks() * MlaAttentionSpec::maxSpans)};
}
SmallVector<AffineExpr> grid(const MlaCombineSpec &s, AffineExpr t, AffineExpr) { return {t * s.heads}; }
SmallVector<AffineExpr> grid(const MlaExpandedSpec &s, AffineExpr t, AffineExpr) {
  return {t.ceilDiv(MlaExpandedSpec::tokenBlock) * s.heads};
}
SmallVector<AffineExpr> grid(const DispatchSpec &, AffineExpr t, AffineExpr) {
  return {getAffineConstantExpr(1, t.getContext())};
}

template <MadeOfParts Spec> SmallVector<AffineExpr> grid(const Spec &s, AffineExpr t, AffineExpr r) {
  return std::visit([&](const auto &part) { return grid(part, t, r); }, s.parts.front());
}
SmallVector<AffineExpr> grid(const MlaValuesSpec &s, AffineExpr t, AffineExpr) {
  auto *combine = std::get_if<MlaCombineSpec>(&s.parts.front());
  return {t.ceilDiv(GemmSpec::tokenBlock) * (combine ? combine->heads : 1)};
}

} // namespace

SmallVector<KernelArg> moec::argumentsOf(const KernelSpec &spec) {
  return std::visit([](const auto &s) { return arguments(s); }, spec);
}

SmallVector<int64_t> moec::writtenArgsOf(const KernelSpec &spec) {
  SmallVector<int64_t> written;
  for (auto [index, arg] : llvm::enumerate(argumentsOf(spec)))
    if (arg.written)
      written.push_back(index);
  return written;
}

AffineMap moec::gridOf(const KernelSpec &spec, MLIRContext *context) {
  AffineExpr t = getAffineDimExpr(0, context), r = getAffineDimExpr(1, context);
  SmallVector<AffineExpr> results = std::visit([&](const auto &s) { return grid(s, t, r); }, spec);
  return AffineMap::get(/*dimCount=*/2, /*symbolCount=*/0, results, context);
}
