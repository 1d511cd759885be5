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
  let summary = "How router logits become scores";
  let description = [{
    `softmax` over all experts (DeepSeek-V2, arXiv:2405.04434, sec. 2.2.1), or `sigmoid` of each
    logit by itself (DeepSeek-V3, arXiv:2412.19437, sec. 2.1.2).
  }];
  let assemblyFormat = "$value";
}

def Moe_GroupScore : I32EnumAttr<"GroupScore", "how a group of experts is scored", [
    I32EnumAttrCase<"Max", 0, "max">,
    I32EnumAttrCase<"Top2Sum", 1, "top2_sum">]> {
  let cppNamespace = "::mlir::moe";
  let genSpecializedAttr = 0;
}
def Moe_GroupScoreAttr : EnumAttr<Moe_Dialect, Moe_GroupScore, "group_score"> {
  let summary = "How a group of experts is scored";
  let description = [{
    `max`: its best expert (DeepSeek-V2, arXiv:2405.04434, sec. 2.2.2). `top2_sum`: the sum of
    its two best (DeepSeek-V3, arXiv:2412.19437, sec. 2.1.2).
  }];
  let assemblyFormat = "`<` $value `>`";
}

//===----------------------------------------------------------------------===//
// Rotary embedding
//===----------------------------------------------------------------------===//

def Moe_RopeAttr : Moe_Attr<"Rope", "rope"> {
  let summary = "Inverse frequencies of a rotary position embedding";
  let description = [{
    `inv_freq[i]` for the pairs `i = 0 .. dim/2 - 1`, in float32, and the factor that
    multiplies every cosine and sine (YaRN's attention factor; 1 in every DeepSeek release).
    Pairs are interleaved: pair `i` is the channels `(2i, 2i + 1)`. An importer evaluates
    base, YaRN ramp and scaling once; no later stage knows how the numbers came about.
    Prints once per module, as the alias `#rope`.
    Source: RoFormer, arXiv:2104.09864, sec. 3.4.2; YaRN, arXiv:2309.00071, sec. 3.2 to 3.4.

    - (C1) `inv_freq` has at least one element.
    - (C2) Every element of `inv_freq` is finite.
    - (C3) `factor` is a finite f64.

    ```mlir
    #rope = #moe.rope<factor = 1.0, inv_freq = [1.0, 0.01]>
    func.func private @rotated_by() attributes {moe.example = #rope}
    ```
  }];
  let parameters = (ins "::mlir::DenseF32ArrayAttr":$inv_freq, "::mlir::FloatAttr":$factor);
  let assemblyFormat = "`<` `factor` `=` $factor `,` `inv_freq` `=` custom<Frequencies>($inv_freq) `>`";
  let genVerifyDecl = 1;
  let genMnemonicAlias = 1;
}

//===----------------------------------------------------------------------===//
// Recipes: how a weight is made from tensors of the checkpoint
//===----------------------------------------------------------------------===//

/// A step of a recipe. `dialects/Moe/Recipe.h` checks steps against each other and the result.
class Moe_StepAttr<string name, string attrMnemonic> : Moe_Attr<name, attrMnemonic>;

def Moe_StackAttr : Moe_StepAttr<"Stack", "stack"> {
  let summary = "Stack families of tensors along a new leading dimension";
  let description = [{
    Each source of the weight whose name holds `{e}` stands for `count` tensors, with
    `{e}` = 0 .. count-1, or with the numbers that `members` lists; they become one tensor
    `[count, ...]`. Other tensors stay as they are.

    - (C1) `count` is positive.
    - (C2) `members` are ascending numbers, none negative.

    ```mlir
    func.func private @stacked() attributes {
      all = #moe.stack<64>, some = #moe.stack<[0, 3, 5]>
    }
    ```
  }];
  let parameters = (ins "int64_t":$count, OptionalParameter<"::mlir::DenseI64ArrayAttr">:$members);
  let builders = [
    AttrBuilder<(ins "int64_t":$count), [{
      return $_get($_ctxt, count, ::mlir::DenseI64ArrayAttr());
    }]>,
    AttrBuilder<(ins "::llvm::ArrayRef<int64_t>":$members), [{
      return $_get($_ctxt, static_cast<int64_t>(members.size()), ::mlir::DenseI64ArrayAttr::get($_ctxt, members));
    }]>];
  let assemblyFormat = "`<` custom<Stacked>($count, $members) `>`";
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    /// What `{e}` is for the tensor at `index` of the stack.
    int64_t memberAt(int64_t index) const { return getMembers() ? getMembers()[index] : index; }
  }];
}

