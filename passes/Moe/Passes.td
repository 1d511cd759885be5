// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef MOEC_PASSES_MOE_PASSES_TD
#define MOEC_PASSES_MOE_PASSES_TD

include "mlir/Pass/PassBase.td"

def FuseMlaPass : InterfacePass<"moe-fuse-mla", "::mlir::FunctionOpInterface"> {
  let summary = "Attend over the latent cache itself instead of projecting the whole context up";
  let description = [{
    Rewrites the expanded form of multi-head latent attention, in which `kv_b` projects every
    cached latent of the context to keys and values, into `moe.mla_attention`:

    ```
    %C, %KR, %cp, %cs = moe.cache_append @cache(%c, %kr) at %p, %s
    %kn, %v = moe.split (moe.reshape (moe.linear %C, %kv_b))
    %o = moe.attention query(%qn, %qr) key(%kn, %KR) value(%v) at(%p, %s) context(%cp, %cs) scale s
    ->
    %o = moe.mla_attention @cache query(%qn, %qr) entry(%c, %kr) up(%w_uk, %w_uv) at(%p, %s) scale s
    ```

    `%w_uk` and `%w_uv` are new weights: the sources and recipe of `%kv_b`, then `head_rows` of
    the key rows and of the value rows of each head. The pattern follows values, never names.

    Left alone: contexts with any other use, a `kv_b` that is not a `moe.weight`, keys and values
    in another order, and two ops between which something touches the cache (the entries are
    stored where the attention is). Run it after `cse` and before weights are packed. It changes
    the order of summation, so results differ by rounding.
  }];
  let statistics = [Statistic<"numFused", "num-fused", "Attentions rewritten to the latent form">];
}

def ChooseMlaPass : InterfacePass<"moe-choose-mla", "::mlir::FunctionOpInterface"> {
  let summary = "Choose between the absorbed and the expanded form of latent attention";
  let description = [{
    Sets `expanded_from` of each `moe.mla_attention`: removes it for `absorbed`, sets 1 for `expanded`. For `auto` it
    is the length of a run of tokens from which multiplying the head's keys and values out of the context costs less
    than scoring every token against the latents:

    ```
    latent * (key + value) / ((2 latent + rope) - (key + rope + value))
    ```

    This is where the multiply-adds over a long context break even, 171 tokens with DeepSeek's widths of 512, 64, 128
    and 128. If no length gains, the attribute is removed. Run it after `moe-fuse-mla`. Results differ by rounding.
    Source of the two forms: DeepSeek-V2, arXiv:2405.04434, sec. 2.1.
  }];
  let options = [Option<"mla", "mla", "std::string", /*default=*/"\"auto\"", "auto, absorbed or expanded">];
  let statistics = [
    Statistic<"numExpanded", "num-expanded", "Attentions that take the expanded form, from some length of a run on">,
    Statistic<"numAbsorbed", "num-absorbed", "Attentions that take the absorbed form only">];
}

