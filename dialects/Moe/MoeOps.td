// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef MOEC_DIALECTS_MOE_MOEOPS_TD
#define MOEC_DIALECTS_MOE_MOEOPS_TD

include "dialects/Moe/MoeAttributes.td"
include "mlir/Interfaces/InferTypeOpInterface.td"
include "mlir/Interfaces/SideEffectInterfaces.td"
include "mlir/IR/BuiltinAttributes.td"
include "mlir/IR/OpAsmInterface.td"
include "mlir/IR/SymbolInterfaces.td"

// Dimensions: see the description of the dialect. Every example is a test: test/dialects/Moe/docs.test.

class Moe_Op<string mnemonic, list<Trait> traits = []> : Op<Moe_Dialect, mnemonic, traits>;

/// Only the first dimension, which counts rows, may be dynamic.
def Moe_StaticRowsPred : CPred<
    "!::llvm::is_contained(::llvm::cast<::mlir::ShapedType>($_self).getShape().drop_front(), "
    "::mlir::ShapedType::kDynamic)">;
class Moe_FloatOf<list<int> ranks> : ConfinedType<TensorRankOf<[F32], ranks>, [Moe_StaticRowsPred],
    TensorRankOf<[F32], ranks>.summary # " of static row size", "::mlir::RankedTensorType">;
class Moe_Float<int rank> : Moe_FloatOf<[rank]>;
class Moe_Index<int rank> : ConfinedType<TensorRankOf<[I32], [rank]>, [Moe_StaticRowsPred],
    TensorRankOf<[I32], [rank]>.summary # " of static row size", "::mlir::RankedTensorType">;
/// Weights keep the element type they are stored in.
class Moe_WeightOf<list<int> ranks> : ConfinedType<
    TensorRankOf<[F32, F16, BF16, F8E4M3FN], ranks>, [HasStaticShapePred],
    "static " # TensorRankOf<[F32, F16, BF16, F8E4M3FN], ranks>.summary, "::mlir::RankedTensorType">;

//===----------------------------------------------------------------------===//
// Weights and state
//===----------------------------------------------------------------------===//

def Moe_WeightOp : Moe_Op<"weight", [Pure, DeclareOpInterfaceMethods<OpAsmOpInterface, ["getAsmResultNames"]>]> {
  let summary = "A weight, by name and recipe";
  let description = [{
    ```
    list = the tensors `sources`, in order
    for step in recipe: list = step(list)
    result = the only tensor of list
    ```
    A recipe works on a list of tensors. `dequant`, where there is one, comes first and makes one
    tensor of all those that a stored weight has; `stack` stacks every family of the list, `append` puts more
    matrices behind such a stack, `sum` adds two tensors;
    `head_rows`, `columns`, `reshape`, `transpose`, `cast`, `scale_columns`, `pad` and `quantize` act on each tensor; `concat` makes one of all,
    and `pack_panels`, `pack_block_scales` and `pack_groups` consume one or two tensors and give one. A source whose
    name holds `{e}` is a family of tensors, one for each expert.

    The types of the sources are in the checkpoint, not in the IR: the verifier checks what the
    recipe alone decides, the rest is checked where the checkpoint is read.

    - (C1) `sources` has at least one name; none is empty, none holds `{e}` twice.
    - (C2) Each element of `recipe` is a step.
    - (C3) `stack` finds at least one family.
    - (C4) `dequant` is the first step and finds whole weights: as many tensors for each as its format
      has, all of them families or none.
    - (C5) `pack_panels`, `pack_block_scales` and `pack_groups` find one or two tensors, and `width`
      is even if two.
    - (C6) The list ends as one tensor, with no family left unstacked.
    - (C7) The shape of the result is one that the last steps can give.
    - (C8) The element type of the result is the one of the last `cast` or `dequant`; it
      is f32 after `sum`, `scale_columns` and `quantize`, and i8 after `pack_groups`.
    - (C9) What `pack_groups` finds was quantized, or stored in int4 groups; after that it was at most
      stacked, cut by heads, and in the end joined by `concat` with others in the same format.
    - (C10) `concat` finds as many tensors as it has `rows`, no family among them.
    - (C11) `append` comes after `stack` and before `quantize`, and finds one or more pairs of tensors.
    - (C12) `sum` finds one or more pairs of tensors, no family among them.

    ```mlir
    func.func @weights() -> (tensor<576x2048xbf16>, tensor<64x1408x2048xbf16>, tensor<16x128x512xbf16>) {
      %plain = moe.weight ["layers.0.kv_a_proj.weight"] : tensor<576x2048xbf16>
      %stacked = moe.weight ["experts.{e}.gate_proj.weight", "experts.{e}.gate_proj.weight_scale_inv"]
          recipe [#moe.dequant<fp8 128x128, bf16>, #moe.stack<64>] : tensor<64x1408x2048xbf16>
      %w_uk = moe.weight ["layers.0.kv_b_proj.weight"] recipe [#moe.head_rows<16, 0, 128>] : tensor<16x128x512xbf16>
      return %plain, %stacked, %w_uk : tensor<576x2048xbf16>, tensor<64x1408x2048xbf16>, tensor<16x128x512xbf16>
    }
    ```
  }];
  let arguments = (ins StrArrayAttr:$sources, DefaultValuedAttr<ArrayAttr, "{}">:$recipe);
  let results = (outs AnyStaticShapeTensor:$result);
  let assemblyFormat = "$sources (`recipe` $recipe^)? attr-dict `:` type($result)";
  let hasVerifier = 1;
}