def Moe_CodeFormat : I32EnumAttr<"CodeFormat", "what a code stands for before its scale", [
    I32EnumAttrCase<"Int4", 0, "int4">,
    I32EnumAttrCase<"Int4Zero", 1, "int4_zero">,
    I32EnumAttrCase<"Int8", 2, "int8">,
    I32EnumAttrCase<"F8E4M3", 3, "f8e4m3">,
    I32EnumAttrCase<"F4E2M1", 4, "f4e2m1">]> {
  let cppNamespace = "::mlir::moe";
  let genSpecializedAttr = 0;
}

/// An enum that need not be written.
class Moe_EnumWithDefault<EnumInfo enumInfo, string value> : EnumParameter<enumInfo> {
  let defaultValue = enumInfo.cppNamespace # "::" # enumInfo.className # "::" # value;
}

def Moe_Rounding : I32EnumAttr<"Rounding", "how codes are chosen", [
    I32EnumAttrCase<"Nearest", 0, "nearest">,
    I32EnumAttrCase<"Importance", 1, "importance">,
    I32EnumAttrCase<"Feedback", 2, "feedback">]> {
  let cppNamespace = "::mlir::moe";
  let genSpecializedAttr = 0;
}

def Moe_QuantizeAttr : Moe_StepAttr<"Quantize", "quantize"> {
  let summary = "Round to codes that share a scale in groups; gives the values they stand for";
  let description = [{
    The matrix is cut into groups of `rows` x `group` elements, smaller ones at its ends. With `m` the
    element of largest magnitude in a group (of two, the negative one), `amax = |m|`, and `a` that of the
    whole matrix:

    | codes | scale | code, to nearest, ties to even | value |
    | --- | --- | --- | --- |
    | `int4` | `m / -8 + 0`; in f8E8M0 `amax / 7.5` | `x * i` within -8 .. 7 | `code * scale` |
    | `int4_zero` | `(max(x, 0) - min(x, 0)) / 15` | `rint(x * i) + z` within 0 .. 15, `z = rint(-min(x, 0) * i)` within 0 .. 15 | `(code - z) * scale` |
    | `int8` | `amax / 127` | `x * i` within -127 .. 127 | `code * scale` |
    | `f8e4m3` | `amax / 448` | `x * i` in e4m3, saturating | `code * scale` |
    | `f4e2m1` | `amax / 6`; in f8E8M0 `2^(floor(log2(amax)) - 2)` | `x * i` in e2m1, saturating | `code * scale` |

    Scales are rounded to the type `scale`, to nearest even; to f8E8M0 upwards, where a group of zeros has 1.
    `i = f32(1 / scale)`, or 0 if that is not finite. f8E4M3 scales are counted in units of
    `u = f32(a / (largest code * 448))` (1 for a matrix of zeros): they are `amax / largest code / u`, rounded,
    and `scale` in the other columns is `f32(rounded * u)`.

    So `int4` uses all 16 codes, as ggml's Q4_0 does it; `f4e2m1` with groups of 32 and f8E8M0 scales is
    MXFP4 (OCP Microscaling Formats 1.0, sec. 6.3), with groups of 16 and f8E4M3 scales NVFP4; `f8e4m3` with
    128 x 128 is DeepSeek-V3's (arXiv:2412.19437, sec. 3.3.2).

    `rounding` says how codes are chosen. `nearest`: as above. `importance`: of several scales (and zero
    points) for each group of one row the one with the least sum of `h[j] * (x[j] - y[j])^2`. `feedback`:
    column by column, the error of each spread over those after it (and with scales as in `importance`, unless
    several rows share them), so that
    `sum_jk (x - y)[j] * H[j, k] * (x - y)[k]` becomes small. `H` is the second moment of the inputs that a
    calibration found for the matrix, `h` its diagonal: see `dialects/Formats/Feedback.h`. Both need a calibration.

    Results are f32; where a target has a kernel for the codes, `pack_groups` stores them instead. It
    acts on each tensor.

    - (C1) `group` is positive, for codes of 4 bits a multiple of 32; 16 with f8E4M3 scales.
    - (C2) `scale` is bf16, f16 or f8E8M0 for int4, without f8E8M0 for int4_zero; f32 for int8 and f8e4m3;
      f8E8M0 or f8E4M3 for f4e2m1.
    - (C3) `rows` is positive, and 1 except for f8e4m3, to nearest or by feedback.
  }];
  let parameters = (ins EnumParameter<Moe_CodeFormat>:$codes, "int64_t":$group, "::mlir::Type":$scale,
                    DefaultValuedParameter<"int64_t", "1">:$rows,
                    Moe_EnumWithDefault<Moe_Rounding, "Nearest">:$rounding);
  let assemblyFormat = [{
    `<` $codes `,` `group` `=` $group `,` `scale` `=` $scale (`rows` $rows^)? (`rounding` $rounding^)? `>`
  }];
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    /// The same without MLIR.
    moec::GroupFormat getFormat() const;
    /// Whether rows of `cols` can be cut so: 4-bit codes have whole groups, of whole blocks of 32.
    bool divides(int64_t cols) const;
    /// Bytes of a panel of `width` lanes: see `pack_groups`.
    int64_t packedBytes(int64_t width, int64_t cols) const { return getFormat().panelBytes(width, cols); }
  }];
}

