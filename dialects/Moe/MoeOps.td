// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef MOEC_DIALECTS_MOE_MOEOPS_TD
#define MOEC_DIALECTS_MOE_MOEOPS_TD

include "dialects/Moe/MoeAttributes.td"
include "mlir/Interfaces/InferTypeOpInterface.td"
include "mlir/Interfaces/SideEffectInterfaces.td"
include "mlir/IR/BuiltinAttributes.td"
include "mlir/IR/SymbolInterfaces.td"

// Dimensions: T tokens, R rows, S context entries, E experts, K top-k, D model
// width, F expert width, H heads, V vocabulary.

class Moe_Op<string mnemonic, list<Trait> traits = []> : Op<Moe_Dialect, mnemonic, traits>;

class Moe_Float<int rank> : TensorRankOf<[F32], [rank]>;
class Moe_Index<int rank> : TensorRankOf<[I32], [rank]>;
/// Weights keep the element type they are stored in.
class Moe_WeightOf<list<int> ranks> : TensorRankOf<[F32, F16, BF16, F8E4M3FN], ranks>;

def Moe_WeightOp : Moe_Op<"weight", [Pure]> {
  let summary = "A weight, by name and recipe";
  let arguments = (ins StrArrayAttr:$sources, DefaultValuedAttr<ArrayAttr, "{}">:$recipe);
  let results = (outs AnyStaticShapeTensor:$result);
  let assemblyFormat = "$sources (`recipe` $recipe^)? attr-dict `:` type($result)";
  let hasVerifier = 1;
}

def Moe_CacheOp : Moe_Op<"cache", [Symbol]> {
  let summary = "The cache of one layer: one entry per past token of each sequence";
  let arguments = (ins SymbolNameAttr:$sym_name, ConfinedAttr<I64Attr, [IntPositive]>:$width);
  let assemblyFormat = "$sym_name `width` $width attr-dict";
}

def Moe_EmbedOp : Moe_Op<"embed", [Pure]> {
  let summary = "Rows of the embedding table";
  let arguments = (ins Moe_WeightOf<[2]>:$table, Moe_Index<1>:$tokens);
  let results = (outs Moe_Float<2>:$result);
  let assemblyFormat = "$tokens `in` $table attr-dict `:` type($tokens) `,` type($table) `->` type($result)";
  let hasVerifier = 1;
}

def Moe_GatherRowsOp : Moe_Op<"gather_rows", [Pure]> {
  let summary = "y[r, :] = x[rows[r], :]";
  let arguments = (ins Moe_Float<2>:$x, Moe_Index<1>:$rows);
  let results = (outs Moe_Float<2>:$result);
  let assemblyFormat = "$x `[` $rows `]` attr-dict `:` type($x) `,` type($rows) `->` type($result)";
  let hasVerifier = 1;
}

def Moe_LinearOp : Moe_Op<"linear", [Pure]> {
  let summary = "y[t, n] = sum_k x[t, k] * w[n, k] (+ residual[t, n])";
  let arguments = (ins Moe_Float<2>:$x, Moe_WeightOf<[2]>:$weight, Optional<Moe_Float<2>>:$residual);
  let results = (outs Moe_Float<2>:$result);
  let assemblyFormat = [{
    $x `,` $weight (`add` $residual^ `:` type($residual))? attr-dict `:` type($x) `,` type($weight) `->` type($result)
  }];
  let hasVerifier = 1;
}

def Moe_GateUpOp : Moe_Op<"gate_up", [Pure]> {
  let summary = "y = silu(x * gate^T) * (x * up^T)";
  let arguments = (ins Moe_Float<2>:$x, Moe_WeightOf<[2]>:$gate, Moe_WeightOf<[2]>:$up);
  let results = (outs Moe_Float<2>:$result);
  let assemblyFormat = "$x `,` $gate `,` $up attr-dict `:` type($x) `,` type($gate) `,` type($up) `->` type($result)";
  let hasVerifier = 1;
}

def Moe_SwigluOp : Moe_Op<"swiglu", [Pure, SameOperandsAndResultType]> {
  let summary = "y = silu(gate) * up";
  let arguments = (ins Moe_Float<2>:$gate, Moe_Float<2>:$up);
  let results = (outs Moe_Float<2>:$result);
  let assemblyFormat = "$gate `,` $up attr-dict `:` type($result)";
}

def Moe_AddOp : Moe_Op<"add", [Pure, Commutative, SameOperandsAndResultType]> {
  let summary = "y = lhs + rhs";
  let arguments = (ins Moe_Float<2>:$lhs, Moe_Float<2>:$rhs);
  let results = (outs Moe_Float<2>:$result);
  let assemblyFormat = "$lhs `,` $rhs attr-dict `:` type($result)";
}

