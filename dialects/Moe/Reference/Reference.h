// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The definition of right: one plain function per `moe` op, on whole tensors,
/// in the order in which the papers write the sums. Everything else in moec
/// (passes, kernels, layouts) is measured against these functions, so they
/// stay slow and obvious.
///
/// Each is instantiated for `float` and `double`: activations, weights and all
/// arithmetic are in that type (rotary angles excepted, see `rope`). Weights
/// are the stored values, widened exactly. The shapes stated are the caller's
/// duty, as are indices within range; the interpreter checks both.
///
/// Letters: T tokens, R rows, S context entries, E experts, K top-k, D model
/// width, F expert width, H heads, N and V widths of a head's key and value.

#ifndef MOEC_DIALECTS_MOE_REFERENCE_REFERENCE_H
#define MOEC_DIALECTS_MOE_REFERENCE_REFERENCE_H

#include "dialects/Moe/MoeDialect.h"
#include "runtime/Support/Result.h"

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

namespace mlir::moe::reference {

/// A dense tensor, row-major, that owns its elements.
template <typename T> struct Tensor {
  std::vector<int64_t> shape;
  std::vector<T> data;

  Tensor() = default;
  /// Zeros.
  explicit Tensor(std::vector<int64_t> dims) : shape(std::move(dims)), data(count(shape)) {}
  Tensor(std::vector<int64_t> dims, std::vector<T> elements) : shape(std::move(dims)), data(std::move(elements)) {
    assert(data.size() == count(shape));
  }

  /// Elements of a tensor of shape `dims`.
  static size_t count(llvm::ArrayRef<int64_t> dims) {
    size_t product = 1;
    for (int64_t dim : dims)
      product *= dim;
    return product;
  }

  int64_t rank() const { return shape.size(); }
  int64_t dim(int64_t i) const { return shape[i]; }
  int64_t lastDim() const { return shape.back(); }
  /// Elements per index of the first dimension.
  int64_t rowSize() const { return count(llvm::ArrayRef<int64_t>(shape).drop_front()); }
  T *row(int64_t i) { return data.data() + i * rowSize(); }
  const T *row(int64_t i) const { return data.data() + i * rowSize(); }
  /// The contiguous last dimension at `[i, j, :]` of a tensor of rank 3.
  T *row(int64_t i, int64_t j) { return data.data() + (i * shape[1] + j) * shape[2]; }
  const T *row(int64_t i, int64_t j) const { return data.data() + (i * shape[1] + j) * shape[2]; }

  bool operator==(const Tensor &) const = default;
};

/// Tokens, positions, slots, rows, experts.
using IndexTensor = Tensor<int32_t>;

/// `moe.embed`: y[t, :] = table[tokens[t], :], unscaled.
/// table [vocabulary, D], tokens [T] -> [T, D].
template <typename T> Tensor<T> embed(const Tensor<T> &table, const IndexTensor &tokens);

/// `moe.gather_rows`: y[r, :] = x[rows[r], :]. x [T, D], rows [R] -> [R, D].
template <typename T> Tensor<T> gatherRows(const Tensor<T> &x, const IndexTensor &rows);

/// `moe.linear`: y[t, n] = sum_k x[t, k] * w[n, k] (+ residual[t, n]), k ascending, the residual last.
/// x [T, K], weight [N, K] as checkpoints store it, residual [T, N] or null -> [T, N].
template <typename T>
Tensor<T> linear(const Tensor<T> &x, const Tensor<T> &weight, const Tensor<T> *residual = nullptr);

/// `moe.swiglu`: y = silu(gate) * up, silu(v) = v / (1 + exp(-v)). Source: Shazeer 2020, arXiv:2002.05202.
template <typename T> Tensor<T> swiglu(const Tensor<T> &gate, const Tensor<T> &up);

/// `moe.gate_up`: y = swiglu(x * gate^T, x * up^T). x [T, D], gate and up [F, D] -> [T, F].
template <typename T> Tensor<T> gateUp(const Tensor<T> &x, const Tensor<T> &gate, const Tensor<T> &up);

/// `moe.add`: y = lhs + rhs, element by element.
template <typename T> Tensor<T> add(const Tensor<T> &lhs, const Tensor<T> &rhs);

/// `moe.rms_norm`: y[t, :] = weight * x[t, :] / sqrt(mean(x[t, :]^2) + eps).
/// x [T, D], weight [D] or null, which is a weight of ones -> [T, D].
/// Source: Zhang and Sennrich 2019, arXiv:1910.07467.
template <typename T> Tensor<T> rmsNorm(const Tensor<T> &x, const Tensor<T> *weight, double eps);

/// `moe.reshape`: the same elements in another shape of equal size.
template <typename T> Tensor<T> reshape(const Tensor<T> &x, std::vector<int64_t> shape);

/// `moe.split`: consecutive parts of the last dimension; `widths` sum to it.
template <typename T> std::vector<Tensor<T>> split(const Tensor<T> &x, llvm::ArrayRef<int64_t> widths);

/// `moe.rope`: rotates the interleaved pairs (2i, 2i + 1) of each head by the angle
/// a = f32(positions[t]) * invFreq[i], rounded to f32 in both precisions because that is how the
/// models were trained; cosine and sine are in the working precision, times `factor`:
///   y[2i]     = x[2i] * cos a - x[2i + 1] * sin a
///   y[2i + 1] = x[2i] * sin a + x[2i + 1] * cos a
/// x [T, d] or [T, H, d], positions [T], invFreq [d / 2].
/// Source: Su et al. 2021, arXiv:2104.09864; pairs as in DeepSeek's inference programs (complex multiplication).
template <typename T>
Tensor<T> rope(const Tensor<T> &x, const IndexTensor &positions, llvm::ArrayRef<float> invFreq, double factor);

/// The cache of one layer: an entry for each (slot, position).
template <typename T> using Cache = std::map<std::pair<int32_t, int32_t>, std::vector<T>>;

/// The whole context of a step's sequences: for each slot, ascending, its entries at positions 0, 1, 2, ...
template <typename T> struct Context {
  std::vector<Tensor<T>> parts; ///< each [S, width of the part]
  IndexTensor positions, slots; ///< [S]
};

/// `moe.cache_append`: stores the entry of each token (its row of every part, side by side) under (slot, position),
/// over what was there, and gives the context of each distinct slot of the step up to its greatest position in it.
/// parts each [T, width], positions and slots [T]. Fails, with `cache` as it was, if the step names an entry
/// twice or if a context would have a hole.
template <typename T>
moec::Result<Context<T>> cacheAppend(Cache<T> &cache, const std::vector<Tensor<T>> &parts, const IndexTensor &positions,
                                     const IndexTensor &slots);

/// The rows of a context that query `t` sees: those of its own slot at positions up to its own.
std::vector<int64_t> visibleRows(int64_t t, const IndexTensor &positions, const IndexTensor &slots,
                                 const IndexTensor &contextPositions, const IndexTensor &contextSlots);

/// `moe.attention`: for each query t and head h over its visible rows j,
///   p = softmax_j(scale * (query[t, h] . key[j, h] + ropeQuery[t, h] . ropeKey[j])),  y[t, h] = sum_j p_j value[j, h].
/// The rotary key is one for all heads. query [T, H, N], ropeQuery [T, H, dr], key [S, H, N], ropeKey [S, dr],
/// value [S, H, V] -> [T, H, V]. Every query must see a row.
/// Source: DeepSeek-V2, arXiv:2405.04434, sec. 2.1. `scale` holds YaRN's m^2 where the model has it.
template <typename T>
Tensor<T> attention(const Tensor<T> &query, const Tensor<T> &ropeQuery, const Tensor<T> &key, const Tensor<T> &ropeKey,
                    const Tensor<T> &value, const IndexTensor &positions, const IndexTensor &slots,
                    const IndexTensor &contextPositions, const IndexTensor &contextSlots, double scale);

/// `moe.mla_attention`: `attention` on a cache of [latent | rope key]. In absorbed form, with c_j the cached latents,
///   qa = query[t, h] . wUk[h],  p = softmax_j(scale * (qa . c_j + ropeQuery[t, h] . ropeKey_j)),
///   y[t, h] = wUv[h] . (sum_j p_j c_j).
/// Tokens of a run (neighbours of one slot) of at least `expandedFrom` tokens are in expanded form instead (0: none
/// are):
///   `attention` over the keys wUk[h] . c_j and values wUv[h] . c_j.
/// query [T, H, N], ropeQuery [T, H, dr], latent [T, C] (normed), ropeKey [T, dr] (rotated), wUk [H, N, C],
/// wUv [H, V, C] -> [T, H, V]. Fails as `cacheAppend` does.
/// Source: DeepSeek-V2, arXiv:2405.04434, sec. 2.1.2 (the up-projections absorbed into query and output).
template <typename T>
moec::Result<Tensor<T>> mlaAttention(Cache<T> &cache, const Tensor<T> &query, const Tensor<T> &ropeQuery,
                                     const Tensor<T> &latent, const Tensor<T> &ropeKey, const Tensor<T> &wUk,
                                     const Tensor<T> &wUv, const IndexTensor &positions, const IndexTensor &slots,
                                     double scale, int64_t expandedFrom = 0);

struct RouteOptions {
  Scoring scoring = Scoring::Softmax;
  int64_t topk = 1;
  int64_t groups = 1;
  int64_t topkGroups = 1;
  GroupScore groupScore = GroupScore::Max;
  bool normalize = false;
  double scale = 1;
};

template <typename T> struct Routing {
  Tensor<T> weights;   ///< [T, K], in order of choice
  IndexTensor experts; ///< [T, K], distinct in each row
};

/// `moe.route`: chooses the top-k experts of each token.
///   p = scoring(logits[t, :])                      softmax is over all E experts
///   b = p + bias                                   without bias, b = p
///   if groups > 1: a group of E / groups neighbours scores the largest b in it, or the sum of its two largest;
///                  b = -inf outside the best topkGroups groups
///   experts[t, :] = argtopk(b);  w = p[experts[t, :]]
///   if normalize: w /= sum(w) + 1e-20
///   weights[t, :] = w * scale
/// The bias steers the choice and enters no weight. Dropped groups count as -inf, not 0: a biased score may be
/// negative. Every tie goes to the lower index, of groups as of experts.
/// `normalize` and `scale` both apply; for V2, where a model does only one, the importer sets the other to nothing.
/// logits [T, E], bias [E] or null; groups divides E, topk <= topkGroups * E / groups.
/// Sources: DeepSeek-V2, arXiv:2405.04434, sec. 2.1.2 and 2.2.2; DeepSeek-V3, arXiv:2412.19437, sec. 2.1.2.
template <typename T> Routing<T> route(const Tensor<T> &logits, const Tensor<T> *bias, const RouteOptions &options);

/// `moe.fake_quantize`: each group of a row rounded to codes times a scale, or each element to bf16. x [T, D] -> [T,
/// D].
template <typename T> Tensor<T> fakeQuantize(const Tensor<T> &x, Attribute format);

/// Latents [T, C] as a `moe.cache` in codes gives them back once they are stored: `#moe.cache_codes`.
template <typename T> Tensor<T> fromCodes(const Tensor<T> &latents, CacheCodesAttr format);

/// `moe.experts`: y[t, :] = sum_k weights[t, k] * (down[e] * swiglu(gate[e] * x[t], up[e] * x[t])) (+ residual[t, :])
/// with e = experts[t, k]; k ascending, weighted after `down`, the residual last. What `down` multiplies is first
/// rounded to `activations`, unless null.
/// x [T, D], weights and experts [T, K], gate and up [E, F, D], down [E, D, F], residual [T, D] or null -> [T, D].
/// With `members` ([E], ascending) the weights at i are those of expert members[i]; others add nothing to the sum.
/// The last `shared` experts are added for every token, after those that it chose.
/// Source: DeepSeek-V3, arXiv:2412.19437, sec. 2.1.2.
template <typename T>
Tensor<T> experts(const Tensor<T> &x, const Tensor<T> &weights, const IndexTensor &chosen, const Tensor<T> &gate,
                  const Tensor<T> &up, const Tensor<T> &down, const Tensor<T> *residual = nullptr,
                  Attribute activations = nullptr, std::optional<llvm::ArrayRef<int64_t>> members = std::nullopt,
                  int64_t shared = 0);

} // namespace mlir::moe::reference

#endif // MOEC_DIALECTS_MOE_REFERENCE_REFERENCE_H