def Moe_StoredFormat : I32EnumAttr<"StoredFormat", "how a checkpoint stores a quantized weight", [
    I32EnumAttrCase<"Fp8", 0, "fp8">,
    I32EnumAttrCase<"Gptq", 1, "gptq">,
    I32EnumAttrCase<"GptqV2", 2, "gptq_v2">,
    I32EnumAttrCase<"Awq", 3, "awq">,
    I32EnumAttrCase<"Packed", 4, "packed">,
    I32EnumAttrCase<"Int8", 5, "int8">,
    I32EnumAttrCase<"Nvfp4", 6, "nvfp4">,
    I32EnumAttrCase<"Nvfp4Modelopt", 7, "nvfp4_modelopt">,
    I32EnumAttrCase<"Mxfp4", 8, "mxfp4">,
    I32EnumAttrCase<"GgufQ80", 9, "gguf_q8_0">,
    I32EnumAttrCase<"GgufQ40", 10, "gguf_q4_0">,
    I32EnumAttrCase<"GgufQ4K", 11, "gguf_q4_k">,
    I32EnumAttrCase<"GgufQ6K", 12, "gguf_q6_k">]> {
  let cppNamespace = "::mlir::moe";
  let genSpecializedAttr = 0;
}

def Moe_DequantAttr : Moe_StepAttr<"Dequant", "dequant"> {
  let summary = "The tensors of a quantized weight -> the values that its codes stand for";
  let description = [{
    `W[i, j] = (code[i, j] - zero[g]) * scale[g] * global`, rounded once to `type`, where `g` is the
    group of (i, j). It consumes, for each weight, as many consecutive tensors as the format has, in
    the order codes, scales, then what there is of global scale, zero points, group index and stored
    shape, and gives one matrix.

    | format | codes | scales | more |
    | --- | --- | --- | --- |
    | `fp8 RxC` | f8E4M3FN | one for R x C weights | |
    | `gptq 1xG`, `gptq_v2 1xG` | packed along inputs, `[in, out]` | one for G inputs | zero points; index if `indexed` |
    | `awq 1xG` | int4, packed along outputs, `[in, out]` | one for G inputs | zero points |
    | `packed 1xG` | packed along inputs | one for G inputs | zero points if `zeros`; index if `indexed`; its shape |
    | `int8 RxC` | signed bytes | one for R x C weights | |
    | `nvfp4`, `nvfp4_modelopt` | e2m1, two to a byte | e4m3 for 16 inputs | a global scale that divides, or multiplies |
    | `mxfp4` | e2m1, two to a byte | e8m0 for 32 inputs | |
    | `gguf_q8_0`, `gguf_q4_0`, `gguf_q4_k`, `gguf_q6_k` | one tensor of bytes `[out, bytes of a row]` | in each block of 32 or 256 inputs | |

    `?` in a block stands for a whole dimension; blocks at the edges are partial. `gptq`, `gptq_v2` and
    `packed` have codes of `bits` 4 or 8. With `symmetric`, all zero points of a gptq weight are the
    same, which tells whether they are stored less 1. `scale`, if given, is what scales are stored
    as; int4 codes around 8 in groups with such scales can be packed as they are (`pack_groups`).
    Exact layouts: `dialects/Formats/Format.h`; of ggml's blocks, whose values are what ggml's f32
    arithmetic gives: `dialects/Formats/GgufMatrix.cpp`.
    Sources: DeepSeek-V3, README_WEIGHTS, and arXiv:2412.19437, sec. 3.3.2; OCP Microscaling Formats
    1.0; the packing of AutoGPTQ, AutoAWQ and compressed-tensors.

    - (C1) Blocks are positive; formats of groups have one row, those without a block the one they define.
    - (C2) `type` is f32, bf16 or f16; f32 for ggml's blocks.
    - (C3) `bits` is 4 or 8 for gptq, gptq_v2 and packed, and what the format has for others.
    - (C4) Only gptq and gptq_v2 are `symmetric`, only `packed` has `zeros`, only these three are `indexed`.
    - (C5) `scale` is f16 or bf16.
  }];
  let parameters = (ins EnumParameter<Moe_StoredFormat>:$format, "int64_t":$rows, "int64_t":$cols, "int64_t":$bits,
                    "bool":$symmetric, "bool":$zeros, "bool":$indexed, OptionalParameter<"::mlir::Type">:$scale,
                    "::mlir::Type":$type);
  let assemblyFormat = [{
    `<` custom<StoredFormat>($format, $rows, $cols, $bits, $symmetric, $zeros, $indexed, $scale) `,` $type `>`
  }];
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    /// How ggml's blocks are decoded; null for formats that have a description.
    const moec::GgufType *getBlocks() const;
    /// The whole description, if `getBlocks` is null. Tensors have the names that DeepSeek or the format's own package
    /// gives them.
    moec::Format getDescription() const;
    /// Tensors of the checkpoint for each weight.
    int64_t getNumSources() const;
    /// The quantization that codes and scales are laid out as, where they are int4 around 8 in groups of whole blocks
    /// of columns, with scales that are known to be f16 or bf16; else null.
    QuantizeAttr getInt4Groups() const;
    /// The step for a description; whether a group index is among the sources, and what scales are stored as.
    static DequantAttr of(::mlir::MLIRContext *context, const moec::Format &format, bool indexed, moec::DType scale,
                          ::mlir::Type type);
    /// The same for ggml's blocks, whose type is one of those above.
    static DequantAttr of(::mlir::MLIRContext *context, const moec::GgufType &blocks);
  }];
}

