// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Common/KernelSpec.h"

#include "mlir/IR/Builders.h"
#include "mlir/IR/Diagnostics.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringSwitch.h"

#include <algorithm>
#include <cmath>

using namespace mlir;
using namespace moec;

//===----------------------------------------------------------------------===//
// Fields: each is written once, here
//===----------------------------------------------------------------------===//

namespace {

/// `S` is `Spec` or `const Spec`.
template <class S, class Spec>
concept Is = std::is_same_v<std::remove_const_t<S>, Spec>;

template <Is<EmbedSpec> S> void forEachField(S &s, auto field) {
  field("table", s.table);
  field("width", s.width);
  field("out_stride", s.outStride);
}

template <Is<GatherRowsSpec> S> void forEachField(S &s, auto field) {
  field("width", s.width);
  field("x_stride", s.xStride);
  field("out_stride", s.outStride);
}

template <Is<RmsNormSpec> S> void forEachField(S &s, auto field) {
  field("width", s.width);
  field("x_stride", s.xStride);
  field("out_stride", s.outStride);
  field("eps", s.eps);
  field("rows", s.rows);
  field("weight", s.weight);
}

template <Is<GemmSpec> S> void forEachField(S &s, auto field) {
  field("weight", s.weight);
  field("n", s.n);
  field("k", s.k);
  field("batch", s.batch);
  field("scale_cols", s.scaleCols);
  field("group", s.group);
  field("codes", s.codes);
  field("group_scale", s.groupScale);
  field("input", s.input);
  field("output", s.output);
  field("output_offset", s.outputOffset);
  field("x_stride", s.xStride);
  field("x_batch", s.xBatch);
  field("y_stride", s.yStride);
  field("y_batch", s.yBatch);
  field("residual_stride", s.residualStride);
  field("epilogue", s.epilogue);
  field("routing", s.routing);
  field("topk", s.topk);
  field("rows", s.rows);
}

template <Is<RopeAnglesSpec> S> void forEachField(S &s, auto field) {
  field("inv_freq", s.invFreq);
  field("factor", s.factor);
}

template <Is<RopeSpec> S> void forEachField(S &s, auto field) {
  field("heads", s.heads);
  field("dim", s.dim);
  field("x_stride", s.xStride);
  field("x_head", s.xHead);
  field("out_stride", s.outStride);
  field("out_head", s.outHead);
}

template <Is<CacheAppendSpec> S> void forEachField(S &s, auto field) {
  field("latent", s.latent);
  field("rope", s.rope);
  field("width", s.width);
  field("latent_stride", s.latentStride);
  field("rope_stride", s.ropeStride);
  field("cache", s.cache);
  field("codes", s.codes);
}

template <Is<MlaAttentionSpec> S> void forEachField(S &s, auto field) {
  field("heads", s.heads);
  field("latent", s.latent);
  field("rope", s.rope);
  field("width", s.width);
  field("q_stride", s.qStride);
  field("q_head", s.qHead);
  field("out_stride", s.outStride);
  field("out_head", s.outHead);
  field("scale", s.scale);
  field("run_below", s.runBelow);
  field("cache", s.cache);
  field("codes", s.codes);
}

template <Is<MlaCombineSpec> S> void forEachField(S &s, auto field) {
  field("heads", s.heads);
  field("latent", s.latent);
  field("out_stride", s.outStride);
  field("out_head", s.outHead);
  field("run_below", s.runBelow);
}

template <Is<MlaExpandedSpec> S> void forEachField(S &s, auto field) {
  field("weight", s.weight);
  field("heads", s.heads);
  field("nope", s.nope);
  field("latent", s.latent);
  field("rope", s.rope);
  field("value", s.value);
  field("width", s.width);
  field("q_stride", s.qStride);
  field("q_head", s.qHead);
  field("rope_stride", s.ropeStride);
  field("rope_head", s.ropeHead);
  field("out_stride", s.outStride);
  field("out_head", s.outHead);
  field("scale", s.scale);
  field("run_from", s.runFrom);
  field("cache", s.cache);
  field("codes", s.codes);
  field("output", s.output);
  field("output_offset", s.outputOffset);
  field("rounded_stride", s.roundedStride);
  field("rounded_head", s.roundedHead);
}

template <Is<RouteSpec> S> void forEachField(S &s, auto field) {
  field("experts", s.experts);
  field("topk", s.topk);
  field("groups", s.groups);
  field("topk_groups", s.topkGroups);
  field("shared", s.shared);
  field("sigmoid", s.sigmoid);
  field("group_top2_sum", s.groupTop2Sum);
  field("normalize", s.normalize);
  field("bias", s.bias);
  field("scale", s.scale);
  field("logits_stride", s.logitsStride);
  field("rows", s.rows);
}

template <Is<DispatchSpec> S> void forEachField(S &s, auto field) {
  field("experts", s.experts);
  field("topk", s.topk);
  field("members", s.members);
  field("rows", s.rows);
}

template <Is<CombineSpec> S> void forEachField(S &s, auto field) {
  field("topk", s.topk);
  field("width", s.width);
  field("y_stride", s.yStride);
  field("residual_stride", s.residualStride);
  field("out_stride", s.outStride);
  field("residual", s.residual);
  field("members", s.members);
  field("rows", s.rows);
}

template <Is<ElementwiseSpec> S> void forEachField(S &s, auto field) {
  field("swiglu", s.swiglu);
  field("width", s.width);
  field("a_stride", s.aStride);
  field("b_stride", s.bStride);
  field("out_stride", s.outStride);
  field("rows", s.rows);
}

template <Is<FakeQuantizeSpec> S> void forEachField(S &s, auto field) {
  field("codes", s.codes);
  field("width", s.width);
  field("group", s.group);
  field("x_stride", s.xStride);
  field("out_stride", s.outStride);
  field("rows_per_token", s.rowsPerToken);
  field("rows", s.rows);
}

template <Is<QuantizeRowsSpec> S> void forEachField(S &s, auto field) {
  field("width", s.width);
  field("scale_cols", s.scaleCols);
  field("x_stride", s.xStride);
  field("out_stride", s.outStride);
  field("offset", s.offset);
  field("rows_per_token", s.rowsPerToken);
  field("rows", s.rows);
}

template <Is<CastRowsSpec> S> void forEachField(S &s, auto field) {
  field("to", s.to);
  field("width", s.width);
  field("x_stride", s.xStride);
  field("out_stride", s.outStride);
  field("rows_per_token", s.rowsPerToken);
  field("rows", s.rows);
}

template <Is<ArgmaxSpec> S> void forEachField(S &s, auto field) {
  field("count", s.count);
  field("rows", s.rows);
}

template <MadeOfParts S> void forEachField(S &s, auto field) { field("parts", s.parts); }

//===----------------------------------------------------------------------===//
// Kinds, in the order of the variant
//===----------------------------------------------------------------------===//

constexpr StringLiteral kinds[] = {
    "embed",         "gather_rows",   "rms_norm",      "gemm",      "rope_angles", "rope",       "cache_append",
    "mla_attention", "mla_combine",   "mla_expanded",  "route",     "dispatch",    "combine",    "argmax",
    "elementwise",   "fake_quantize", "quantize_rows", "cast_rows", "rows",        "gemm_chain", "mla_values"};
static_assert(std::size(kinds) == std::variant_size_v<KernelSpec>);

/// The default spec of the alternative `index`.
template <size_t... I> KernelSpec makeSpec(size_t index, std::index_sequence<I...>) {
  static constexpr KernelSpec (*make[])() = {+[] { return KernelSpec(std::in_place_index<I>); }...};
  return make[index]();
}

//===----------------------------------------------------------------------===//
// Values
//===----------------------------------------------------------------------===//

template <class Enum> struct NamedValue {
  StringLiteral name;
  Enum value;
};

ArrayRef<NamedValue<DType>> names(const DType *) {
  static constexpr NamedValue<DType> table[] = {{"f32", DType::F32},       {"bf16", DType::BF16},
                                                {"f16", DType::F16},       {"f8e4m3", DType::F8E4M3},
                                                {"f8e8m0", DType::F8E8M0}, {"u8", DType::U8}};
  return table;
}
ArrayRef<NamedValue<CodeKind>> names(const CodeKind *) {
  static constexpr NamedValue<CodeKind> table[] = {{"int4", CodeKind::Int4},
                                                   {"int4_zero", CodeKind::Int4Zero},
                                                   {"int8", CodeKind::Int8},
                                                   {"f8e4m3", CodeKind::F8E4M3},
                                                   {"f4e2m1", CodeKind::F4E2M1}};
  return table;
}
ArrayRef<NamedValue<CacheCodes>> names(const CacheCodes *) {
  static constexpr NamedValue<CacheCodes> table[] = {
      {"none", CacheCodes::None}, {"int8", CacheCodes::Int8}, {"fp8", CacheCodes::F8E4M3}};
  return table;
}
ArrayRef<NamedValue<Rows>> names(const Rows *) {
  static constexpr NamedValue<Rows> table[] = {{"T", Rows::T}, {"R", Rows::R}};
  return table;
}
ArrayRef<NamedValue<Epilogue>> names(const Epilogue *) {
  static constexpr NamedValue<Epilogue> table[] = {
      {"none", Epilogue::None}, {"add", Epilogue::Add}, {"swiglu", Epilogue::Swiglu}, {"argmax", Epilogue::Argmax}};
  return table;
}
ArrayRef<NamedValue<Routing>> names(const Routing *) {
  static constexpr NamedValue<Routing> table[] = {
      {"none", Routing::None}, {"gather", Routing::Gather}, {"scatter", Routing::Scatter}};
  return table;
}

template <class Enum>
  requires std::is_enum_v<Enum>
StringRef nameOf(Enum value) {
  for (const NamedValue<Enum> &entry : names(&value))
    if (entry.value == value)
      return entry.name;
  // Integers and 64-bit floats are no element types of a kernel.
  return "unsupported";
}

struct AttrWriter {
  Builder builder;