def FoldNormPass : InterfacePass<"moe-fold-norm", "::mlir::FunctionOpInterface"> {
  let summary = "Multiply the weights of norms into those of the projections after them";
  let description = [{
    ```
    %n = moe.rms_norm %x, %g eps e
    %y = moe.linear %n, %w
    ->
    %n = moe.rms_norm %x eps e
    %v = moe.weight [sources of %w] recipe [.., #moe.scale_columns<"tensor of %g">] : tensor<NxCxf32>
    %y = moe.linear %n, %v
    ```

    All that reads the norm's result must be a projection that can be scaled: `moe.linear`, `moe.gate_up` or
    `moe.experts`, of which a weight can hold the product with `%g` as exactly as it holds itself. The options are those
    of `moe-quantize` after it, and so say what weights will be. It can be scaled if it will be

    - quantized to nearest, to fewer bits than the checkpoint has: the product is made in f32 and rounded once;
    - f32, stored so or asked for;
    - a router, which is kept: one in bf16 or f16 becomes f32, which is twice its bytes.

    Left alone are norms whose result is stored in a cache, added, or rounded by `moe.fake_quantize`; weights that keep
    16 bits or the codes of the checkpoint; and those that are rounded by a calibration, which knows the inputs as they
    were. So latents of the attention, which the cache holds, keep their norm.

    Formats cost about as much after it as without: on `test/models/tiny-shakespeare` with all linears in one format, the
    KLD against bf16 changes by a factor of 0.94 to 1.11. But the error no longer depends on how a checkpoint divides
    scale between norms and weights: with factors of 1/2, 1 and 2 moved into the norms, int4 costs 2.9 times as much
    without it, and the same with it (docs/accuracy.md).

    Run it before `moe-quantize`. A product of two numbers of 16 bits is exact in f32, others are rounded once: each
    product `x * g * w` of a sum differs by at most 3 * 2^-24 of itself, and logits by rounding.
  }];
  let options = [
    Option<"experts", "experts", "std::string", /*default=*/"\"keep\"", "Format of routed experts">,
    Option<"attention", "attention", "std::string", /*default=*/"\"keep\"", "Format of attention's projections">,
    Option<"dense", "dense", "std::string", /*default=*/"\"keep\"",
           "Format of feed-forward layers that every token takes">,
    Option<"head", "head", "std::string", /*default=*/"\"keep\"", "Format of the projection to logits">,
    Option<"overrides", "overrides", "std::string", /*default=*/"\"\"", "Formats by name: lines of REGEX=FORMAT">,
    Option<"rounding", "rounding", "std::string", /*default=*/"\"nearest\"", "How codes are chosen">];
  let statistics = [Statistic<"numFolded", "num-folded", "Norms that lost their weight">,
                    Statistic<"numScaled", "num-scaled", "Weights that were multiplied by one">];
}

def FuseGateUpPass : InterfacePass<"moe-fuse-gate-up", "::mlir::FunctionOpInterface"> {
  let summary = "Join the gate and up projections so that one GEMM reads the tokens once";
  let description = [{
    ```
    moe.swiglu (moe.linear %x, %gate), (moe.linear %x, %up)  ->  moe.gate_up %x, %gate, %up
    ```

    Both projections must read one `%x`, have weights of one type that are made in one way, no
    residual and no other use; other ops are left as they are. Run it before `moe-fuse-residual`. Results do not change.
  }];
  let statistics = [Statistic<"numFused", "num-fused", "Pairs of projections joined">];
}

def JoinSharedExpertPass : InterfacePass<"moe-join-shared-expert", "::mlir::FunctionOpInterface"> {
  let summary = "Make the shared expert one of the routed experts, which every token chooses";
  let description = [{
    ```
    %y = moe.experts %x route(%w, %e) ffn(%G, %U, %D)
    %s = moe.linear (moe.gate_up %x, %g, %u), %d
    moe.add %y, %s
    ->
    moe.experts %x route(%w, %e) ffn(%G + %g, %U + %u, %D + %d) shared m
    ```

    The shared expert is `m` times as wide as a routed one, and becomes the last `m` of the stacks: `#moe.append` after
    their `stack` puts slices of its weights there, by rows of gate and up and by columns of down. So its products are
    launched with those of the routed experts, and its output is summed up with theirs.

    Left alone is a shared expert that is no multiple of a routed one wide; is stored, or rounds activations, otherwise
    than the routed ones, or so that slices would be rounded otherwise than the whole (cuts within groups, one scale for
    a whole weight, rounding by a calibration); or reads another input. So are routed experts in several formats, and
    those whose choice another op reads. Operands of the sum may be in either order; between gate_up and the linear may
    be a `moe.fake_quantize`.

    Run it after `moe-quantize` and `moe-fuse-gate-up` and before `moe-fuse-residual`. Weights have the values they had.
    The sum over the shared expert's width is cut into `m`, each of which is added by itself: logits differ by rounding,
    and not at all for `m` = 1, where the shared expert's output is added after the routed ones' as it was.
  }];
  let statistics = [Statistic<"numJoined", "num-joined", "Shared experts that became routed ones">];
}