def Moe_HeadRowsAttr : Moe_StepAttr<"HeadRows", "head_rows"> {
  let summary = "[H * R, C] -> rows [begin, end) of each head: [H, end - begin, C]";
  let description = [{
    `y[h, i, c] = x[h * R + begin + i, c]`, where `R` is the number of rows over `heads`.
    Cuts the key part and the value part out of `kv_b_proj` (DeepSeek-V2, arXiv:2405.04434,
    sec. 2.1.2, where they are `W^UK` and `W^UV`).

    - (C1) `heads` is positive.
    - (C2) `0 <= begin < end`.
  }];
  let parameters = (ins "int64_t":$heads, "int64_t":$begin, "int64_t":$end);
  let assemblyFormat = "`<` $heads `,` $begin `,` $end `>`";
  let genVerifyDecl = 1;
}

def Moe_ConcatAttr : Moe_StepAttr<"Concat", "concat"> {
  let summary = "[R0, C], [R1, C], .. -> [R0 + R1 + .., C]: the rows of all tensors, one after the other";
  let description = [{
    Makes one matrix of the whole list, whose tensors have one element type and as many rows as `rows` says:
    `y[R0 + .. + R(i - 1) + j, c] = x_i[j, c]`. Codes and scales of quantized parts stay what they are.

    - (C1) `rows` are two or more positive numbers.

    ```mlir
    func.func private @joined() attributes {both = #moe.concat<[1536, 576]>}
    ```
  }];
  let parameters = (ins ArrayRefParameter<"int64_t">:$rows);
  let assemblyFormat = "`<` `[` $rows `]` `>`";
  let genVerifyDecl = 1;
}

