// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Moe/Reference/Reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <string>

namespace mlir::moe::reference {

template <typename T> static T dot(const T *a, const T *b, int64_t size) {
  T sum = 0;
  for (int64_t i = 0; i < size; ++i)
    sum += a[i] * b[i];
  return sum;
}

/// sum += factor * x
template <typename T> static void accumulate(T *sum, T factor, const T *x, int64_t size) {
  for (int64_t i = 0; i < size; ++i)
    sum[i] += factor * x[i];
}

template <typename T> static T sigmoid(T value) { return T(1) / (T(1) + std::exp(-value)); }

template <typename T> static T silu(T value) { return value / (T(1) + std::exp(-value)); }

/// exp(v - max) / sum, in place; `values` is not empty.
template <typename T> static void softmax(std::vector<T> &values) {
  T max = *std::max_element(values.begin(), values.end());
  T sum = 0;
  for (T &value : values) {
    value = std::exp(value - max);
    sum += value;
  }
  for (T &value : values)
    value /= sum;
}

template <typename T> Tensor<T> embed(const Tensor<T> &table, const IndexTensor &tokens) {
  return gatherRows(table, tokens);
}

template <typename T> Tensor<T> gatherRows(const Tensor<T> &x, const IndexTensor &rows) {
  Tensor<T> y({rows.dim(0), x.dim(1)});
  for (int64_t r = 0; r < rows.dim(0); ++r)
    std::copy_n(x.row(rows.data[r]), x.dim(1), y.row(r));
  return y;
}

template <typename T> Tensor<T> linear(const Tensor<T> &x, const Tensor<T> &weight, const Tensor<T> *residual) {
  Tensor<T> y({x.dim(0), weight.dim(0)});
  // Features outside, so that a large weight is read once.
  for (int64_t n = 0; n < y.dim(1); ++n)
    for (int64_t t = 0; t < y.dim(0); ++t) {
      T sum = dot(x.row(t), weight.row(n), x.dim(1));
      y.row(t)[n] = residual ? sum + residual->row(t)[n] : sum;
    }
  return y;
}

template <typename T> Tensor<T> swiglu(const Tensor<T> &gate, const Tensor<T> &up) {
  Tensor<T> y(gate.shape);
  for (size_t i = 0; i < y.data.size(); ++i)
    y.data[i] = silu(gate.data[i]) * up.data[i];
  return y;
}

template <typename T> Tensor<T> gateUp(const Tensor<T> &x, const Tensor<T> &gate, const Tensor<T> &up) {
  return swiglu(linear(x, gate), linear(x, up));
}

template <typename T> Tensor<T> add(const Tensor<T> &lhs, const Tensor<T> &rhs) {
  Tensor<T> y(lhs.shape);
  for (size_t i = 0; i < y.data.size(); ++i)
    y.data[i] = lhs.data[i] + rhs.data[i];
  return y;
}

template <typename T> Tensor<T> rmsNorm(const Tensor<T> &x, const Tensor<T> *weight, double eps) {
  Tensor<T> y(x.shape);
  int64_t width = x.dim(1);
  for (int64_t t = 0; t < x.dim(0); ++t) {
    const T *in = x.row(t);
    T *out = y.row(t);
    T root = std::sqrt(dot(in, in, width) / T(width) + T(eps));
    for (int64_t d = 0; d < width; ++d)
      out[d] = (weight ? weight->data[d] : T(1)) * (in[d] / root);
  }
  return y;
}

template <typename T> Tensor<T> reshape(const Tensor<T> &x, std::vector<int64_t> shape) {
  return Tensor<T>(std::move(shape), x.data);
}

template <typename T> std::vector<Tensor<T>> split(const Tensor<T> &x, llvm::ArrayRef<int64_t> widths) {
  int64_t width = x.lastDim(), begin = 0;
  int64_t rows = Tensor<T>::count(llvm::ArrayRef<int64_t>(x.shape).drop_back());
  std::vector<Tensor<T>> parts;
  for (int64_t partWidth : widths) {
    std::vector<int64_t> shape = x.shape;
    shape.back() = partWidth;
    Tensor<T> part(std::move(shape));
    for (int64_t row = 0; row < rows; ++row)
      std::copy_n(x.data.data() + row * width + begin, partWidth, part.data.data() + row * partWidth);
    parts.push_back(std::move(part));
    begin += partWidth;
  }
  return parts;
}

template <typename T>
Tensor<T> rope(const Tensor<T> &x, const IndexTensor &positions, llvm::ArrayRef<float> invFreq, double factor) {
  Tensor<T> y(x.shape);
  int64_t width = x.lastDim(), heads = x.rowSize() / width;
  for (int64_t t = 0; t < x.dim(0); ++t)
    for (int64_t i = 0; i < width / 2; ++i) {
      float angle = float(positions.data[t]) * invFreq[i];
      T cosine = std::cos(T(angle)) * T(factor), sine = std::sin(T(angle)) * T(factor);
      for (int64_t h = 0; h < heads; ++h) {
        const T *in = x.row(t) + h * width + 2 * i;
        T *out = y.row(t) + h * width + 2 * i;
        out[0] = in[0] * cosine - in[1] * sine;
        out[1] = in[0] * sine + in[1] * cosine;
      }
    }
  return y;
}

template <typename T>
moec::Result<Context<T>> cacheAppend(Cache<T> &cache, const std::vector<Tensor<T>> &parts, const IndexTensor &positions,
                                     const IndexTensor &slots) {
  std::set<std::pair<int32_t, int32_t>> step;
  std::map<int32_t, int32_t> last; // greatest position of each slot
  for (int64_t t = 0; t < positions.dim(0); ++t) {
    int32_t slot = slots.data[t], position = positions.data[t];
    if (!step.insert({slot, position}).second)
      return moec::Error{"slot " + std::to_string(slot) + " has position " + std::to_string(position) +
                         " twice in one step"};
    auto [it, isNew] = last.try_emplace(slot, position);
    it->second = std::max(it->second, position);
  }
  for (auto [slot, end] : last)
    for (int32_t position = 0; position < end; ++position)
      if (!step.count({slot, position}) && !cache.count({slot, position}))
        return moec::Error{"slot " + std::to_string(slot) + " reaches position " + std::to_string(end) +
                           ", but position " + std::to_string(position) + " was never given"};

  for (int64_t t = 0; t < positions.dim(0); ++t) {
    std::vector<T> entry;
    for (const Tensor<T> &part : parts)
      entry.insert(entry.end(), part.row(t), part.row(t) + part.dim(1));
    cache[{slots.data[t], positions.data[t]}] = std::move(entry);
  }

  Context<T> context;
  std::vector<T> entries;
  for (auto [slot, end] : last)
    for (int64_t position = 0; position <= end; ++position) {
      const std::vector<T> &entry = cache.at({slot, int32_t(position)});
      entries.insert(entries.end(), entry.begin(), entry.end());
      context.positions.data.push_back(position);
      context.slots.data.push_back(slot);
    }
  int64_t size = context.positions.data.size(), width = 0;
  std::vector<int64_t> widths;
  for (const Tensor<T> &part : parts) {
    widths.push_back(part.dim(1));
    width += part.dim(1);
  }
  context.positions.shape = context.slots.shape = {size};
  context.parts = split(Tensor<T>({size, width}, std::move(entries)), widths);
  return context;
}

std::vector<int64_t> visibleRows(int64_t t, const IndexTensor &positions, const IndexTensor &slots,
                                 const IndexTensor &contextPositions, const IndexTensor &contextSlots) {
  std::vector<int64_t> rows;
  for (int64_t j = 0; j < contextPositions.dim(0); ++j)
    if (contextSlots.data[j] == slots.data[t] && contextPositions.data[j] <= positions.data[t])
      rows.push_back(j);
  return rows;
}

template <typename T>
Tensor<T> attention(const Tensor<T> &query, const Tensor<T> &ropeQuery, const Tensor<T> &key, const Tensor<T> &ropeKey,
                    const Tensor<T> &value, const IndexTensor &positions, const IndexTensor &slots,
                    const IndexTensor &contextPositions, const IndexTensor &contextSlots, double scale) {
  int64_t nope = query.lastDim(), rotary = ropeQuery.lastDim(), width = value.lastDim();
  Tensor<T> y({query.dim(0), query.dim(1), width});
  for (int64_t t = 0; t < y.dim(0); ++t) {
    std::vector<int64_t> rows = visibleRows(t, positions, slots, contextPositions, contextSlots);
    for (int64_t h = 0; h < y.dim(1); ++h) {
      std::vector<T> p;
      for (int64_t j : rows)
        p.push_back(T(scale) *
                    (dot(query.row(t, h), key.row(j, h), nope) + dot(ropeQuery.row(t, h), ropeKey.row(j), rotary)));
      softmax(p);
      for (size_t i = 0; i < rows.size(); ++i)
        accumulate(y.row(t, h), p[i], value.row(rows[i], h), width);
    }
  }
  return y;
}

/// The length of the run around each token.
static std::vector<int64_t> runLengths(const IndexTensor &slots) {
  int64_t count = slots.dim(0);
  std::vector<int64_t> lengths(count);
  for (int64_t begin = 0, end = 0; begin < count; begin = end) {
    while (end < count && slots.data[end] == slots.data[begin])
      ++end;
    std::fill(lengths.begin() + begin, lengths.begin() + end, end - begin);
  }
  return lengths;
}

/// y[j, h, n] = sum_c x[j, c] * w[h, n, c]. x [C, K], w [H, N, K] -> [C, H, N].
template <typename T> static Tensor<T> projectHeads(const Tensor<T> &x, const Tensor<T> &w) {
  Tensor<T> y({x.dim(0), w.dim(0), w.dim(1)});
  for (int64_t j = 0; j < y.dim(0); ++j)
    for (int64_t h = 0; h < y.dim(1); ++h)
      for (int64_t n = 0; n < y.dim(2); ++n)
        y.row(j, h)[n] = dot(x.row(j), w.row(h, n), x.dim(1));
  return y;
}

template <typename T>
moec::Result<Tensor<T>> mlaAttention(Cache<T> &cache, const Tensor<T> &query, const Tensor<T> &ropeQuery,
                                     const Tensor<T> &latent, const Tensor<T> &ropeKey, const Tensor<T> &wUk,
                                     const Tensor<T> &wUv, const IndexTensor &positions, const IndexTensor &slots,
                                     double scale, int64_t expandedFrom) {
  MOEC_TRY(Context<T> context, cacheAppend<T>(cache, {latent, ropeKey}, positions, slots));
  const Tensor<T> &latents = context.parts[0], &ropeKeys = context.parts[1];
  int64_t nope = query.lastDim(), rotary = ropeQuery.lastDim(), rank = latent.lastDim(), width = wUv.dim(1);
  std::vector<int64_t> runs = runLengths(slots);
  auto isExpanded = [&](int64_t t) { return expandedFrom > 0 && runs[t] >= expandedFrom; };
  Tensor<T> y({query.dim(0), query.dim(1), width});
  for (int64_t t = 0; t < y.dim(0); ++t)
    if (isExpanded(t)) {
      y = attention(query, ropeQuery, projectHeads(latents, wUk), ropeKeys, projectHeads(latents, wUv), positions,
                    slots, context.positions, context.slots, scale);
      break;
    }
  for (int64_t t = 0; t < y.dim(0); ++t) {
    if (isExpanded(t))
      continue;
    std::vector<int64_t> rows = visibleRows(t, positions, slots, context.positions, context.slots);
    for (int64_t h = 0; h < y.dim(1); ++h) {
      std::vector<T> absorbed(rank), mixed(rank), p;
      for (int64_t n = 0; n < nope; ++n)
        accumulate(absorbed.data(), query.row(t, h)[n], wUk.row(h, n), rank);
      for (int64_t j : rows)
        p.push_back(T(scale) *
                    (dot(absorbed.data(), latents.row(j), rank) + dot(ropeQuery.row(t, h), ropeKeys.row(j), rotary)));
      softmax(p);
      for (size_t i = 0; i < rows.size(); ++i)
        accumulate(mixed.data(), p[i], latents.row(rows[i]), rank);
      for (int64_t v = 0; v < width; ++v)
        y.row(t, h)[v] = dot(wUv.row(h, v), mixed.data(), rank);
    }
  }
  return y;
}

/// The indices of the `k` largest values, largest first; of equal values the lower index first.
template <typename T> static std::vector<int64_t> argTopK(const std::vector<T> &values, int64_t k) {
  std::vector<int64_t> chosen;
  std::vector<bool> taken(values.size());
  while (int64_t(chosen.size()) < k) {
    int64_t best = -1;
    for (int64_t i = 0; i < int64_t(values.size()); ++i)
      if (!taken[i] && (best < 0 || values[i] > values[best]))
        best = i;
    taken[best] = true;
    chosen.push_back(best);
  }
  return chosen;
}

template <typename T> Routing<T> route(const Tensor<T> &logits, const Tensor<T> *bias, const RouteOptions &options) {
  int64_t tokens = logits.dim(0), numExperts = logits.dim(1), topk = options.topk;
  Routing<T> result{Tensor<T>({tokens, topk}), IndexTensor({tokens, topk})};
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<T> scores(logits.row(t), logits.row(t) + numExperts);
    if (options.scoring == Scoring::Softmax)
      softmax(scores);
    else
      for (T &score : scores)
        score = sigmoid(score);

    std::vector<T> biased = scores;
    if (bias)
      for (int64_t e = 0; e < numExperts; ++e)
        biased[e] += bias->data[e];

    if (options.groups > 1) {
      int64_t size = numExperts / options.groups;
      std::vector<T> groupScores;
      for (int64_t g = 0; g < options.groups; ++g) {
        std::vector<T> group(biased.begin() + g * size, biased.begin() + (g + 1) * size);
        T score = 0;
        for (int64_t e : argTopK(group, options.groupScore == GroupScore::Max ? 1 : std::min<int64_t>(2, size)))
          score += group[e];
        groupScores.push_back(score);
      }
      std::vector<bool> kept(options.groups);
      for (int64_t g : argTopK(groupScores, options.topkGroups))
        kept[g] = true;
      for (int64_t e = 0; e < numExperts; ++e)
        if (!kept[e / size])
          biased[e] = -std::numeric_limits<T>::infinity();
    }

    T *weights = result.weights.row(t);
    T sum = 0;
    std::vector<int64_t> chosen = argTopK(biased, topk);
    for (int64_t k = 0; k < topk; ++k) {
      result.experts.row(t)[k] = chosen[k];
      weights[k] = scores[chosen[k]];
      sum += weights[k];
    }
    for (int64_t k = 0; k < topk; ++k) {
      if (options.normalize)
        weights[k] /= sum + T(1e-20);
      weights[k] *= T(options.scale);
    }
  }
  return result;
}

