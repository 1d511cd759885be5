// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// What a kernel must do, without how: the contract between the lowering to
/// `exec`, which chooses a spec for each op, and the emitters of a target,
/// which turn a spec into code. A spec travels in IR as the dictionary of an
/// `exec.kernel` op; equal specs are one kernel.
///
/// Conventions of all kinds:
/// - Activations are f32, row-major, at natural size; strides count elements.
/// - A kernel stores exactly the elements it owns (tails are masked). Loads may
///   run up to 31 elements past the end of a row or buffer: whoever owns
///   memory leaves 128 readable bytes behind it, and no result depends on them.
/// - "rows" is the number of tokens `T` or, where `rows == R`, of logits asked for.
/// - Each row's result is computed in an order that depends on the spec alone:
///   not on T, not on the rows beside it, not on the thread.
/// - Weights in panels: `[batch, ceil(n / kPanelWidth), k, kPanelWidth]`, as `#moe.pack_panels` has them for
///   `panelColumns` of their type.

#ifndef MOEC_CODEGEN_COMMON_KERNELSPEC_H
#define MOEC_CODEGEN_COMMON_KERNELSPEC_H

#include "dialects/Formats/CodedEntry.h"
#include "dialects/Formats/Groups.h"
#include "runtime/Support/CacheCodes.h"
#include "runtime/Support/DType.h"

#include "mlir/IR/BuiltinAttributes.h"
#include "mlir/Support/LLVM.h"

#include <algorithm>
#include <string>
#include <variant>
#include <vector>

namespace moec {

/// Output features side by side in a weight panel.
inline constexpr int64_t kPanelWidth = 32;
/// Neighbouring columns that lie together in a panel of weights of a type.
constexpr int64_t panelColumns(DType weight) { return weight == DType::BF16 ? 2 : 1; }

/// Which dynamic extent a kernel runs over.
enum class Rows { T, R };

/// out[t, :] = float(table[tokens[t], :]).
/// args: tokens i32[T], table, out. Grid: T.
struct EmbedSpec {
  DType table = DType::BF16;
  int64_t width = 0; ///< D; also the row stride of the table
  int64_t outStride = 0;
};

/// out[r, :] = x[rows[r], :]. args: x, rows i32[R], out. Grid: R.
struct GatherRowsSpec {
  int64_t width = 0, xStride = 0, outStride = 0;
};

/// out[t, :] = g * x[t, :] / sqrt(mean(x[t, :]^2) + eps).
/// args: x, g f32[width] (readable to a multiple of 16; only with `weight`), out. Grid: rows.
struct RmsNormSpec {
  int64_t width = 0, xStride = 0, outStride = 0;
  double eps = 0;
  Rows rows = Rows::T;
  bool weight = true; ///< false: what reads `out` has g in its own weights
};

/// How the rows of a GEMM over experts are found. The sorted lists come from `dispatch`.
enum class Routing {
  None,    ///< row i of x gives row i of y
  Gather,  ///< x row order[i] / topk -> y row i, for i in the expert's range
  Scatter, ///< x row i -> y row order[i]
};

enum class Epilogue {
  None,
  Add,    ///< y = residual + x * w^T
  Swiglu, ///< panels hold 16 gate rows then 16 up rows: y = silu(gate) * up
  Argmax, ///< y = x * w^T, not stored if y is null, and each panel's candidate for an `argmax`
};

/// Rows rounded to int8, as `moe.fake_quantize` rounds them, in the form that GEMM kernels read as `input` U8: for each
/// 32 columns a record of their codes, their scale f32, and `-offset` times the sum of the codes, i32. args: x, out
/// u8[rows * rowsPerToken, outStride]. Grid: rows * rowsPerToken.
struct QuantizeRowsSpec {
  int64_t width = 0;      ///< a multiple of `group`
  int64_t scaleCols = 32; ///< columns that share a scale, which all of their records have; a multiple of `group`
  int64_t xStride = 0, outStride = 0;
  int64_t offset = 0; ///< what the weights' codes are stored plus
  int64_t rowsPerToken = 1;
  Rows rows = Rows::T;

