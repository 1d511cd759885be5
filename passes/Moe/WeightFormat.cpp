// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "passes/Moe/WeightFormat.h"

#include "runtime/Support/Text.h"

#include "mlir/IR/BuiltinTypes.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/SmallVector.h"

using namespace mlir;
using namespace mlir::moe;

moec::Result<WeightFormat> WeightFormat::parse(StringRef name) {
  struct Named {
    StringRef name, element;
    CodeFormat codes;
    int64_t group;
    Scale scale;
    std::initializer_list<StringRef> options;
  };
  static const Named known[] = {
      {"keep", "", CodeFormat::Int4, 0, Scale::F16, {}},
      {"f32", "f32", CodeFormat::Int4, 0, Scale::F16, {}},
      {"bf16", "bf16", CodeFormat::Int4, 0, Scale::F16, {"a16"}},
      {"f16", "f16", CodeFormat::Int4, 0, Scale::F16, {}},
      {"int8", "", CodeFormat::Int8, 0, Scale::F32, {"weights", "a32"}},
      {"fp8", "", CodeFormat::F8E4M3, fp8Block, Scale::F32, {"weights"}},
      {"int4", "", CodeFormat::Int4, 32, Scale::F16, {"g32", "g64", "g128", "f16", "bf16", "e8m0", "zero", "a32"}},
      {"mxfp4", "", CodeFormat::F4E2M1, 32, Scale::E8M0, {"a32"}},
      {"nvfp4", "", CodeFormat::F4E2M1, 16, Scale::E4M3, {}}};
  SmallVector<StringRef> words;
  name.split(words, ':');
  const Named *found = llvm::find_if(known, [&](const Named &format) { return format.name == words[0]; });
  if (found == std::end(known)) {
    std::string names;
    for (const Named &format : known)
      names += (names.empty() ? "" : &format + 1 == std::end(known) ? " or " : ", ") + format.name.str();
    return moec::Error{"unknown weight format " + moec::quote(name.str()) + ", expected " + names};
  }
  WeightFormat format;
  format.element = found->element;
  format.quantizes = found->element.empty() && found->name != "keep";
  format.codes = found->codes;
  format.group = found->group;
  format.scale = found->scale;
  format.activationGroup = found->group;
  format.roundsActivations =
      format.quantizes && (format.codes == CodeFormat::Int8 || format.codes == CodeFormat::F8E4M3);
  for (StringRef word : ArrayRef(words).drop_front()) {
    if (!llvm::is_contained(found->options, word)) {
      std::string options;
      for (StringRef option : found->options)
        options += (options.empty() ? " :" : ", :") + option.str();
      return moec::Error{"unknown weight format " + moec::quote(name.str()) + ": " + found->name.str() + " takes " +
                         (options.empty() ? "no options" : "the options" + options)};
    }
    if (word == "weights")
      format.roundsActivations = false;
    else if (word == "a32")
      format.activationGroup = 32, format.roundsActivations = true;
    else if (word == "a16")
      format.roundsActivations = true;
    else if (word == "zero")
      format.codes = CodeFormat::Int4Zero;
    else if (word.consume_front("g"))
      word.getAsInteger(10, format.group);
    else
      format.scale = word == "f16" ? Scale::F16 : word == "bf16" ? Scale::BF16 : Scale::E8M0;
  }
  if (format.codes == CodeFormat::Int4Zero && format.scale == Scale::E8M0)
    return moec::Error{"unknown weight format " + moec::quote(name.str()) +
                       ": codes with a zero point have f16 or bf16 scales"};
  return format;
}

Attribute WeightFormat::step(MLIRContext *context, int64_t cols, Rounding rounding) const {
  Builder builder(context);
  if (quantizes) {
    Type type = scale == Scale::F16    ? Type(builder.getF16Type())
                : scale == Scale::BF16 ? builder.getBF16Type()
                : scale == Scale::F32  ? builder.getF32Type()
                : scale == Scale::E8M0 ? Type(Float8E8M0FNUType::get(context))
                                       : Float8E4M3FNType::get(context);
    bool blocks = codes == CodeFormat::F8E4M3;
    return QuantizeAttr::get(context, codes, group ? group : cols, type, blocks ? fp8Block : 1,
                             blocks && rounding == Rounding::Importance ? Rounding::Nearest : rounding);
  }
  if (element.empty())
    return nullptr;
  return CastAttr::get(context, element == "f32"    ? Type(builder.getF32Type())
                                : element == "bf16" ? Type(builder.getBF16Type())
                                                    : builder.getF16Type());
}

Attribute WeightFormat::activations(MLIRContext *context, int64_t cols) const {
  if (!roundsActivations)
    return nullptr;
  if (!quantizes)
    return CastAttr::get(context, BFloat16Type::get(context));
  CodeFormat rounded = codes == CodeFormat::F8E4M3 ? codes : CodeFormat::Int8;
  return QuantizeAttr::get(context, rounded, activationGroup ? activationGroup : cols, Float32Type::get(context),
                           /*rows=*/1, Rounding::Nearest);
}