  Attribute operator()(int64_t value) { return builder.getI64IntegerAttr(value); }
  Attribute operator()(double value) { return builder.getF64FloatAttr(value); }
  Attribute operator()(bool value) { return builder.getBoolAttr(value); }
  Attribute operator()(const std::vector<float> &value) { return builder.getDenseF32ArrayAttr(value); }
  Attribute operator()(const std::vector<int64_t> &value) { return builder.getDenseI64ArrayAttr(value); }
  /// [{kind = "rms_norm", spec = {...}}, ...]
  Attribute operator()(const std::vector<KernelSpec> &value) {
    return builder.getArrayAttr(llvm::map_to_vector(value, [&](const KernelSpec &part) -> Attribute {
      return builder.getDictionaryAttr({builder.getNamedAttr("kind", builder.getStringAttr(kindOf(part))),
                                        builder.getNamedAttr("spec", toAttr(part, builder.getContext()))});
    }));
  }
  template <class Enum>
    requires std::is_enum_v<Enum>
  Attribute operator()(Enum value) {
    return builder.getStringAttr(nameOf(value));
  }
};

/// Each overload gives an empty string, or what it expected.
struct AttrReader {
  static std::string read(Attribute attr, std::vector<KernelSpec> &value) {
    auto array = dyn_cast<ArrayAttr>(attr);
    for (Attribute entry : array ? array.getValue() : ArrayRef<Attribute>()) {
      auto part = dyn_cast<DictionaryAttr>(entry);
      auto kind = part ? part.getAs<StringAttr>("kind") : StringAttr();
      auto spec = part ? part.getAs<DictionaryAttr>("spec") : DictionaryAttr();
      if (!kind || !spec || part.size() != 2)
        break;
      // What is wrong inside a part is told by the message about the whole.
      ScopedDiagnosticHandler silent(attr.getContext(), [](Diagnostic &) { return mlir::success(); });
      FailureOr<KernelSpec> found = fromAttr(kind, spec, [&] { return emitError(UnknownLoc::get(attr.getContext())); });
      if (failed(found) || std::visit([]<class Spec>(const Spec &) { return MadeOfParts<Spec>; }, *found))
        break;
      value.push_back(std::move(*found));
    }
    return array && value.size() >= 2 && value.size() == array.size()
               ? ""
               : "an array of two or more {kind, spec} of kernels without parts";
  }
  static std::string read(Attribute attr, int64_t &value) {
    auto integer = dyn_cast<IntegerAttr>(attr);
    if (!integer || !integer.getType().isSignlessInteger(64) || integer.getInt() < 0)
      return "an i64 that is not negative";
    value = integer.getInt();
    return {};
  }
  static std::string read(Attribute attr, double &value) {
    auto number = dyn_cast<FloatAttr>(attr);
    if (!number || !number.getType().isF64() || !std::isfinite(number.getValueAsDouble()))
      return "a finite f64";
    value = number.getValueAsDouble();
    return {};
  }
  static std::string read(Attribute attr, bool &value) {
    auto boolean = dyn_cast<BoolAttr>(attr);
    if (!boolean)
      return "a bool";
    value = boolean.getValue();
    return {};
  }
  static std::string read(Attribute attr, std::vector<float> &value) {
    auto array = dyn_cast<DenseF32ArrayAttr>(attr);
    if (!array || !llvm::all_of(array.asArrayRef(), [](float v) { return std::isfinite(v); }))
      return "an array of finite f32";
    value.assign(array.asArrayRef().begin(), array.asArrayRef().end());
    return {};
  }
  static std::string read(Attribute attr, std::vector<int64_t> &value) {
    auto array = dyn_cast<DenseI64ArrayAttr>(attr);
    if (array)
      value.assign(array.asArrayRef().begin(), array.asArrayRef().end());
    bool ascends = std::ranges::adjacent_find(value, std::greater_equal<>()) == value.end();
    return array && ascends && (value.empty() || value.front() >= 0) ? "" : "an array of ascending i64, none negative";
  }
  template <class Enum>
    requires std::is_enum_v<Enum>
  static std::string read(Attribute attr, Enum &value) {
    auto string = dyn_cast<StringAttr>(attr);
    std::string expected = "one of";
    for (const NamedValue<Enum> &entry : names(&value)) {
      if (string && string.getValue() == entry.name) {
        value = entry.value;
        return {};
      }
      expected += " \"" + entry.name.str() + "\"";
    }
    return expected;
  }
};

//===----------------------------------------------------------------------===//
// Symbols
//===----------------------------------------------------------------------===//

/// "gemm" + "_n32" + "_k64": the kind, then what a reader wants to tell kernels apart by.
struct Symbol {
  std::string text;