def Moe_Axis : I32EnumAttr<"Axis", "which dimension of a matrix", [
    I32EnumAttrCase<"Rows", 0, "rows">,
    I32EnumAttrCase<"Columns", 1, "columns">]> {
  let cppNamespace = "::mlir::moe";
  let genSpecializedAttr = 0;
}

def Moe_AppendAttr : Moe_StepAttr<"Append", "append"> {
  let summary = "[E, R, C] and a matrix of `count` more of these -> [E + count, R, C]";
  let description = [{
    Takes the list by twos, a stacked tensor `x` and a matrix `m`, and makes one tensor of each two, which begins with
    `x`. What follows are `count` slices of `m`, along its `rows` (`m` is `[count R, C]`) or `columns`
    (`[R, count C]`):

    ```
    y[E + i, r, c] = m[i R + r, c]      // rows
    y[E + i, r, c] = m[r, i C + c]      // columns
    ```

    So the shared expert of a layer, which is `count` times as wide as a routed one, is the last `count` of its
    experts: gate and up by rows, down by columns. Slices that begin within a group of stored codes are an error.

    - (C1) `count` is positive.

    ```mlir
    func.func private @appended() attributes {gate = #moe.append<rows, 2>, down = #moe.append<columns, 2>}
    ```
  }];
  let parameters = (ins EnumParameter<Moe_Axis>:$axis, "int64_t":$count);
  let assemblyFormat = "`<` $axis `,` $count `>`";
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    bool isByRows() const { return getAxis() == Axis::Rows; }
  }];
}

def Moe_ColumnsAttr : Moe_StepAttr<"Columns", "columns"> {
  let summary = "[.., C] -> columns [begin, end)";
  let description = [{
    `y[.., c] = x[.., begin + c]`. A `moe.split` of a weight becomes one for each part.

    - (C1) `0 <= begin < end`.
  }];
  let parameters = (ins "int64_t":$begin, "int64_t":$end);
  let assemblyFormat = "`<` $begin `,` $end `>`";
  let genVerifyDecl = 1;
}

def Moe_ReshapeAttr : Moe_StepAttr<"Reshape", "reshape"> {
  let summary = "The elements of each row, in order, under another shape";
  let description = [{
    What `moe.reshape` does, on a tensor of shape `from`; a `moe.reshape` of a weight becomes one.

    - (C1) `from` and `to` have two or three dimensions, all positive.
    - (C2) They have equal first dimensions, and equally many elements.

    ```mlir
    func.func private @reshaped() attributes {heads = #moe.reshape<[8, 32], [8, 4, 8]>}
    ```
  }];
  let parameters = (ins ArrayRefParameter<"int64_t">:$from, ArrayRefParameter<"int64_t">:$to);
  let assemblyFormat = "`<` `[` $from `]` `,` `[` $to `]` `>`";
  let genVerifyDecl = 1;
}

