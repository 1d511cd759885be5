// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "passes/Moe/WeightFormat.h"

#include "runtime/Support/Text.h"

#include "mlir/IR/BuiltinTypes.h"
#include "llvm/ADT/SmallVector.h"
#include "llvm/ADT/StringSwitch.h"

using namespace mlir;
using namespace mlir::moe;

moec::Result<WeightFormat> WeightFormat::parse(StringRef name) {
  SmallVector<StringRef> words;
  name.split(words, ':');
  WeightFormat format;
  format.element =
      llvm::StringSwitch<StringRef>(words[0]).Case("f32", "f32").Case("bf16", "bf16").Case("f16", "f16").Default("");
  format.quantizes = words[0] == "int4";
  bool known = format.quantizes || ((!format.element.empty() || words[0] == "keep") && words.size() == 1);
  for (StringRef word : ArrayRef(words).drop_front()) {
    if (word == "g32" || word == "g64" || word == "g128")
      word.drop_front().getAsInteger(10, format.group);
    else if (word == "f16" || word == "bf16")
      format.bf16Scales = word == "bf16";
    else
      known = false;
  }
  if (!known)
    return moec::Error{"unknown weight format " + moec::quote(name.str()) +
                       ", expected keep, f32, bf16, f16 or int4, the last with :g32, :g64 or :g128 and :f16 or :bf16"};
  return format;
}

Attribute WeightFormat::step(MLIRContext *context) const {
  Builder builder(context);
  if (quantizes)
    return QuantizeAttr::get(context, CodeFormat::Int4, group,
                             bf16Scales ? Type(builder.getBF16Type()) : builder.getF16Type());
  if (element.empty())
    return nullptr;
  return CastAttr::get(context, element == "f32"    ? Type(builder.getF32Type())
                                : element == "bf16" ? Type(builder.getBF16Type())
                                                    : builder.getF16Type());
}