  Symbol &tag(StringRef name) {
    text += "_" + name.str();
    return *this;
  }
  Symbol &tag(StringRef name, int64_t value) {
    text += "_" + name.str() + std::to_string(value);
    return *this;
  }
  Symbol &tagIf(bool condition, StringRef name) { return condition ? tag(name) : *this; }
};

template <class Spec> StringRef cacheName(const Spec &s) {
  return s.codes == CacheCodes::None ? nameOf(s.cache) : nameOf(s.codes);
}

/// What a kernel rounds its rows to.
template <class Spec> StringRef outputName(const Spec &s) { return s.output == DType::U8 ? "to8" : "to16"; }

void describe(const EmbedSpec &s, Symbol &symbol) { symbol.tag(nameOf(s.table)).tag("d", s.width); }
void describe(const GatherRowsSpec &s, Symbol &symbol) { symbol.tag("d", s.width); }
void describe(const RmsNormSpec &s, Symbol &symbol) {
  symbol.tag("d", s.width).tagIf(!s.weight, "plain").tagIf(s.rows == Rows::R, "rows");
}
void describe(const GemmSpec &s, Symbol &symbol) {
  if (s.group)
    symbol.tag(nameOf(s.codes)).tag("g", s.group);
  else
    symbol.tag(nameOf(s.weight));
  symbol.tag("n", s.n).tag("k", s.k);
  if (s.batch != 1)
    symbol.tag(s.routing == Routing::None ? "h" : "e", s.batch);
  symbol.tagIf(s.input == DType::U8, "x8")
      .tagIf(s.input == DType::BF16, "x16")
      .tagIf(s.routing != Routing::None, nameOf(s.routing))
      .tagIf(s.epilogue != Epilogue::None, nameOf(s.epilogue))
      .tagIf(s.output != DType::F32, outputName(s))
      .tagIf(s.rows == Rows::R, "rows");
}
void describe(const RopeAnglesSpec &s, Symbol &symbol) { symbol.tag("d", 2 * static_cast<int64_t>(s.invFreq.size())); }
void describe(const RopeSpec &s, Symbol &symbol) { symbol.tag("h", s.heads).tag("d", s.dim); }
void describe(const CacheAppendSpec &s, Symbol &symbol) {
  symbol.tag("c", s.latent).tag("r", s.rope).tagIf(s.cache != DType::F32, cacheName(s));
}
void describe(const MlaAttentionSpec &s, Symbol &symbol) {
  symbol.tag("h", s.heads).tag("c", s.latent).tag("r", s.rope).tagIf(s.cache != DType::F32, cacheName(s));
}
void describe(const MlaCombineSpec &s, Symbol &symbol) { symbol.tag("h", s.heads).tag("c", s.latent); }
void describe(const MlaExpandedSpec &s, Symbol &symbol) {
  symbol.tag(nameOf(s.weight)).tag("h", s.heads).tag("k", s.nope).tag("v", s.value);
  symbol.tag("c", s.latent).tag("r", s.rope).tagIf(s.cache != DType::F32, cacheName(s));
  symbol.tagIf(s.output != DType::F32, outputName(s));
}
void describe(const RouteSpec &s, Symbol &symbol) {
  symbol.tag(s.sigmoid ? "sigmoid" : "softmax").tag("e", s.experts).tag("top", s.topk);
  if (s.shared)
    symbol.tag("shared", s.shared);
  symbol.tagIf(s.rows == Rows::R, "rows");
}
void describe(const DispatchSpec &s, Symbol &symbol) {
  symbol.tag("e", s.experts).tag("top", s.topk).tagIf(!s.members.empty(), "members").tagIf(s.rows == Rows::R, "rows");
}
void describe(const CombineSpec &s, Symbol &symbol) {
  symbol.tag("top", s.topk)
      .tag("d", s.width)
      .tagIf(s.residual, "add")
      .tagIf(!s.members.empty(), "members")
      .tagIf(s.rows == Rows::R, "rows");
}
void describe(const ArgmaxSpec &s, Symbol &symbol) { symbol.tag("c", s.count).tagIf(s.rows == Rows::R, "rows"); }
void describe(const ElementwiseSpec &s, Symbol &symbol) { symbol.tag("d", s.width).tagIf(s.rows == Rows::R, "rows"); }
void describe(const FakeQuantizeSpec &s, Symbol &symbol) {
  symbol.tag(nameOf(s.codes)).tag("d", s.width).tagIf(s.rows == Rows::R, "rows");
}

void describe(const QuantizeRowsSpec &s, Symbol &symbol) {
  symbol.tag("d", s.width).tag("plus", s.offset).tagIf(s.rows == Rows::R, "rows");
}

void describe(const CastRowsSpec &s, Symbol &symbol) {
  symbol.tag(nameOf(s.to)).tag("d", s.width).tagIf(s.rows == Rows::R, "rows");
}

template <MadeOfParts Spec> void describe(const Spec &s, Symbol &symbol) {
  symbol.text.clear();
  for (const KernelSpec &part : s.parts)
    symbol.text += (symbol.text.empty() ? "" : "_and_") + symbolFor(part);
}

} // namespace