  static constexpr int64_t group = 32;
  static constexpr int64_t scaleAt = group, sumAt = group + 4, recordBytes = group + 8;
  static constexpr int64_t rowBytes(int64_t width) { return width / group * recordBytes; }
};

/// Rows rounded to bf16, to nearest even. args: x, out. Grid: rows * rowsPerToken.
struct CastRowsSpec {
  DType to = DType::BF16; ///< or F32, for kernels that read no other
  int64_t width = 0, xStride = 0, outStride = 0;
  int64_t rowsPerToken = 1;
  Rows rows = Rows::T;
};

/// y[t, b, n] = epilogue(sum_k x[t, b, k] * w[b, n, k]), f32 sums in order of k
/// (with `scaleCols` or `group`, per block of columns: sum of the block's products, times its scale).
/// Of codes on both sides, products are summed up as integers over each 32 columns, and times both scales in f32; of
/// bf16 on both sides, two columns are taken at a time as `vdpbf16ps` takes them, the second one first, or 32 as the
/// tiles of AMX do; what is below 2^-126 in magnitude may count as 0 or as what it is.
/// args: x, w, [scales], [residual], y, [candidates, of an argmax], [offsets i32[E+1], active i32[E+1],
/// order i32[rows * topk]].
/// Grid: Routing::None: batch * parts * ceil(rows / tokenBlock), task = (block * batch + b) * parts + p;
///       else: min(batch, rows * topk) * parts, task = a * parts + p for the a-th active expert;
///       a part is `panelsPerTask` panels.
struct GemmSpec {
  DType weight = DType::BF16; ///< F32, BF16, F16, F8E4M3, or U8: codes and scales as `#moe.pack_groups` has them
  int64_t n = 0, k = 0;
  int64_t batch = 1; ///< heads, or experts where routing is on
  int64_t scaleCols =
      0;             ///< F8E4M3: columns of a scale block; scales f32 [batch, panels, ceil(k / scaleCols), kPanelWidth]
  int64_t group = 0; ///< U8: columns that share a scale; 4-bit codes have whole units of them
  CodeKind codes = CodeKind::Int4; ///< U8: what the codes are
  DType groupScale = DType::F16;   ///< U8: what scales are stored as
  /// What x is: F32; U8, rows of QuantizeRowsSpec, whose strides count bytes, for weights of Int4, Int4Zero, Int8 or
  /// F4E2M1 in groups of 32; or BF16, for weights of BF16, with even strides.
  DType input = DType::F32;
  /// What y is: F32; BF16, rounded to nearest even; or U8, rows of QuantizeRowsSpec with a scale for each 32 columns,
  /// whose strides count bytes.
  DType output = DType::F32;
  int64_t outputOffset = 0; ///< U8: the `offset` of y's records
  int64_t xStride = 0, xBatch = 0, yStride = 0, yBatch = 0, residualStride = 0;
  Epilogue epilogue = Epilogue::None;
  Routing routing = Routing::None;
  int64_t topk = 0;
  Rows rows = Rows::T;