def FuseProjectionsPass : InterfacePass<"moe-fuse-projections", "::mlir::FunctionOpInterface"> {
  let summary = "Join projections of one input, so that one GEMM reads it once";
  let description = [{
    ```
    %q = moe.linear %x, %q_a : tensor<?x7168xf32>, tensor<1536x7168xbf16> -> tensor<?x1536xf32>
    %k = moe.linear %x, %kv_a : tensor<?x7168xf32>, tensor<576x7168xbf16> -> tensor<?x576xf32>
    ->
    %w = moe.weight [sources of %q_a, sources of %kv_a] recipe [.., #moe.concat<[1536, 576]>] : tensor<2112x7168xbf16>
    %y = moe.linear %x, %w : tensor<?x7168xf32>, tensor<2112x7168xbf16> -> tensor<?x2112xf32>
    %q, %k = moe.split %y : tensor<?x2112xf32> -> tensor<?x1536xf32>, tensor<?x576xf32>
    ```

    Weights must be `moe.weight`s that are made in one way, of one element type, and read by nothing
    else. Blocks of FP8 rows stay whole, so that the joined weight can be kept as it is stored: a weight
    whose rows are no whole blocks comes last, and a second one is left out. Left alone are projections
    that add a residual or whose result a `moe.add` takes (`moe-fuse-residual` is for those), gives
    expert scores to `moe.route` or is returned. Run it after `moe-quantize` and `moe-fuse-gate-up`,
    before `moe-fuse-residual`. Results do not change.
  }];
  let statistics = [Statistic<"numFused", "num-fused", "Projections joined with others">];
}

def FuseResidualPass : InterfacePass<"moe-fuse-residual", "::mlir::FunctionOpInterface"> {
  let summary = "Let a projection or the experts add the residual as they store";
  let description = [{
    ```
    moe.add %r, (moe.linear %x, %w)               ->  moe.linear %x, %w add %r
    moe.add %r, (moe.experts %x route .. ffn ..)  ->  moe.experts %x route .. ffn .. add %r
    ```

    The operands may be in either order. An op that has a residual already, another use, or lies
    in another block than the sum is left as it is; if both operands could take the other one as
    residual, experts do so before a projection and the second operand before the first. Sums
    keep their order, so results do not change. Run it last.
  }];
  let statistics = [Statistic<"numFused", "num-fused", "Additions folded into the op before them">];
}

def TrimRowsPass : InterfacePass<"moe-trim-rows", "::mlir::FunctionOpInterface"> {
  let summary = "Compute what comes after the last attention for the rows asked for alone";
  let description = [{
    Moves `moe.gather_rows` up over everything that makes a row of its results from the same row of its operands:

    ```
    %h = moe.linear %o, %w add %x : tensor<?x256xf32> : tensor<?x512xf32>, tensor<256x512xbf16> -> tensor<?x256xf32>
    %n = moe.rms_norm %h, %g eps 1.0e-06 : tensor<?x256xf32>, tensor<256xbf16> -> tensor<?x256xf32>
    %y = moe.gather_rows %n[%rows] : tensor<?x256xf32>, tensor<?xi32> -> tensor<?x256xf32>
    ->
    %or = moe.gather_rows %o[%rows] : tensor<?x512xf32>, tensor<?xi32> -> tensor<?x512xf32>
    %xr = moe.gather_rows %x[%rows] : tensor<?x256xf32>, tensor<?xi32> -> tensor<?x256xf32>
    %h = moe.linear %or, %w add %xr : tensor<?x256xf32> : tensor<?x512xf32>, tensor<256x512xbf16> -> tensor<?x256xf32>
    %y = moe.rms_norm %h, %g eps 1.0e-06 : tensor<?x256xf32>, tensor<256xbf16> -> tensor<?x256xf32>
    ```

    These are projections with their residuals, `gate_up`, `swiglu`, `add`, norms, `fake_quantize`, `route`, `experts`,
    and reshapes and splits between them. An op moves if all that reads its results is a gather of the same rows or
    moves too. So in a step that reads a prompt, which asks for one row or none, the last layer's feed-forward network
    and experts run for that row.

    Left alone are ops of which another reader wants all rows, those before an attention or a write to the cache,
    embeddings, rotations, and reshapes and splits at the upper end, which are views. Run it last: `moe-quantize`
    tells the head by the gather before it. Results do not change.
  }];
  let statistics = [Statistic<"numTrimmed", "num-trimmed", "Ops that run for the rows asked for alone">];
}

