// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Artifact/KernelWork.h"

#include "codegen/Common/KernelSignature.h"

#include "llvm/ADT/STLExtras.h"

using namespace mlir;
using namespace moec;

namespace {

/// What a kernel multiplies in that takes one of its factors as `stored`; the other is rounded to it where they differ.
const char *unitOf(DType stored) { return stored == DType::U8 ? "int8" : stored == DType::BF16 ? "bf16" : "f32"; }

int64_t positionOf(ArrayRef<KernelArg> signature, StringRef name) {
  const auto *found = llvm::find_if(signature, [&](const KernelArg &arg) { return arg.name == name; });
  assert(found != signature.end() && "an argument of the kernel's kind");
  return found - signature.begin();
}

// One overload for each kind, so that a new kind is not forgotten here.

Json work(const EmbedSpec &s) { return {{"token_bytes", s.width * byteSize(s.table)}}; }
Json work(const GemmSpec &s) {
  const int64_t matrices = s.epilogue == Epilogue::Swiglu ? 2 : 1, perRow = 2 * s.n * s.k * matrices;
  if (s.routing == Routing::None)
    return {{"unit", unitOf(s.input)}, {"flops", {{s.rows == Rows::R ? "row" : "token", perRow * s.batch}}}};
  const SmallVector<KernelArg> signature = argumentsOf(s);
  return {{"unit", unitOf(s.input)},
          {"flops", {{"choice", perRow}}},
          {"experts",
           {{"count", s.batch},
            {"offsets", positionOf(signature, "offsets")},
            {"active", positionOf(signature, "active")}}}};
}
Json work(const MlaAttentionSpec &s) {
  return {{"unit", unitOf(s.cache)}, {"flops", {{"pair", s.heads * (4 * s.latent + 2 * s.rope)}}}};
}
Json work(const MlaCombineSpec &) { return Json::object(); }
Json work(const MlaExpandedSpec &s) {
  return {
      {"unit", unitOf(s.cache)},
      {"flops",
       {{"pair", s.heads * 2 * (s.nope + s.rope + s.value)}, {"entry", s.heads * 2 * s.latent * (s.nope + s.value)}}}};
}
Json work(const GatherRowsSpec &) { return Json::object(); }
Json work(const RmsNormSpec &) { return Json::object(); }
Json work(const RopeAnglesSpec &) { return Json::object(); }
Json work(const RopeSpec &) { return Json::object(); }
Json work(const CacheAppendSpec &) { return Json::object(); }
Json work(const RouteSpec &) { return Json::object(); }
Json work(const DispatchSpec &) { return Json::object(); }
Json work(const CombineSpec &) { return Json::object(); }
Json work(const ArgmaxSpec &) { return Json::object(); }
Json work(const ElementwiseSpec &) { return Json::object(); }
Json work(const FakeQuantizeSpec &) { return Json::object(); }
Json work(const QuantizeRowsSpec &) { return Json::object(); }
Json work(const CastRowsSpec &) { return Json::object(); }
/// One part at most multiplies.
template <MadeOfParts Spec> Json work(const Spec &s) {
  Json all = Json::object();
  for (const KernelSpec &part : s.parts)
    all.update(workOf(part));
  return all;
}

} // namespace

Json moec::workOf(const KernelSpec &spec) {
  return std::visit([](const auto &s) { return work(s); }, spec);
}
