// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef MOEC_DIALECTS_MOE_MOEATTRIBUTES_TD
#define MOEC_DIALECTS_MOE_MOEATTRIBUTES_TD

include "dialects/Moe/MoeDialect.td"
include "mlir/IR/AttrTypeBase.td"
include "mlir/IR/EnumAttr.td"

class Moe_Attr<string name, string attrMnemonic> : AttrDef<Moe_Dialect, name> {
  let mnemonic = attrMnemonic;
}

//===----------------------------------------------------------------------===//
// Enumerations
//===----------------------------------------------------------------------===//

def Moe_Scoring : I32EnumAttr<"Scoring", "how router logits become scores", [
    I32EnumAttrCase<"Softmax", 0, "softmax">,
    I32EnumAttrCase<"Sigmoid", 1, "sigmoid">]> {
  let cppNamespace = "::mlir::moe";
  let genSpecializedAttr = 0;
}
def Moe_ScoringAttr : EnumAttr<Moe_Dialect, Moe_Scoring, "scoring"> {
  let assemblyFormat = "$value";
}

def Moe_GroupScore : I32EnumAttr<"GroupScore", "how a group of experts is scored", [
    I32EnumAttrCase<"Max", 0, "max">,
    I32EnumAttrCase<"Top2Sum", 1, "top2_sum">]> {
  let cppNamespace = "::mlir::moe";
  let genSpecializedAttr = 0;
}
def Moe_GroupScoreAttr : EnumAttr<Moe_Dialect, Moe_GroupScore, "group_score"> {
  let assemblyFormat = "$value";
}

//===----------------------------------------------------------------------===//
// Rotary embedding
//===----------------------------------------------------------------------===//

def Moe_RopeAttr : Moe_Attr<"Rope", "rope"> {
  let summary = "Inverse frequencies of a rotary position embedding";
  let description = [{
    `inv_freq[i]` for the pairs `i = 0 .. dim/2 - 1`, in float32, and the factor that
    multiplies every cosine and sine (YaRN's attention factor; 1 in every DeepSeek release).
    Pairs are interleaved: pair `i` is the channels `(2i, 2i + 1)`.
  }];
  let parameters = (ins "::mlir::DenseF32ArrayAttr":$inv_freq, "::mlir::FloatAttr":$factor);
  let assemblyFormat = "`<` `factor` `=` $factor `,` `inv_freq` `=` $inv_freq `>`";
}

//===----------------------------------------------------------------------===//
// Recipes: how a weight is made from tensors of the checkpoint
//===----------------------------------------------------------------------===//

class Moe_StepAttr<string name, string attrMnemonic> : Moe_Attr<name, attrMnemonic>;

def Moe_StackAttr : Moe_StepAttr<"Stack", "stack"> {
  let summary = "Stack a family of tensors along a new leading dimension";
  let description = [{
    Each source of the weight whose name holds `{e}` stands for `count` tensors, with
    `{e}` = 0 .. count-1; they become one tensor `[count, ...]`.
  }];
  let parameters = (ins "int64_t":$count);
  let assemblyFormat = "`<` $count `>`";
}

def Moe_DequantFp8BlockAttr : Moe_StepAttr<"DequantFp8Block", "dequant_fp8_block"> {
  let summary = "(weight f8E4M3FN, scale f32) -> weight * scale of its block";
  let description = [{
    `W[.., i, j] = float(q[.., i, j]) * scale[.., i / rows, j / cols]`, rounded once to `type`.
    Blocks at the edges are partial. Consumes two tensors, gives one.
    Source: DeepSeek-V3, README_WEIGHTS.
  }];
  let parameters = (ins "int64_t":$rows, "int64_t":$cols, "::mlir::Type":$type);
  let assemblyFormat = "`<` custom<BlockShape>($rows, $cols) `,` $type `>`";
}

def Moe_HeadRowsAttr : Moe_StepAttr<"HeadRows", "head_rows"> {
  let summary = "[H * R, C] -> rows [begin, end) of each head: [H, end - begin, C]";
  let parameters = (ins "int64_t":$heads, "int64_t":$begin, "int64_t":$end);
  let assemblyFormat = "`<` $heads `,` $begin `,` $end `>`";
}

def Moe_TransposeAttr : Moe_StepAttr<"Transpose", "transpose"> {
  let summary = "Swap the last two dimensions";
}

def Moe_CastAttr : Moe_StepAttr<"Cast", "cast"> {
  let summary = "Convert elements, to nearest even";
  let parameters = (ins "::mlir::Type":$type);
  let assemblyFormat = "`<` $type `>`";
}

def Moe_PadAttr : Moe_StepAttr<"Pad", "pad"> {
  let summary = "Append zeros to the last dimension up to `size`";
  let parameters = (ins "int64_t":$size);
  let assemblyFormat = "`<` $size `>`";
}

def Moe_PackPanelsAttr : Moe_StepAttr<"PackPanels", "pack_panels"> {
  let summary = "Lay rows out in panels, the order in which a GEMM reads them";
  let description = [{
    One tensor `[(B,) N, K]` -> `[B, ceil(N / width), K, width]`: element `[b, p, k, l]` is
    row `p * width + l`, column `k`; rows past `N` are zero. Two tensors `[(B,) N, K]`
    (gate, up) -> `[B, ceil(N / (width / 2)), K, width]`, where the lanes of a panel are
    `width / 2` rows of the first, then the same rows of the second. `B` is 1 for matrices.
  }];
  let parameters = (ins "int64_t":$width);
  let assemblyFormat = "`<` $width `>`";
}

def Moe_PackBlockScalesAttr : Moe_StepAttr<"PackBlockScales", "pack_block_scales"> {
  let summary = "Lay block scales out beside the panels of `pack_panels`";
  let description = [{
    The scales `[(B,) ceil(N / rows), ceil(K / cols)]` of one tensor, or of two (gate, up), ->
    `[B, panels, ceil(K / cols), width]`: one scale for each lane of a panel and block of columns.
    Lanes past `N` have scale 0. `n` is `N`.
  }];
  let parameters = (ins "int64_t":$width, "int64_t":$n, "int64_t":$rows);
  let assemblyFormat = "`<` $width `,` $n `,` $rows `>`";
}

#endif