def Moe_SumAttr : Moe_StepAttr<"Sum", "sum"> {
  let summary = "Add tensors by twos";
  let description = [{
    Takes the list by twos, tensors of one shape, and makes `y[..] = x0[..] + x1[..]` of each two, in f32. A `moe.add`
    of two weights that are made in one way becomes one.
  }];
}

def Moe_TransposeAttr : Moe_StepAttr<"Transpose", "transpose"> {
  let summary = "Swap the last two dimensions";
  let description = [{
    `y[.., i, j] = x[.., j, i]`.
  }];
}

def Moe_CastAttr : Moe_StepAttr<"Cast", "cast"> {
  let summary = "Convert elements, to nearest even";
  let description = [{
    `y[..] = round(x[..])` to `type`; what overflows becomes an infinity, as IEEE 754 has it.

    - (C1) `type` is f32, bf16 or f16.
  }];
  let parameters = (ins "::mlir::Type":$type);
  let assemblyFormat = "`<` $type `>`";
  let genVerifyDecl = 1;
}

def Moe_ScaleColumnsAttr : Moe_StepAttr<"ScaleColumns", "scale_columns"> {
  let summary = "Multiply each column by an element of another tensor";
  let description = [{
    `y[.., c] = x[.., c] * by[c]`, in f32, where `by` names a vector of the checkpoint that is no source of the weight:
    so it is there once for all tensors of the list, and recipes of weights that read one input stay equal. A product
    of two numbers of 16 bits is exact, short of overflow and underflow. It puts the weight of a norm into the matrices
    that multiply what the norm gives.

    - (C1) `by` is not empty and no family.

    ```mlir
    func.func private @scaled() attributes {step = #moe.scale_columns<"layers.0.input_layernorm.weight">}
    ```
  }];
  let parameters = (ins "::mlir::StringAttr":$by);
  let assemblyFormat = "`<` $by `>`";
  let genVerifyDecl = 1;
}

def Moe_PadAttr : Moe_StepAttr<"Pad", "pad"> {
  let summary = "Append zeros to the last dimension up to `size`";
  let description = [{
    `y[.., i] = x[.., i]` for `i` below the width of `x`, else 0, for `i` = 0 .. size-1.

    - (C1) `size` is positive.
  }];
  let parameters = (ins "int64_t":$size);
  let assemblyFormat = "`<` $size `>`";
  let genVerifyDecl = 1;
}

def Moe_PackPanelsAttr : Moe_StepAttr<"PackPanels", "pack_panels"> {
  let summary = "Lay rows out in panels, the order in which a GEMM reads them";
  let description = [{
    One tensor `[(B,) N, C]` -> `[B, ceil(N / width), C, width]`: element `[b, p, c, l]` is
    row `p * width + l`, column `c`; rows past `N` are zero. Two tensors `[(B,) N, C]`
    (gate, up) -> `[B, ceil(N / (width / 2)), C, width]`, where the lanes of a panel are
    `width / 2` rows of the first, then the same rows of the second. `B` is 1 for matrices.

    With `columns` other than 1, so many neighbouring columns of a lane lie together, in place of all lanes of a column:
    the part `[b, p, c .. c + n, :]` of the result, for `c` a multiple of `columns` and `n` = `min(columns, C - c)`,
    holds lane by lane the `n` columns from `c` on. Instructions that sum up products of bf16 take two together.

    - (C1) `width` and `columns` are positive.
  }];
  let parameters = (ins "int64_t":$width, DefaultValuedParameter<"int64_t", "1">:$columns);
  let assemblyFormat = "`<` $width (`,` $columns^)? `>`";
  let genVerifyDecl = 1;
}