/// What `moe.cache` symbols name; nothing else reads or writes it.
def Moe_CacheResource : Resource<"::mlir::moe::CacheResource">;

def Moe_CacheOp : Moe_Op<"cache", [Symbol]> {
  let summary = "The cache of one layer: one entry per past token of each sequence";
  let description = [{
    A map from (slot, position) to `width` channels, empty at first. It lives from step
    to step; `moe.cache_append` and `moe.mla_attention` are the ops that touch it.
    Channels are float32, and entries come back as they were stored, unless there is a `format`: in one of bf16 they
    are rounded to it as they are stored, to nearest even; in codes, as `#moe.cache_codes` says. What a step reads of its
    own entries is what later steps read of them.

    - (C1) `width` is positive.
    - (C2) `format`, if present, is bf16 or `#moe.cache_codes`.
    - (C3) `#moe.cache_codes` is of no more than `width` channels.

    ```mlir
    moe.cache @kv.0 width 576
    moe.cache @kv.1 width 576 of bf16
    moe.cache @kv.2 width 576 of #moe.cache_codes<f8e4m3, 512>
    ```
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, ConfinedAttr<I64Attr, [IntPositive]>:$width, // C1
                       OptionalAttr<AnyAttrOf<[TypeAttr, Moe_CacheCodesAttr]>>:$format);
  let assemblyFormat = "$sym_name `width` $width (`of` $format^)? attr-dict";
  let extraClassDeclaration = [{
    /// The format, if it is one of codes; else null.
    CacheCodesAttr getCodes();
  }];
  let hasVerifier = 1;
}

def Moe_CacheAppendOp : Moe_Op<"cache_append", [
    DeclareOpInterfaceMethods<SymbolUserOpInterface>,
    DeclareOpInterfaceMethods<OpAsmOpInterface, ["getAsmResultNames"]>]> {
  let summary = "Store this step's entries and give the whole context of its sequences";
  let description = [{
    ```
    for t in 0 .. T-1:  cache[slots[t], positions[t]] = (parts[0][t, :], parts[1][t, :], ...)
    j = 0
    for s in the distinct slots, ascending:
      for p in 0 .. max { positions[t] : slots[t] = s }:
        (context[0][j, :], context[1][j, :], ...) = cache[s, p]
        context_positions[j] = p;  context_slots[j] = s;  j += 1
    ```
    `S`, the number of context entries, is the final `j`. An entry that exists is overwritten.
    At run time the pairs (slot, position) of a step are distinct, none is negative, and every
    entry that is read has been stored.

    - (C1) There is at least one part, and `context` mirrors `parts` in number and widths.
    - (C2) All parts, `positions` and `slots` have `T` rows.
    - (C3) All contexts, `context_positions` and `context_slots` have `S` rows.
    - (C4) `cache` names a `moe.cache`.
    - (C5) The widths of the parts add up to the width of the cache.
    - (C6) Where the cache is of `#moe.cache_codes`, these are of the channels of the first part.

    ```mlir
    moe.cache @kv.0 width 576
    func.func @append(%c: tensor<?x512xf32>, %k: tensor<?x64xf32>, %p: tensor<?xi32>, %s: tensor<?xi32>)
        -> tensor<?x512xf32> {
      %context:2, %context_positions, %context_slots = moe.cache_append @kv.0(%c, %k) at %p, %s
          : (tensor<?x512xf32>, tensor<?x64xf32>), tensor<?xi32>, tensor<?xi32>
         -> (tensor<?x512xf32>, tensor<?x64xf32>), tensor<?xi32>, tensor<?xi32>
      return %context#0 : tensor<?x512xf32>
    }
    ```
  }];
  let arguments = (ins Arg<FlatSymbolRefAttr, "the cache",
                           [MemRead<Moe_CacheResource>, MemWrite<Moe_CacheResource>]>:$cache, Variadic<Moe_Float<2>>:$parts,
                       Moe_Index<1>:$positions, Moe_Index<1>:$slots);
  let results = (outs Variadic<Moe_Float<2>>:$context,
                      Moe_Index<1>:$context_positions, Moe_Index<1>:$context_slots);
  let assemblyFormat = [{
    $cache `(` $parts `)` `at` $positions `,` $slots attr-dict
    `:` `(` type($parts) `)` `,` type($positions) `,` type($slots)
    `->` `(` type($context) `)` `,` type($context_positions) `,` type($context_slots)
  }];
  let hasVerifier = 1;
}

//===----------------------------------------------------------------------===//
// Rows in and out
//===----------------------------------------------------------------------===//

def Moe_EmbedOp : Moe_Op<"embed", [NoMemoryEffect]> {
  let summary = "Rows of the embedding table";
  let description = [{
    `result[t, d] = float(table[tokens[t], d])`, where at run time `0 <= tokens[t] < V`.

    - (C1) `result` has as many rows as `tokens` has entries.
    - (C2) `result` has the columns of `table`, which is `V x D`.

    ```mlir
    func.func @embed(%tokens: tensor<?xi32>) -> tensor<?x256xf32> {
      %table = moe.weight ["model.embed_tokens.weight"] : tensor<1280x256xbf16>
      %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<1280x256xbf16> -> tensor<?x256xf32>
      return %x : tensor<?x256xf32>
    }
    ```
  }];
  let arguments = (ins Moe_WeightOf<[2]>:$table, Moe_Index<1>:$tokens);
  let results = (outs Moe_Float<2>:$result);
  let assemblyFormat = "$tokens `in` $table attr-dict `:` type($tokens) `,` type($table) `->` type($result)";
  let hasVerifier = 1;
}

def Moe_GatherRowsOp : Moe_Op<"gather_rows", [NoMemoryEffect]> {
  let summary = "y[r, :] = x[rows[r], :]";
  let description = [{
    `result[r, :] = x[rows[r], :]`, where at run time `0 <= rows[r] < T`. It picks the tokens
    whose logits are asked for.

    - (C1) `result` has as many rows as `rows` has entries.
    - (C2) `result` has the columns of `x`.

    ```mlir
    func.func @gather(%x: tensor<?x256xf32>, %rows: tensor<?xi32>) -> tensor<?x256xf32> {
      %y = moe.gather_rows %x[%rows] : tensor<?x256xf32>, tensor<?xi32> -> tensor<?x256xf32>
      return %y : tensor<?x256xf32>
    }
    ```
  }];
  let arguments = (ins Moe_Float<2>:$x, Moe_Index<1>:$rows);
  let results = (outs Moe_Float<2>:$result);
  let assemblyFormat = "$x `[` $rows `]` attr-dict `:` type($x) `,` type($rows) `->` type($result)";
  let hasVerifier = 1;
}

//===----------------------------------------------------------------------===//
// Layers
//===----------------------------------------------------------------------===//

def Moe_LinearOp : Moe_Op<"linear", [NoMemoryEffect]> {
  let summary = "y[t, n] = sum_c x[t, c] * w[n, c] (+ residual[t, n])";
  let description = [{
    `result[t, n] = sum_c x[t, c] * float(weight[n, c])`, plus `residual[t, n]` if there is one:
    the residual is added to the finished sum.

    - (C1) `x`, which is `T x C`, has the columns of `weight`, which is `N x C`.
    - (C2) `result` has as many columns as `weight` has rows.
    - (C3) `result` has the rows of `x`.
    - (C4) `residual`, if present, has the rows and columns of `result`.

    ```mlir
    func.func @linear(%x: tensor<?x512xf32>, %r: tensor<?x256xf32>) -> tensor<?x256xf32> {
      %w = moe.weight ["layers.0.down_proj.weight"] : tensor<256x512xbf16>
      %y = moe.linear %x, %w : tensor<?x512xf32>, tensor<256x512xbf16> -> tensor<?x256xf32>
      %z = moe.linear %x, %w add %y : tensor<?x256xf32> : tensor<?x512xf32>, tensor<256x512xbf16> -> tensor<?x256xf32>
      return %z : tensor<?x256xf32>
    }
    ```
  }];
  let arguments = (ins Moe_Float<2>:$x, Moe_WeightOf<[2]>:$weight, Optional<Moe_Float<2>>:$residual);
  let results = (outs Moe_Float<2>:$result);
  let assemblyFormat = [{
    $x `,` $weight (`add` $residual^ `:` type($residual))? attr-dict `:` type($x) `,` type($weight) `->` type($result)
  }];
  let hasVerifier = 1;
}

def Moe_GateUpOp : Moe_Op<"gate_up", [Pure]> {
  let summary = "y = silu(x * gate^T) * (x * up^T)";
  let description = [{
    ```
    g[t, f] = sum_c x[t, c] * float(gate[f, c])
    u[t, f] = sum_c x[t, c] * float(up[f, c])
    result[t, f] = silu(g[t, f]) * u[t, f]
    ```
    The first half of a SwiGLU network as one op, so that one GEMM reads `x` once; the pass
    `moe-fuse-gate-up` makes it. Source: arXiv:2002.05202, eq. 6.

    - (C1) `gate` and `up` have one type, `F x C`.
    - (C2) `x`, which is `T x C`, has the columns of `gate`.
    - (C3) `result` has as many columns as `gate` has rows.
    - (C4) `result` has the rows of `x`.

    ```mlir
    func.func @gate_up(%x: tensor<?x256xf32>) -> tensor<?x512xf32> {
      %g = moe.weight ["layers.0.gate_proj.weight"] : tensor<512x256xbf16>
      %u = moe.weight ["layers.0.up_proj.weight"] : tensor<512x256xbf16>
      %y = moe.gate_up %x, %g, %u : tensor<?x256xf32>, tensor<512x256xbf16>, tensor<512x256xbf16> -> tensor<?x512xf32>
      return %y : tensor<?x512xf32>
    }
    ```
  }];
  let arguments = (ins Moe_Float<2>:$x, Moe_WeightOf<[2]>:$gate, Moe_WeightOf<[2]>:$up);
  let results = (outs Moe_Float<2>:$result);
  let assemblyFormat = "$x `,` $gate `,` $up attr-dict `:` type($x) `,` type($gate) `,` type($up) `->` type($result)";
  let hasVerifier = 1;
}

def Moe_SwigluOp : Moe_Op<"swiglu", [NoMemoryEffect, SameOperandsAndResultType]> {
  let summary = "y = silu(gate) * up";
  let description = [{
    `result[t, f] = silu(gate[t, f]) * up[t, f]`, where `silu(a) = a / (1 + exp(-a))`.
    Source: arXiv:2002.05202, eq. 6.

    - (C1) `gate`, `up` and `result` have one type.

    ```mlir
    func.func @swiglu(%g: tensor<?x512xf32>, %u: tensor<?x512xf32>) -> tensor<?x512xf32> {
      %y = moe.swiglu %g, %u : tensor<?x512xf32>
      return %y : tensor<?x512xf32>
    }
    ```
  }];
  let arguments = (ins Moe_Float<2>:$gate, Moe_Float<2>:$up);
  let results = (outs Moe_Float<2>:$result);
  let assemblyFormat = "$gate `,` $up attr-dict `:` type($result)";
}

def Moe_AddOp : Moe_Op<"add", [NoMemoryEffect, Commutative, SameOperandsAndResultType]> {
  let summary = "y = lhs + rhs";
  let description = [{
    `result[t, d] = lhs[t, d] + rhs[t, d]`.

    A sum of two weights that are made in one way is a weight: canonicalization puts it into the recipe, so that nothing
    is left to add when the program runs. However large, it is made as it is stored and never in memory as a whole.

    - (C1) `lhs`, `rhs` and `result` have one type.

    ```mlir
    func.func @add(%x: tensor<?x256xf32>, %y: tensor<?x256xf32>) -> tensor<?x256xf32> {
      %z = moe.add %x, %y : tensor<?x256xf32>
      return %z : tensor<?x256xf32>
    }
    ```
  }];
  let arguments = (ins Moe_Float<2>:$lhs, Moe_Float<2>:$rhs);
  let results = (outs Moe_Float<2>:$result);
  let assemblyFormat = "$lhs `,` $rhs attr-dict `:` type($result)";
  let hasCanonicalizeMethod = 1;
}

def Moe_RmsNormOp : Moe_Op<"rms_norm", [Pure]> {
  let summary = "y[t, :] = weight * x[t, :] / sqrt(mean(x[t, :]^2) + eps)";
  let description = [{
    `result[t, d] = float(weight[d]) * x[t, d] / sqrt(mean_i(x[t, i]^2) + eps)`, without the first factor if there is no
    `weight`: the pass `moe-fold-norm` moves it into the weights of what reads `result`.
    Source: arXiv:1910.07467, eq. 4; `eps` as in every implementation.

    - (C1) `weight`, if present, has as many elements as `x` has columns.
    - (C2) `result` has the rows and columns of `x`.
    - (C3) `eps` is finite and not negative.

    ```mlir
    func.func @norm(%x: tensor<?x256xf32>) -> tensor<?x256xf32> {
      %g = moe.weight ["model.norm.weight"] : tensor<256xbf16>
      %y = moe.rms_norm %x, %g eps 1.0e-06 : tensor<?x256xf32>, tensor<256xbf16> -> tensor<?x256xf32>
      %z = moe.rms_norm %y eps 1.0e-06 : tensor<?x256xf32> -> tensor<?x256xf32>
      return %z : tensor<?x256xf32>
    }
    ```
  }];
  let arguments = (ins Moe_Float<2>:$x, Optional<Moe_WeightOf<[1]>>:$weight, F64Attr:$eps);
  let results = (outs Moe_Float<2>:$result);
  let assemblyFormat = [{
    $x (`,` $weight^)? `eps` $eps attr-dict `:` type($x) (`,` type($weight)^)? `->` type($result)
  }];
  let hasVerifier = 1;
}

def Moe_ActivationFormat : AnyAttrOf<[Moe_QuantizeAttr, Moe_CastAttr], "a format of activations">;

def Moe_FakeQuantizeOp : Moe_Op<"fake_quantize", [Pure, SameOperandsAndResultType]> {
  let summary = "Round activations to what codes and scales, or fewer bits, can hold";
  let description = [{
    Each row is cut into groups of the format's columns, the last one may be smaller, and rounded as
    `#moe.quantize` rounds a row of a weight: `result[t, c] = code[t, c] * scale[t, c / group]`. Scales
    are found for each row when it is there ("dynamic"). Or each element is rounded to bf16.

    What that costs: in int8 an element is off by at most half a step, `max |x| / 254` over its group, and its product
    with a weight row `w` by at most the sum of `|w[c]| * max |x| / 254`, each term with the maximum of its own group; in
    bf16 an element is off by 2^-9 of itself. Kernels for codes multiply them as integers, exactly, and sum up groups in
    f32, so that between an artifact and the interpreter is rounding alone, which `moec verify` bounds. What it does to
    logits is measured in docs/accuracy.md, in rows with and without `:weights`.

    Sources: one scale for each token, as LLM.int8(), arXiv:2208.07339, sec. 2; for 128 channels of
    each, DeepSeek-V3, arXiv:2412.19437, sec. 3.3.2.

    - (C1) `format` is int8 or f8e4m3 with f32 scales, groups of one row, to nearest; or `#moe.cast<bf16>`.

    ```mlir
    func.func @round(%x: tensor<?x256xf32>) -> tensor<?x256xf32> {
      %y = moe.fake_quantize %x : tensor<?x256xf32> to #moe.quantize<int8, group = 256, scale = f32>
      return %y : tensor<?x256xf32>
    }
    ```
  }];
  let arguments = (ins Moe_Float<2>:$x, Moe_ActivationFormat:$format);
  let results = (outs Moe_Float<2>:$result);
  let assemblyFormat = "$x `:` type($result) `to` $format attr-dict";
  let hasVerifier = 1;
}

def Moe_ReshapeOp : Moe_Op<"reshape", [Pure]> {
  let summary = "Split or join the dimensions after the first: [T, H * d] <-> [T, H, d]";
  let description = [{
    The elements of each row, in order, under another shape. Folds: an identity, and a reshape of
    a reshape. A reshape of a weight becomes a step of its recipe.

    - (C1) `result` has the rows of `x`.
    - (C2) A row of `result` has as many elements as a row of `x`.

    ```mlir
    func.func @heads(%x: tensor<?x256xf32>) -> tensor<?x4x64xf32> {
      %y = moe.reshape %x : tensor<?x256xf32> -> tensor<?x4x64xf32>
      return %y : tensor<?x4x64xf32>
    }
    ```
  }];
  let arguments = (ins Moe_FloatOf<[2, 3]>:$x);
  let results = (outs Moe_FloatOf<[2, 3]>:$result);
  let assemblyFormat = "$x attr-dict `:` type($x) `->` type($result)";
  let hasVerifier = 1;
  let hasFolder = 1;
  let hasCanonicalizeMethod = 1;
}

def Moe_SplitOp : Moe_Op<"split", [Pure]> {
  let summary = "Cut the last dimension into consecutive parts";
  let description = [{
    `parts[i][.., c] = x[.., w_0 + ... + w_{i-1} + c]`, where `w_i` is the last dimension of part
    `i`. A split into one part folds to `x`, and the parts of a weight become weights.

    - (C1) There is at least one part.
    - (C2) Each part has the dimensions of `x`, except for the last.
    - (C3) The last dimensions of the parts add up to the one of `x`.

    ```mlir
    func.func @parts(%q: tensor<?x4x192xf32>) -> (tensor<?x4x128xf32>, tensor<?x4x64xf32>) {
      %nope, %rope = moe.split %q : tensor<?x4x192xf32> -> tensor<?x4x128xf32>, tensor<?x4x64xf32>
      return %nope, %rope : tensor<?x4x128xf32>, tensor<?x4x64xf32>
    }
    ```
  }];
  let arguments = (ins Moe_FloatOf<[2, 3]>:$x);
  let results = (outs Variadic<Moe_FloatOf<[2, 3]>>:$parts);
  let assemblyFormat = "$x attr-dict `:` type($x) `->` type($parts)";
  let hasVerifier = 1;
  let hasFolder = 1;
  let hasCanonicalizeMethod = 1;
}

//===----------------------------------------------------------------------===//
// Attention
//===----------------------------------------------------------------------===//

def Moe_RopeOp : Moe_Op<"rope", [NoMemoryEffect]> {
  let summary = "Rotate channel pairs by an angle that grows with the position";
  let description = [{
    ```
    a = float(positions[t]) * inv_freq[i]                  // rounded to float32
    result[t, .., 2i]     = factor * (x[t, .., 2i] * cos(a) - x[t, .., 2i + 1] * sin(a))
    result[t, .., 2i + 1] = factor * (x[t, .., 2i] * sin(a) + x[t, .., 2i + 1] * cos(a))
    ```
    Source: RoFormer, arXiv:2104.09864, eq. 34, in the interleaved order of DeepSeek's checkpoints.

    - (C1) The last dimension of `x` is twice the number of inverse frequencies.
    - (C2) `positions` has as many entries as `x` has rows.
    - (C3) `result` has the dimensions of `x`.

    ```mlir
    #rope = #moe.rope<factor = 1.0, inv_freq = [1.0, 0.01]>
    func.func @rotate(%x: tensor<?x2x4xf32>, %positions: tensor<?xi32>) -> tensor<?x2x4xf32> {
      %y = moe.rope %x at %positions by #rope : tensor<?x2x4xf32>, tensor<?xi32> -> tensor<?x2x4xf32>
      return %y : tensor<?x2x4xf32>
    }
    ```
  }];
  let arguments = (ins Moe_FloatOf<[2, 3]>:$x, Moe_Index<1>:$positions, Moe_RopeAttr:$rope);
  let results = (outs Moe_FloatOf<[2, 3]>:$result);
  let assemblyFormat = "$x `at` $positions `by` $rope attr-dict `:` type($x) `,` type($positions) `->` type($result)";
  let hasVerifier = 1;
}

def Moe_AttentionOp : Moe_Op<"attention", [NoMemoryEffect]> {
  let summary = "Causal attention with a decoupled rotary key, over a ragged batch";
  let description = [{
    ```
    visible(t, j)   = context_slots[j] = slots[t] and context_positions[j] <= positions[t]
    score[t, h, j]  = scale * (query[t, h, :] . key[j, h, :] + rope_query[t, h, :] . rope_key[j, :])
    p[t, h, :]      = softmax of score[t, h, j] over the visible j; 0 elsewhere
    result[t, h, :] = sum_j p[t, h, j] * value[j, h, :]
    ```
    One rotary key serves all heads. At run time every token sees at least one entry.
    Source: DeepSeek-V2, arXiv:2405.04434, eq. 14 to 18.

    - (C1) `rope_query`, `positions`, `slots` and `result` have the `T` tokens of `query`.
    - (C2) `rope_query`, `key`, `value` and `result` have the `H` heads of `query`.
    - (C3) `rope_key`, `value`, `context_positions` and `context_slots` have the `S` entries of `key`.
    - (C4) `key` has the channels of `query`, `rope_key` those of `rope_query`, `result` those of `value`.
    - (C5) `scale` is finite and positive.

    ```mlir
    func.func @attend(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %k: tensor<?x4x16xf32>, %kr: tensor<?x8xf32>,
                      %v: tensor<?x4x12xf32>, %p: tensor<?xi32>, %s: tensor<?xi32>, %cp: tensor<?xi32>,
                      %cs: tensor<?xi32>) -> tensor<?x4x12xf32> {
      %o = moe.attention query(%q, %qr) key(%k, %kr) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
          : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
             tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
      return %o : tensor<?x4x12xf32>
    }
    ```
  }];
  let arguments = (ins Moe_Float<3>:$query, Moe_Float<3>:$rope_query,
                       Moe_Float<3>:$key, Moe_Float<2>:$rope_key, Moe_Float<3>:$value,
                       Moe_Index<1>:$positions, Moe_Index<1>:$slots,
                       Moe_Index<1>:$context_positions, Moe_Index<1>:$context_slots,
                       F64Attr:$scale);
  let results = (outs Moe_Float<3>:$result);
  let assemblyFormat = [{
    `query` `(` $query `,` $rope_query `)` `key` `(` $key `,` $rope_key `)` `value` `(` $value `)`
    `at` `(` $positions `,` $slots `)` `context` `(` $context_positions `,` $context_slots `)`
    `scale` $scale attr-dict `:` functional-type(operands, results)
  }];
  let hasVerifier = 1;
}

def Moe_MlaAttentionOp : Moe_Op<"mla_attention", [DeclareOpInterfaceMethods<SymbolUserOpInterface>]> {
  let summary = "Multi-head latent attention on its cache, in absorbed or expanded form";
  let description = [{
    ```
    for t in 0 .. T-1:  cache[slots[t], positions[t]] = (latent[t, :], rope_key[t, :])
    (c_j, k_j)      = cache[slots[t], j]  for j = 0 .. positions[t]
    a[t, h, :]      = sum_n query[t, h, n] * float(w_uk[h, n, :])
    score[t, h, j]  = scale * (a[t, h, :] . c_j + rope_query[t, h, :] . k_j)
    p[t, h, :]      = softmax of score[t, h, j] over j
    result[t, h, v] = sum_c float(w_uv[h, v, c]) * (sum_j p[t, h, j] * c_j[c])
    ```
    This is the absorbed form: the cache is read as it is. The expanded form gives the same but for rounding, in the
    order of `moe.cache_append`, `moe.linear` over the whole context and `moe.attention`:
    ```
    key[j, h, n]    = sum_c c_j[c] * float(w_uk[h, n, c])
    value[j, h, v]  = sum_c c_j[c] * float(w_uv[h, v, c])
    score[t, h, j]  = scale * (query[t, h, :] . key[j, h, :] + rope_query[t, h, :] . k_j)
    result[t, h, v] = sum_j p[t, h, j] * value[j, h, v]
    ```
    A run is a longest stretch of neighbouring tokens of one slot in the step. Tokens of a run of at least
    `expanded_from` tokens take the expanded form, others the absorbed one; with 1 all are expanded, without the
    attribute all are absorbed. So the form of a token follows from how its own sequence is cut, not from the others.

    The pass `moe-fuse-mla` makes the op, `moe-choose-mla` sets `expanded_from`. What `moe.cache_append` asks of the
    step at run time holds here too.
    Source: DeepSeek-V2, arXiv:2405.04434, sec. 2.1.2, which notes that `W^UK` and `W^UV` can be absorbed; appendix C.

    - (C1) `rope_query`, `latent`, `rope_key`, `positions`, `slots` and `result` have the `T` tokens of `query`.
    - (C2) `rope_query`, `w_uk`, `w_uv` and `result` have the `H` heads of `query`.
    - (C3) `w_uk` is `H x query channels x latent channels`, `w_uv` is `H x result channels x latent channels`.
    - (C4) `rope_key` has the channels of `rope_query`.
    - (C5) `scale` is finite and positive.
    - (C6) `cache` names a `moe.cache`.
    - (C7) The widths of `latent` and `rope_key` add up to the width of the cache.
    - (C8) Where the cache is of `#moe.cache_codes`, these are of the channels of `latent`.

    ```mlir
    moe.cache @kv.0 width 40
    func.func @attend(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %k: tensor<?x8xf32>,
                      %p: tensor<?xi32>, %s: tensor<?xi32>) -> tensor<?x4x12xf32> {
      %w_uk = moe.weight ["kv_b_proj.weight"] recipe [#moe.head_rows<4, 0, 16>] : tensor<4x16x32xbf16>
      %w_uv = moe.weight ["kv_b_proj.weight"] recipe [#moe.head_rows<4, 16, 28>] : tensor<4x12x32xbf16>
      %o = moe.mla_attention @kv.0 query(%q, %qr) entry(%c, %k) up(%w_uk, %w_uv) at(%p, %s) scale 0.25 expanded_from 64
          : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x32xf32>, tensor<?x8xf32>, tensor<4x16x32xbf16>,
             tensor<4x12x32xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
      return %o : tensor<?x4x12xf32>
    }
    ```
  }];
  let arguments = (ins Arg<FlatSymbolRefAttr, "the cache",
                           [MemRead<Moe_CacheResource>, MemWrite<Moe_CacheResource>]>:$cache,
                       Moe_Float<3>:$query, Moe_Float<3>:$rope_query,
                       Moe_Float<2>:$latent, Moe_Float<2>:$rope_key,
                       Moe_WeightOf<[3]>:$w_uk, Moe_WeightOf<[3]>:$w_uv,
                       Moe_Index<1>:$positions, Moe_Index<1>:$slots, F64Attr:$scale,
                       OptionalAttr<ConfinedAttr<I64Attr, [IntPositive]>>:$expanded_from);
  let results = (outs Moe_Float<3>:$result);
  let assemblyFormat = [{
    $cache `query` `(` $query `,` $rope_query `)` `entry` `(` $latent `,` $rope_key `)`
    `up` `(` $w_uk `,` $w_uv `)` `at` `(` $positions `,` $slots `)` `scale` $scale
    (`expanded_from` $expanded_from^)? attr-dict
    `:` functional-type(operands, results)
  }];
  let hasVerifier = 1;
}

//===----------------------------------------------------------------------===//
// Experts
//===----------------------------------------------------------------------===//

def Moe_RouteOp : Moe_Op<"route", [Pure, DeclareOpInterfaceMethods<OpAsmOpInterface, ["getAsmResultNames"]>]> {
  let summary = "Choose the top-k experts of each token";
  let description = [{
    ```
    score[t, e]   = scoring(logits[t, :])[e]               // softmax over all experts, or sigmoid of each
    choice[t, e]  = score[t, e] + float(bias[e])           // score[t, e] without a bias
    group[t, g]   = group_score over the experts of group g of choice[t, e]
    choice[t, e]  = -inf outside the topk_groups best groups    // ties: lower group
    experts[t, :] = the topk experts of greatest choice, best first   // ties: lower expert
    w[t, k]       = score[t, experts[t, k]]
    w[t, :]       = w[t, :] / (sum_k w[t, k] + 1e-20)      // if normalize
    weights[t, k] = scale * w[t, k]
    ```
    The `groups` groups are equal runs of consecutive experts; with one group there is nothing
    to score. The bias steers the choice, never the weight.
    Sources: DeepSeek-V2, arXiv:2405.04434, sec. 2.2; DeepSeek-V3, arXiv:2412.19437, sec. 2.1.2.

    - (C1) `groups` divides `E`, where `logits` is `T x E`.
    - (C2) `topk_groups` is at most `groups`.
    - (C3) `topk` is at most the number of experts in `topk_groups` groups.
    - (C4) `top2_sum` over more than one group needs groups of two experts or more.
    - (C5) `bias`, if present, has `E` elements.
    - (C6) `weights` and `experts` are `T x topk`.
    - (C7) `scale` is finite.

    ```mlir
    func.func @route(%logits: tensor<?x64xf32>) -> (tensor<?x6xf32>, tensor<?x6xi32>) {
      %bias = moe.weight ["layers.3.gate.e_score_correction_bias"] : tensor<64xf32>
      %weights, %experts = moe.route sigmoid topk(6) %logits bias(%bias : tensor<64xf32>)
          {groups = 8, topk_groups = 4, group_score = #moe.group_score<top2_sum>, normalize = true, scale = 2.5}
          : tensor<?x64xf32> -> tensor<?x6xf32>, tensor<?x6xi32>
      return %weights, %experts : tensor<?x6xf32>, tensor<?x6xi32>
    }
    ```
  }];
  let arguments = (ins Moe_Float<2>:$logits, Optional<Moe_WeightOf<[1]>>:$bias,
                       Moe_ScoringAttr:$scoring, ConfinedAttr<I64Attr, [IntPositive]>:$topk,
                       DefaultValuedAttr<ConfinedAttr<I64Attr, [IntPositive]>, "1">:$groups,
                       DefaultValuedAttr<ConfinedAttr<I64Attr, [IntPositive]>, "1">:$topk_groups,
                       DefaultValuedAttr<Moe_GroupScoreAttr, "GroupScore::Max">:$group_score,
                       DefaultValuedAttr<BoolAttr, "false">:$normalize,
                       DefaultValuedAttr<F64Attr, "1.0">:$scale);
  let results = (outs Moe_Float<2>:$weights, Moe_Index<2>:$experts);
  let assemblyFormat = [{
    `` $scoring `topk` `(` $topk `)` $logits (`bias` `(` $bias^ `:` type($bias) `)`)? attr-dict
    `:` type($logits) `->` type($weights) `,` type($experts)
  }];
  let hasVerifier = 1;
}

def Moe_ExpertsOp : Moe_Op<"experts", [NoMemoryEffect]> {
  let summary = "Weighted sum of the chosen experts' SwiGLU networks";
  let description = [{
    ```
    ffn(e, x)    = round(silu(x * gate[e]^T) * (x * up[e]^T)) * down[e]^T
    result[t, :] = sum_k weights[t, k] * ffn(experts[t, k], x[t, :])
                   + sum_i ffn(E - shared + i, x[t, :])      // i < shared
                   (+ residual[t, :])
    ```
    The weight multiplies what the down projection gives; a residual is added to the finished
    sum. With `activations`, `round` is what `moe.fake_quantize` does; else nothing. At run time
    `0 <= experts[t, k] < E - shared`.

    The last `shared` experts are those that every token takes with weight 1, beside the ones chosen for it; the pass
    `moe-join-shared-expert` puts them there.

    With `members`, the weights are those of some of the experts: row `i` of each belongs to expert
    `members[i]`. The sum is then over those `k` alone whose expert is a member, which may be none.
    A layer whose experts are stored in several formats is a chain of such ops, each with the
    result of the one before as its residual.
    Source: DeepSeekMoE, arXiv:2401.06066, eq. 3 to 5.

    - (C1) `gate` and `up` have one type, `E x F x D`.
    - (C2) `down` is `E x D x F`.
    - (C3) `x` has `D` columns.
    - (C4) `weights` and `experts` have the `T` rows of `x` and equally many columns.
    - (C5) `result`, and `residual` if present, are `T x D` as `x` is.
    - (C6) `activations`, if present, are a format that `moe.fake_quantize` takes.
    - (C7) `members`, if present, are `E` ascending numbers, none negative.
    - (C8) `shared` is less than `E`, and 0 with `members`.

    ```mlir
    func.func @experts(%x: tensor<?x256xf32>, %w: tensor<?x6xf32>, %e: tensor<?x6xi32>) -> tensor<?x256xf32> {
      %gate = moe.weight ["experts.{e}.gate_proj.weight"] recipe [#moe.stack<64>] : tensor<64x128x256xbf16>
      %up = moe.weight ["experts.{e}.up_proj.weight"] recipe [#moe.stack<64>] : tensor<64x128x256xbf16>
      %down = moe.weight ["experts.{e}.down_proj.weight"] recipe [#moe.stack<64>] : tensor<64x256x128xbf16>
      %y = moe.experts %x route(%w, %e) ffn(%gate, %up, %down) add %x : tensor<?x256xf32>
          : tensor<?x256xf32>, tensor<?x6xf32>, tensor<?x6xi32>, tensor<64x128x256xbf16>, tensor<64x128x256xbf16>,
            tensor<64x256x128xbf16> -> tensor<?x256xf32>
      return %y : tensor<?x256xf32>
    }

    func.func @some_experts(%x: tensor<?x256xf32>, %w: tensor<?x6xf32>, %e: tensor<?x6xi32>) -> tensor<?x256xf32> {
      %gate = moe.weight ["experts.{e}.gate_proj.weight"] recipe [#moe.stack<[0, 7]>] : tensor<2x128x256xbf16>
      %up = moe.weight ["experts.{e}.up_proj.weight"] recipe [#moe.stack<[0, 7]>] : tensor<2x128x256xbf16>
      %down = moe.weight ["experts.{e}.down_proj.weight"] recipe [#moe.stack<[0, 7]>] : tensor<2x256x128xbf16>
      %y = moe.experts %x route(%w, %e) ffn(%gate, %up, %down) members [0, 7] : tensor<?x256xf32>, tensor<?x6xf32>,
          tensor<?x6xi32>, tensor<2x128x256xbf16>, tensor<2x128x256xbf16>, tensor<2x256x128xbf16> -> tensor<?x256xf32>
      return %y : tensor<?x256xf32>
    }

    func.func @with_a_shared_expert(%x: tensor<?x256xf32>, %w: tensor<?x6xf32>, %e: tensor<?x6xi32>) -> tensor<?x256xf32> {
      %gate = moe.weight ["experts.{e}.gate_proj.weight", "shared_experts.gate_proj.weight"]
          recipe [#moe.stack<64>, #moe.append<rows, 2>] : tensor<66x128x256xbf16>
      %up = moe.weight ["experts.{e}.up_proj.weight", "shared_experts.up_proj.weight"]
          recipe [#moe.stack<64>, #moe.append<rows, 2>] : tensor<66x128x256xbf16>
      %down = moe.weight ["experts.{e}.down_proj.weight", "shared_experts.down_proj.weight"]
          recipe [#moe.stack<64>, #moe.append<columns, 2>] : tensor<66x256x128xbf16>
      %y = moe.experts %x route(%w, %e) ffn(%gate, %up, %down) shared 2 : tensor<?x256xf32>, tensor<?x6xf32>,
          tensor<?x6xi32>, tensor<66x128x256xbf16>, tensor<66x128x256xbf16>, tensor<66x256x128xbf16> -> tensor<?x256xf32>
      return %y : tensor<?x256xf32>
    }
    ```
  }];
  let arguments = (ins Moe_Float<2>:$x, Moe_Float<2>:$weights, Moe_Index<2>:$experts,
                       Moe_WeightOf<[3]>:$gate, Moe_WeightOf<[3]>:$up, Moe_WeightOf<[3]>:$down,
                       Optional<Moe_Float<2>>:$residual, OptionalAttr<Moe_ActivationFormat>:$activations,
                       OptionalAttr<DenseI64ArrayAttr>:$members,
                       DefaultValuedAttr<ConfinedAttr<I64Attr, [IntNonNegative]>, "0">:$shared);
  let results = (outs Moe_Float<2>:$result);
  let assemblyFormat = [{
    $x `route` `(` $weights `,` $experts `)` `ffn` `(` $gate `,` $up `,` $down `)` (`members` $members^)? (`shared` $shared^)?
    (`add` $residual^ `:` type($residual))? attr-dict
    `:` type($x) `,` type($weights) `,` type($experts) `,` type($gate) `,` type($up) `,` type($down) `->` type($result)
  }];
  let hasVerifier = 1;
}

#endif