template <typename T>
Tensor<T> experts(const Tensor<T> &x, const Tensor<T> &weights, const IndexTensor &chosen, const Tensor<T> &gate,
                  const Tensor<T> &up, const Tensor<T> &down, const Tensor<T> *residual, Attribute activations,
                  std::optional<llvm::ArrayRef<int64_t>> members, int64_t shared) {
  int64_t width = x.dim(1), inner = gate.dim(1);
  Tensor<T> y(x.shape), hidden({1, inner});
  for (int64_t t = 0; t < x.dim(0); ++t) {
    auto add = [&](T weight, int64_t e) {
      for (int64_t f = 0; f < inner; ++f)
        hidden.data[f] = silu(dot(gate.row(e, f), x.row(t), width)) * dot(up.row(e, f), x.row(t), width);
      if (activations)
        hidden = fakeQuantize(hidden, activations);
      for (int64_t d = 0; d < width; ++d)
        y.row(t)[d] += weight * dot(down.row(e, d), hidden.row(0), inner);
    };
    for (int64_t k = 0; k < chosen.dim(1); ++k) {
      int64_t e = chosen.row(t)[k];
      if (members) {
        const int64_t *found = llvm::find(*members, e);
        if (found == members->end())
          continue;
        e = found - members->begin();
      }
      add(weights.row(t)[k], e);
    }
    for (int64_t e = gate.dim(0) - shared; e < gate.dim(0); ++e)
      add(1, e);
    if (residual)
      for (int64_t d = 0; d < width; ++d)
        y.row(t)[d] += residual->row(t)[d];
  }
  return y;
}