  static constexpr int64_t tokenBlock = 64;
  /// U8: how the weights are stored.
  GroupFormat format() const { return {codes, /*rows=*/1, group, groupScale}; }
  /// Whether there are kernels that take codes for rows of `k` codes of `format`, and what is then added to codes to
  /// make them unsigned.
  static bool takesCodes(const GroupFormat &format, int64_t k) {
    bool blocks = format.group == k || format.group % QuantizeRowsSpec::group == 0;
    bool integers = format.codes != CodeKind::F8E4M3; // those of f4e2m1 twice over
    return integers && !format.hasGlobal() && format.rows == 1 && blocks && k % QuantizeRowsSpec::group == 0;
  }
  /// Of codes with zero points, by which the sum of a row's codes is multiplied, it is 1; of those of f4e2m1, which are
  /// multiplied as integers, twice what they stand for, it is 12.
  static int64_t offsetOf(CodeKind codes) {
    switch (codes) {
    case CodeKind::Int4:
      return 8;
    case CodeKind::Int4Zero:
      return 1;
    case CodeKind::F4E2M1:
      return 12;
    case CodeKind::Int8:
    case CodeKind::F8E4M3:
      return 128;
    }
    llvm_unreachable("all codes are listed");
  }
  int64_t panels() const {
    int64_t width = epilogue == Epilogue::Swiglu ? kPanelWidth / 2 : kPanelWidth;
    return (n + width - 1) / width;
  }
  /// A record of y has one owner.
  int64_t panelsPerTask() const { return output == DType::U8 && epilogue == Epilogue::Swiglu ? 2 : 1; }
  int64_t parts() const { return panels() / panelsPerTask(); }
};

/// out[t, i] = factor * cos(a), out[t, dim/2 + i] = factor * sin(a), where
/// a = f32(position) * invFreq[i] rounded to f32; cos and sin within 1 ulp for |a| < 2^24.
/// args: positions i32[T], out f32[T, dim]. Grid: T.
struct RopeAnglesSpec {
  std::vector<float> invFreq; ///< dim / 2
  double factor = 1;
};

/// Rotates interleaved pairs (2i, 2i + 1) of each head by the angles. `x` and `out` may be the same.
/// args: x, angles f32[T, dim], out. Grid: T.
struct RopeSpec {
  int64_t heads = 1, dim = 0;
  int64_t xStride = 0, xHead = 0, outStride = 0, outHead = 0;
};

/// Writes cache entry [latent | rope key | zeros up to width] of (slot, position), rounded once to what it is stored
/// as; or, with `codes`, bytes as CodedEntry lays them out, those between its parts left as they are. args: latent,
/// ropeKey, positions, slots, pageTable i32[slots, pages_per_slot], cache [pages, 64, width], or U8 [pages, 64,
/// CodedEntry::stride()]. Grid: T.
struct CacheAppendSpec {
  int64_t latent = 0, rope = 0, width = 0;
  int64_t latentStride = 0, ropeStride = 0;
  DType cache = DType::F32;            ///< what entries are read as; or BF16, as with all codes
  CacheCodes codes = CacheCodes::None; ///< what their latents are stored in, if not in the same
};

/// What lies in the cache of a kernel.
template <class Spec> DType cacheElement(const Spec &spec) {
  return spec.codes == CacheCodes::None ? spec.cache : DType::U8;
}

/// Absorbed latent attention: for each head, over entries j = 0 .. position of the token's slot,
/// p = softmax(scale * q . cache[j, 0 .. latent + rope)), out = sum_j p_j cache[j, 0 .. latent).
/// A context is cut into at most `maxSpans` spans of equally many pages, `leastSpanPages` or more, each taken page by
/// page with a running maximum, and spans are folded together in order: the order depends on the position alone. Where
/// the cache is BF16, q and p are rounded to it, and elements are taken in pairs, the second of two first, as vdpbf16ps
/// does; what is below 2^-126 in magnitude may count as 0 or as what it is. With `codes`, an entry is what
/// `#moe.cache_codes` reads of it. With `runBelow`, rows of tokens in runs
/// (neighbours of one slot) of so many tokens or more are not written. Where a step has at most `splitRows` rows (a
/// token's block of heads each), tasks make one span each, and `parts` of f32[splitRows, maxSpans, partSize()] instead
/// of `out`: an mla_combine after it folds them together. args: q, positions, slots, pageTable, cache, parts, out.
/// Grid: T * ceil(heads / headBlock) * maxSpans.
struct MlaAttentionSpec {
  int64_t heads = 0, latent = 0, rope = 0, width = 0;
  int64_t qStride = 0, qHead = 0, outStride = 0, outHead = 0;
  double scale = 1;
  int64_t runBelow = 0;     ///< 0: all tokens
  DType cache = DType::F32; ///< as in CacheAppendSpec
  CacheCodes codes = CacheCodes::None;

  static constexpr int64_t headBlock = 16;
  static constexpr int64_t maxSpans = 16, leastSpanPages = 2;
  static constexpr int64_t splitRows = 8;
  int64_t blocks() const { return (heads + headBlock - 1) / headBlock; }
  /// Floats of a span's part: maxima, sums and weighted sums of latents.
  int64_t partSize() const { return 2 * headBlock + std::min(heads, headBlock) * ((latent + 15) / 16 * 16); }
};

/// What an mla_attention of the same heads and latent left to do, if anything: out from its parts.
/// args: parts, positions, slots, out. Grid: T * heads.
struct MlaCombineSpec {
  int64_t heads = 0, latent = 0;
  int64_t outStride = 0, outHead = 0;
  int64_t runBelow = 0; ///< 0: all tokens