//===----------------------------------------------------------------------===//
// The interface
//===----------------------------------------------------------------------===//

StringRef moec::kindOf(const KernelSpec &spec) { return kinds[spec.index()]; }

bool moec::worksOnRows(const KernelSpec &spec) {
  return std::visit(
      []<class Spec>(const Spec &) {
        using namespace llvm;
        return is_one_of<Spec, RmsNormSpec, RopeAnglesSpec, RopeSpec, CacheAppendSpec, CombineSpec, ElementwiseSpec,
                         FakeQuantizeSpec, QuantizeRowsSpec, CastRowsSpec>::value;
      },
      spec);
}

std::string moec::symbolFor(const KernelSpec &spec) {
  Symbol symbol;
  auto *elementwise = std::get_if<ElementwiseSpec>(&spec);
  symbol.text = elementwise ? (elementwise->swiglu ? "swiglu" : "add") : kindOf(spec).str();
  std::visit([&](const auto &s) { describe(s, symbol); }, spec);
  return symbol.text;
}

DictionaryAttr moec::toAttr(const KernelSpec &spec, MLIRContext *context) {
  AttrWriter write{Builder(context)};
  SmallVector<NamedAttribute> entries;
  std::visit(
      [&](const auto &s) {
        forEachField(s, [&](StringRef name, const auto &value) {
          entries.push_back(write.builder.getNamedAttr(name, write(value)));
        });
      },
      spec);
  return DictionaryAttr::get(context, entries);
}