#define MOEC_INSTANTIATE(T)                                                                                            \
  template Tensor<T> embed(const Tensor<T> &, const IndexTensor &);                                                    \
  template Tensor<T> gatherRows(const Tensor<T> &, const IndexTensor &);                                               \
  template Tensor<T> linear(const Tensor<T> &, const Tensor<T> &, const Tensor<T> *);                                  \
  template Tensor<T> swiglu(const Tensor<T> &, const Tensor<T> &);                                                     \
  template Tensor<T> gateUp(const Tensor<T> &, const Tensor<T> &, const Tensor<T> &);                                  \
  template Tensor<T> add(const Tensor<T> &, const Tensor<T> &);                                                        \
  template Tensor<T> rmsNorm(const Tensor<T> &, const Tensor<T> *, double);                                            \
  template Tensor<T> reshape(const Tensor<T> &, std::vector<int64_t>);                                                 \
  template std::vector<Tensor<T>> split(const Tensor<T> &, llvm::ArrayRef<int64_t>);                                   \
  template Tensor<T> rope(const Tensor<T> &, const IndexTensor &, llvm::ArrayRef<float>, double);                      \
  template moec::Result<Context<T>> cacheAppend(Cache<T> &, const std::vector<Tensor<T>> &, const IndexTensor &,       \
                                                const IndexTensor &);                                                  \
  template Tensor<T> attention(const Tensor<T> &, const Tensor<T> &, const Tensor<T> &, const Tensor<T> &,             \
                               const Tensor<T> &, const IndexTensor &, const IndexTensor &, const IndexTensor &,       \
                               const IndexTensor &, double);                                                           \
  template moec::Result<Tensor<T>> mlaAttention(Cache<T> &, const Tensor<T> &, const Tensor<T> &, const Tensor<T> &,   \
                                                const Tensor<T> &, const Tensor<T> &, const Tensor<T> &,               \
                                                const IndexTensor &, const IndexTensor &, double, int64_t);            \
  template Routing<T> route(const Tensor<T> &, const Tensor<T> *, const RouteOptions &);                               \
  template Tensor<T> experts(const Tensor<T> &, const Tensor<T> &, const IndexTensor &, const Tensor<T> &,             \
                             const Tensor<T> &, const Tensor<T> &, const Tensor<T> *, Attribute,                       \
                             std::optional<llvm::ArrayRef<int64_t>>, int64_t);
MOEC_INSTANTIATE(float)
MOEC_INSTANTIATE(double)
#undef MOEC_INSTANTIATE

} // namespace mlir::moe::reference