  int64_t blocks() const { return MlaAttentionSpec{heads}.blocks(); }
  int64_t partSize() const { return MlaAttentionSpec{heads, latent}.partSize(); }
};

/// Expanded latent attention: for each head, over entries j = 0 .. position of the token's slot, with
/// key_j = w_uk . latent_j and value_j = w_uv . latent_j, p = softmax(scale * (q . key_j + ropeQ . ropeKey_j)) and
/// out = sum_j p_j value_j. Pages are taken from 0 with a running maximum; each sum is one chain in rising order. Where
/// the cache is BF16, queries, keys, p and values are rounded to it and multiplied in pairs as mla_attention does; so
/// are latents and weights, if those are BF16 too. With `codes`, an entry is what `#moe.cache_codes` reads of it.
/// Tokens in runs (neighbours of one slot) shorter than `runFrom` are not written.
/// With `output` BF16 or U8, rows of `rounded` are those of out as a gemm of that output has them.
///
/// args: q, ropeQ (rotated), positions, slots, pageTable, cache, w_uk in panels (batch: heads, n: nope, k: latent),
/// w_uv in panels (n: value), out, [rounded]. Grid: heads * ceil(T / tokenBlock), task = block * heads + head.
struct MlaExpandedSpec {
  DType weight = DType::BF16; ///< of w_uk and w_uv: F32, BF16 or F16
  int64_t heads = 0, nope = 0, latent = 0, rope = 0, value = 0, width = 0;
  int64_t qStride = 0, qHead = 0, ropeStride = 0, ropeHead = 0, outStride = 0, outHead = 0;
  double scale = 1;
  int64_t runFrom = 1;      ///< 1: all tokens
  DType cache = DType::F32; ///< as in CacheAppendSpec
  CacheCodes codes = CacheCodes::None;
  DType output = DType::F32;
  int64_t outputOffset = 0, roundedStride = 0, roundedHead = 0;