def Moe_RmsNormOp : Moe_Op<"rms_norm", [Pure]> {
  let summary = "y[t, :] = weight * x[t, :] / sqrt(mean(x[t, :]^2) + eps)";
  let arguments = (ins Moe_Float<2>:$x, Moe_WeightOf<[1]>:$weight, F64Attr:$eps);
  let results = (outs Moe_Float<2>:$result);
  let assemblyFormat = "$x `,` $weight `eps` $eps attr-dict `:` type($x) `,` type($weight) `->` type($result)";
  let hasVerifier = 1;
}

def Moe_ReshapeOp : Moe_Op<"reshape", [Pure]> {
  let summary = "Split or join the dimensions after the first: [T, H * d] <-> [T, H, d]";
  let arguments = (ins TensorRankOf<[F32], [2, 3]>:$x);
  let results = (outs TensorRankOf<[F32], [2, 3]>:$result);
  let assemblyFormat = "$x attr-dict `:` type($x) `->` type($result)";
  let hasVerifier = 1;
}

def Moe_SplitOp : Moe_Op<"split", [Pure]> {
  let summary = "Cut the last dimension into consecutive parts";
  let arguments = (ins TensorRankOf<[F32], [2, 3]>:$x);
  let results = (outs Variadic<TensorRankOf<[F32], [2, 3]>>:$parts);
  let assemblyFormat = "$x attr-dict `:` type($x) `->` type($parts)";
  let hasVerifier = 1;
}

def Moe_RopeOp : Moe_Op<"rope", [Pure]> {
  let summary = "Rotate channel pairs by an angle that grows with the position";
  let arguments = (ins TensorRankOf<[F32], [2, 3]>:$x, Moe_Index<1>:$positions, Moe_RopeAttr:$rope);
  let results = (outs TensorRankOf<[F32], [2, 3]>:$result);
  let assemblyFormat = "$x `at` $positions $rope attr-dict `:` type($x) `,` type($positions) `->` type($result)";
  let hasVerifier = 1;
}

def Moe_CacheAppendOp : Moe_Op<"cache_append", [MemoryEffects<[MemRead, MemWrite]>,
    DeclareOpInterfaceMethods<SymbolUserOpInterface>]> {
  let summary = "Store this step's entries and give the whole context of its sequences";
  let arguments = (ins FlatSymbolRefAttr:$cache, Variadic<Moe_Float<2>>:$parts,
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

def Moe_AttentionOp : Moe_Op<"attention", [Pure]> {
  let summary = "Causal attention with a decoupled rotary key, over a ragged batch";
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

def Moe_MlaAttentionOp : Moe_Op<"mla_attention", [MemoryEffects<[MemRead, MemWrite]>,
    DeclareOpInterfaceMethods<SymbolUserOpInterface>]> {
  let summary = "Multi-head latent attention in absorbed form, with its cache";
  let arguments = (ins FlatSymbolRefAttr:$cache,
                       Moe_Float<3>:$query, Moe_Float<3>:$rope_query,
                       Moe_Float<2>:$latent, Moe_Float<2>:$rope_key,
                       Moe_WeightOf<[3]>:$w_uk, Moe_WeightOf<[3]>:$w_uv,
                       Moe_Index<1>:$positions, Moe_Index<1>:$slots, F64Attr:$scale);
  let results = (outs Moe_Float<3>:$result);
  let assemblyFormat = [{
    $cache `query` `(` $query `,` $rope_query `)` `entry` `(` $latent `,` $rope_key `)`
    `up` `(` $w_uk `,` $w_uv `)` `at` `(` $positions `,` $slots `)` `scale` $scale attr-dict
    `:` functional-type(operands, results)
  }];
  let hasVerifier = 1;
}

def Moe_RouteOp : Moe_Op<"route", [Pure]> {
  let summary = "Choose the top-k experts of each token";
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

def Moe_ExpertsOp : Moe_Op<"experts", [Pure]> {
  let summary = "Weighted sum of the chosen experts' SwiGLU networks";
  let arguments = (ins Moe_Float<2>:$x, Moe_Float<2>:$weights, Moe_Index<2>:$experts,
                       Moe_WeightOf<[3]>:$gate, Moe_WeightOf<[3]>:$up, Moe_WeightOf<[3]>:$down,
                       Optional<Moe_Float<2>>:$residual);
  let results = (outs Moe_Float<2>:$result);
  let assemblyFormat = [{
    $x `route` `(` $weights `,` $experts `)` `ffn` `(` $gate `,` $up `,` $down `)`
    (`add` $residual^ `:` type($residual))? attr-dict
    `:` type($x) `,` type($weights) `,` type($experts) `,` type($gate) `,` type($up) `,` type($down) `->` type($result)
  }];
  let hasVerifier = 1;
}

#endif