FailureOr<KernelSpec> moec::fromAttr(StringRef kind, DictionaryAttr attr,
                                     llvm::function_ref<InFlightDiagnostic()> emitError) {
  const auto *found = llvm::find(kinds, kind);
  if (found == std::end(kinds)) {
    InFlightDiagnostic diag = emitError() << "'" << kind << "' is no kind of kernel; there are ";
    llvm::interleaveComma(kinds, diag);
    return diag;
  }

  KernelSpec spec = makeSpec(found - std::begin(kinds), std::make_index_sequence<std::variant_size_v<KernelSpec>>());
  LogicalResult result = mlir::success();
  SmallVector<StringRef> known;
  std::visit(
      [&](auto &s) {
        forEachField(s, [&](StringRef name, auto &value) {
          known.push_back(name);
          if (failed(result))
            return;
          Attribute entry = attr.get(name);
          if (!entry) {
            result = emitError() << "spec of a " << kind << " kernel lacks '" << name << "'";
            return;
          }
          std::string expected = AttrReader::read(entry, value);
          if (!expected.empty())
            result = emitError() << "'" << name << "' of a " << kind << " kernel is " << entry << ", expected "
                                 << expected;
        });
      },
      spec);
  if (failed(result))
    return failure();
  for (NamedAttribute entry : attr)
    if (!llvm::is_contained(known, entry.getName().getValue()))
      return emitError() << "spec of a " << kind << " kernel has an unknown key '" << entry.getName().getValue() << "'";
  return spec;
}