def Moe_PackBlockScalesAttr : Moe_StepAttr<"PackBlockScales", "pack_block_scales"> {
  let summary = "Lay block scales out beside the panels of `pack_panels`";
  let description = [{
    The scales `[(B,) ceil(n / rows), ceil(C / cols)]` of one tensor, or of two (gate, up), ->
    `[B, panels, ceil(C / cols), width]` in f32, whatever they are stored as (f32, f16, bf16 or e8m0):
    one scale for each lane of a panel and block of columns.
    `n` is the number of rows that are scaled; lanes past it have scale 0.

    - (C1) `width`, `n` and `rows` are positive.
  }];
  let parameters = (ins "int64_t":$width, "int64_t":$n, "int64_t":$rows);
  let assemblyFormat = "`<` $width `,` $n `,` $rows `>`";
  let genVerifyDecl = 1;
}

def Moe_PackGroupsAttr : Moe_StepAttr<"PackGroups", "pack_groups"> {
  let summary = "Lay out codes and scales in panels, group by group, as one stream of bytes";
  let description = [{
    One quantized tensor `[(B,) N, K]`, or two (gate, up) that share panels as in `pack_panels`,
    -> bytes `[B, panels, bytes of a panel]`. A panel is the f32 `u` of each lane, if scales are f8E4M3, and
    then one unit of columns after the other. A unit is a group, or two of 16 columns: the scales of its lanes,
    for one group and then the other; with `int4_zero` a byte for the zero point of each lane; the codes.
    Codes of 8 bits: for each four columns `4 q`, each lane and each `j` = 0 .. 3 the byte of column
    `4 q + j`. Codes of 4 bits: for each 32 columns `t`, each `q` = 0 .. 3, each lane and each `j` = 0 .. 3

    ```
    code[32 t + 4 q + j] | code[32 t + 16 + 4 q + j] << 4        // int4: of code + 8
    ```

    so that a 32-bit lane holds four consecutive columns, or four in its low nibbles and four in its high
    ones. Lanes past `N` are zeros that were quantized; columns past `K` in a last word are code 0. `B` is 1
    for matrices.

    - (C1) `width` is positive.
  }];
  let parameters = (ins "int64_t":$width);
  let assemblyFormat = "`<` $width `>`";
  let genVerifyDecl = 1;
}

//===----------------------------------------------------------------------===//
// Caches
//===----------------------------------------------------------------------===//

def Moe_CacheCodesAttr : Moe_Attr<"CacheCodes", "cache_codes"> {
  let summary = "Cache entries whose latents are codes in groups that share a scale";
  let description = [{
    The first `channels` channels of an entry, its latent, are cut into groups of 128, of which the last one may be
    smaller. Of each group, with `amax` the greatest `|x[c]|` in it:

    ```
    scale   = f32(amax / 127)                                        // int8
    scale   = f32(amax / 448)                                        // f8e4m3
    i       = f32(1 / scale), or 0 where that is not finite
    code[c] = rint(x[c] * i) within -127 .. 127                      // int8: the exact product
    code[c] = e4m3(f32(x[c] * i)), at most 448 in magnitude          // f8e4m3
    ```

    All roundings are to nearest, ties to even; e4m3 codes keep the sign of zeros and of what rounds to them. So a group
    of zeros has scale 0. A group that holds a NaN or an infinity has the scale NaN and codes +0.

    What is read from the cache is `bf16(f32(code[c] * scale))`, to nearest even: NaN for the whole of a group that held
    anything else than numbers. An implementation may take values below `2^-126` for zeros when it reads. The other
    channels, the rope part, are rounded to bf16 as they are stored.

    With 512 + 64 channels these are the 656 bytes of FlashMLA's FP8 cache for DeepSeek-V3.2, where bf16 takes 1152.

    - (C1) `codes` is int8 or f8e4m3.
    - (C2) `channels` is positive.
  }];
  let parameters = (ins EnumParameter<Moe_CodeFormat>:$codes, "int64_t":$channels);
  let assemblyFormat = "`<` $codes `,` $channels `>`";
  let genVerifyDecl = 1;
}

#endif