  /// Tokens that share one expansion of a page.
  static constexpr int64_t tokenBlock = 512;
};

/// The router: see moe.route for the maths. args: logits, [bias f32[experts]],
/// weights f32[rows, topk + shared], chosen i32[rows, topk + shared]. Grid: rows.
/// The last `shared` choices of each row are the experts from `experts` on, with weight 1.
struct RouteSpec {
  int64_t experts = 0, topk = 0, groups = 1, topkGroups = 1;
  int64_t shared = 0;
  bool sigmoid = false;      ///< else softmax
  bool groupTop2Sum = false; ///< else max
  bool normalize = false;
  bool bias = false;
  double scale = 1;
  int64_t logitsStride = 0;
  Rows rows = Rows::T;
};

/// Sorts the rows * topk (row, choice) entries by expert, stably.
/// args: chosen i32[rows, topk], offsets i32[E+1] (out), active i32[E+1] (out: count, then the experts
/// that have entries, ascending), order i32[rows * topk] (out: entry = t * topk + k). Grid: 1.
/// With `members`, E numbers in ascending order, expert i of all outputs is the choice members[i]; entries of
/// other choices count for none of them, and what lies in order from offsets[E] on is unspecified.
struct DispatchSpec {
  int64_t experts = 0, topk = 0;
  std::vector<int64_t> members = {}; ///< empty: choices are the experts' numbers
  Rows rows = Rows::T;
};

/// out[t, :] = (residual[t, :] +) sum_k weights[t, k] * y[t * topk + k, :], k ascending.
/// With `members` the sum, from 0, is over the k whose chosen[t, k] is one of them; other rows of y are not read.
/// args: y, weights f32[rows, topk], [chosen i32[rows, topk], if there are members], [residual], out. Grid: rows.
struct CombineSpec {
  int64_t topk = 0, width = 0;
  int64_t yStride = 0, residualStride = 0, outStride = 0;
  bool residual = false;
  std::vector<int64_t> members = {};
  Rows rows = Rows::T;
};

/// out[r] = the column of the greatest of `count` candidates, the lowest of equal ones; -1 if there is none above
/// -infinity. A candidate is the greatest of 32 neighbouring columns, numbers alone, and its column: candidates
/// f32[rows, 2 * count] hold the values of a row, then the bits of the columns as i32.
/// args: candidates, out i32[rows]. Grid: rows.
struct ArgmaxSpec {
  int64_t count = 0;
  Rows rows = Rows::R;
};

/// out = a + b, or silu(a) * b. args: a, b, out. Grid: rows.
struct ElementwiseSpec {
  bool swiglu = false; ///< else add
  int64_t width = 0, aStride = 0, bStride = 0, outStride = 0;
  Rows rows = Rows::T;
};

/// out[t, :] = x[t, :] rounded to codes times scales, one f32 for each `group` columns of a row: see moe.fake_quantize.
/// args: x, out; they may be the same. Grid: rows * rowsPerToken.
struct FakeQuantizeSpec {
  CodeKind codes = CodeKind::Int8; ///< or F8E4M3
  int64_t width = 0, group = 0;
  int64_t xStride = 0, outStride = 0;
  int64_t rowsPerToken = 1;
  Rows rows = Rows::T;
};

struct RowsSpec;
struct GemmChainSpec;
struct MlaValuesSpec;

using KernelSpec = std::variant<EmbedSpec, GatherRowsSpec, RmsNormSpec, GemmSpec, RopeAnglesSpec, RopeSpec,
                                CacheAppendSpec, MlaAttentionSpec, MlaCombineSpec, MlaExpandedSpec, RouteSpec,
                                DispatchSpec, CombineSpec, ArgmaxSpec, ElementwiseSpec, FakeQuantizeSpec,
                                QuantizeRowsSpec, CastRowsSpec, RowsSpec, GemmChainSpec, MlaValuesSpec>;

// Kernels made of others, their parts: one launch instead of several, each of which would wait for all tasks of the one
// before. Arguments are those of all parts, in order. No part is made of parts itself.

/// Kernels of one grid that `worksOnRows`, in order for each row. Grid: that of each part.
struct RowsSpec {
  std::vector<KernelSpec> parts; ///< at least two
};

/// A gemm without routing or batch, then what reads its rows: the route of a router's logits, and each dispatch that
/// sorts its choices; or the argmax of a head's candidates. Who ends the last task of a block of `GemmSpec::tokenBlock`
/// rows runs the second part over these rows; who ends the last block runs each dispatch. args: those of the parts,
/// then `arrivals` i32[1 + ceil(rows / tokenBlock)], by which tasks count each other: 0 before and after. Grid: that of
/// the gemm.
struct GemmChainSpec {
  std::vector<KernelSpec> parts; ///< gemm, route, dispatch, ...; or gemm, argmax
};

/// The mla_combine of all heads, then their gemm, whose x are the rows that it writes: a task puts together the rows of
/// a head that it multiplies. Grid: heads * ceil(T / GemmSpec::tokenBlock), task = block * heads + head.
struct MlaValuesSpec {
  std::vector<KernelSpec> parts; ///< mla_combine, gemm
};

template <class Spec>
concept MadeOfParts = requires(const Spec &spec) { spec.parts; };

/// Whether each task of a kernel touches one row of the buffers that have as many rows as there are tasks, or a fixed
/// number of them for each, and no two tasks the same one; what else it writes is nobody's but the cache's entry of
/// its token. Left out are an embedding, which reads few bytes of a weight, and a route, which has a GemmChainSpec.
bool worksOnRows(const KernelSpec &spec);

/// "embed", "gather_rows", "rms_norm", "gemm", ...
llvm::StringRef kindOf(const KernelSpec &spec);
/// A readable symbol that tells the spec's main parameters, e.g. "gemm_bf16_n1280_k256_add"; not unique.
std::string symbolFor(const KernelSpec &spec);
/// To and from the dictionary of an `exec.kernel`. `fromAttr` fails with a diagnostic on unknown or missing keys.
mlir::DictionaryAttr toAttr(const KernelSpec &spec, mlir::MLIRContext *context);
mlir::FailureOr<KernelSpec> fromAttr(llvm::StringRef kind, mlir::DictionaryAttr attr,
                                     llvm::function_ref<mlir::InFlightDiagnostic()> emitError);

} // namespace moec

#endif // MOEC_CODEGEN_COMMON_KERNELSPEC_H