def QuantizePass : InterfacePass<"moe-quantize", "::mlir::FunctionOpInterface"> {
  let summary = "Store the weights of projections in other formats";
  let description = [{
    Appends a step to the recipe of each weight that a projection reads, so that its values are those
    the format can hold: `quantize`, or `cast` for `f32`, `bf16` and `f16`. Which weights follow
    from what reads them: `moe.experts`; linears on the way to or from an attention; the linear on
    rows of logits; all other linears and `moe.gate_up` (dense layers and shared experts). Routers,
    norms and embeddings stay as they are, and so do the absorbed projections of `moe.mla_attention`.
    Projections whose format asks for it read their inputs through `moe.fake_quantize`, one for all that
    read the same value; `moe.experts` get `activations`.

    A format is `keep`, `f32`, `bf16`, `f16`, `int8`, `fp8`, `int4`, `mxfp4` or `nvfp4`; some take options
    after colons (`passes/Moe/WeightFormat.h`). `overrides` holds lines `REGEX=FORMAT`, the first of
    which decides for each weight that its POSIX extended regular expression is found in, by the name of
    its first tensor; these may name routers too. Experts of one layer need one format for gate and up.
    `rounding` is `nearest`, `importance` or `feedback`: see `#moe.quantize`.

    Rows that are not whole groups are an error, and so is a line that no weight matches. Run it after
    `moe-fuse-mla` and before gate and up are joined.
  }];
  let options = [
    Option<"experts", "experts", "std::string", /*default=*/"\"keep\"", "Format of routed experts">,
    Option<"attention", "attention", "std::string", /*default=*/"\"keep\"", "Format of attention's projections">,
    Option<"dense", "dense", "std::string", /*default=*/"\"keep\"",
           "Format of feed-forward layers that every token takes">,
    Option<"head", "head", "std::string", /*default=*/"\"keep\"", "Format of the projection to logits">,
    Option<"overrides", "overrides", "std::string", /*default=*/"\"\"", "Formats by name: lines of REGEX=FORMAT">,
    Option<"rounding", "rounding", "std::string", /*default=*/"\"nearest\"", "How codes are chosen">];
  let statistics = [Statistic<"numStored", "num-stored", "Weights that got another format">];
}

def StoreCachePass : Pass<"moe-store-cache", "::mlir::ModuleOp"> {
  let summary = "Store the entries of caches in another format";
  let description = [{
    Sets the `format` of each `moe.cache`, so that entries are rounded as they are stored: `bf16` halves the bytes
    of a cache and what attention reads of it; `int8` and `fp8` store latents as codes with a scale for 128 channels and
    the rope part in bf16, in 656 bytes for DeepSeek's 576 channels. `f32` takes the format away. Results of later steps
    and of the same one change, by what the format rounds.

    What of an entry is its latent, the ops say that store some; a cache that nothing uses is not put into codes.
  }];
  let options = [Option<"format", "format", "std::string", /*default=*/"\"f32\"", "f32, bf16, int8 or fp8">];
  let statistics = [Statistic<"numStored", "num-stored", "Caches that got another format">];
}

#endif
