// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Formats/Feedback.h"

#include "dialects/Formats/Runs.h"
#include "runtime/Support/Text.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>

// The inner loops, once for each of Highway's targets. Products are rounded before they are added, here as in the
// scalar form (CMakeLists.txt forbids contraction), so that the bits do not depend on the target.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "dialects/Formats/Feedback.cpp"
#include <hwy/foreach_target.h> // must come before highway.h
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace moec::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// `to[i] += by * from[i]`.
void addScaled(float *to, const float *from, float by, int64_t count) {
  const hn::ScalableTag<float> floats;
  const auto lanes = static_cast<int64_t>(hn::Lanes(floats));
  const auto factor = hn::Set(floats, by);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    hn::StoreU(hn::Add(hn::LoadU(floats, to + i), hn::Mul(factor, hn::LoadU(floats, from + i))), floats, to + i);
  for (; i < count; ++i)
    to[i] += by * from[i];
}

/// `to[k][r] += by[k] * from[r]` for `count` k and all lanes r.
void addOuter(float *to, const float *by, const float *from, int64_t count) {
  const hn::CappedTag<float, Feedback::lanes> floats;
  const auto step = static_cast<int64_t>(hn::Lanes(floats));
  for (int64_t r = 0; r < Feedback::lanes; r += step) {
    const auto row = hn::LoadU(floats, from + r);
    for (int64_t k = 0; k < count; ++k) {
      float *at = to + k * Feedback::lanes + r;
      hn::StoreU(hn::Add(hn::LoadU(floats, at), hn::Mul(hn::Set(floats, by[k]), row)), floats, at);
    }
  }
}

} // namespace moec::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moec {

HWY_EXPORT(addScaled);
HWY_EXPORT(addOuter);

namespace {

void addScaled(float *to, const float *from, float by, int64_t count) {
  HWY_DYNAMIC_DISPATCH(addScaled)(to, from, by, count);
}

void addOuter(float *to, const float *by, const float *from, int64_t count) {
  HWY_DYNAMIC_DISPATCH(addOuter)(to, by, from, count);
}

/// Some rows on their way to codes: `[column][lane]`.
class Rows {
public:
  Rows(const GroupFormat &format, int64_t cols, float global, int64_t count, RowCodes *out) : format(format), out(out) {
    for (int64_t r = 0; r < count; ++r) {
      out[r].codes.assign(cols, 0);
      out[r].scales.assign(format.groups(cols), 0);
      out[r].zeros.assign(format.hasZeros() ? format.groups(cols) : 0, 0);
      out[r].global = global;
    }
  }

  /// What a lane's code stands for before its scale, and with it, and the code that is nearest to `value`.
  float unscaled(int64_t r, int64_t col, uint8_t code) const {
    float value = codeValue(format.codes, code);
    return format.hasZeros() ? value - out[r].zeros[col / format.group] : value;
  }
  float unscaled(int64_t r, int64_t col) const { return unscaled(r, col, out[r].codes[col]); }
  float valueOf(int64_t r, int64_t col, uint8_t code) const {
    return unscaled(r, col, code) * out[r].scale(col / format.group);
  }
  uint8_t nearest(int64_t r, int64_t col, float value) const {
    float scale = out[r].scale(col / format.group), inverse = 1 / scale;
    float code = std::isfinite(inverse) ? value * inverse : 0;
    return nearestCode(format.codes, format.hasZeros() ? code + out[r].zeros[col / format.group] : code);
  }

  const GroupFormat &format;
  RowCodes *out;
};

} // namespace

void SecondMoment::add(const float *x, float s) {
  for (int64_t i = 0; i < columns; ++i)
    if (x[i] != 0)
      addScaled(&values[i * columns], x, s * x[i], i + 1);
}

std::vector<float> SecondMoment::diagonal() const {
  std::vector<float> result(columns);
  for (int64_t i = 0; i < columns; ++i)
    result[i] = at(i, i);
  return result;
}

Feedback::Feedback(SecondMoment taken) : moment(std::move(taken)), variances(moment.size()) {
  const int64_t n = moment.size();
  double sum = 0;
  for (float value : moment.diagonal())
    sum += value;
  // Without any input every column matters alike.
  float added = sum > 0 ? static_cast<float>(sum / static_cast<double>(n)) * damping : 1.0f;
  for (int64_t i = 0; i < n; ++i) {
    moment.values[i * n + i] += added;
    for (int64_t j = 0; j < i; ++j)
      moment.values[j * n + i] = moment.values[i * n + j];
  }

  // From the last column to the first: what is left of H above it is that of the columns before, given this one.
  std::vector<float> left = moment.values;
  factor.assign(n * n, 0.0f);
  for (int64_t j = n; j-- > 0;) {
    const float *row = &left[j * n];
    variances[j] = row[j];
    for (int64_t i = 0; i < j; ++i) {
      float u = row[i] / row[j];
      factor[i * n + j] = u;
      addScaled(&left[i * n], row, -u, i + 1);
    }
  }
}

Status Feedback::quantize(const GroupFormat &format, const std::string &name, const float *values, int64_t count,
                          const SharedScales &shared, RowCodes *out) const {
  const int64_t n = size();
  assert(count <= lanes && (format.rows == 1) == shared.blocks.empty());
  Rows rows(format, n, shared.global, count, out);
  std::vector<float> wanted(n * lanes, 0.0f); // what is asked of each column: its weight, and what the others owe
  for (int64_t r = 0; r < count; ++r)
    for (int64_t c = 0; c < n; ++c) {
      if (!std::isfinite(values[r * n + c]))
        return Error{"tensor " + quote(name) + " holds " + numberText(values[r * n + c]) +
                     ", but weights must be numbers"};
      wanted[c * lanes + r] = values[r * n + c];
    }

  std::vector<float> owed(lanes), group(format.group);
  for (int64_t j = 0; j < n; ++j) {
    if (j % format.group == 0) {
      int64_t width = std::min(format.group, n - j), g = j / format.group;
      for (int64_t r = 0; r < count; ++r) {
        for (int64_t c = 0; c < width; ++c)
          group[c] = wanted[(j + c) * lanes + r];
        ChosenScale chosen;
        if (shared.blocks.empty())
          chosen =
              chooseScale(format, std::span(group).first(width), shared.global, std::span(variances).subspan(j, width));
        else
          chosen.scale = shared.blocks[g];
        if (!std::isfinite(chosen.scale))
          return Error{"tensor " + quote(name) + " has a group that is too large for scales in " +
                       std::string(toString(format.scale))};
        out[r].scales[g] = chosen.scale;
        if (format.hasZeros())
          out[r].zeros[g] = chosen.zero;
      }
    }
    for (int64_t r = 0; r < count; ++r) {
      float value = wanted[j * lanes + r];
      out[r].codes[j] = rows.nearest(r, j, value);
      owed[r] = values[r * n + j] - rows.valueOf(r, j, out[r].codes[j]);
    }
    // The error's cost is sum_k D[k] (error[k] + sum_{j < k} error[j] U[j, k])^2: column k can make up for those
    // before.
    addOuter(&wanted[(j + 1) * lanes], &factor[j * n + j + 1], owed.data(), n - j - 1);
  }

  // Coordinate descent: gradient[j] = ((w - y) H)[j], kept up to date with every code that changes.
  std::vector<float> gradient(n * lanes), change(lanes);
  auto restart = [&] {
    std::fill(gradient.begin(), gradient.end(), 0.0f);
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t r = 0; r < count; ++r)
        owed[r] = values[r * n + j] - rows.valueOf(r, j, out[r].codes[j]);
      addOuter(gradient.data(), &moment.values[j * n], owed.data(), n);
    }
  };
  // The best factor of a group's codes, given everything else: a minimum of a parabola.
  auto refitScale = [&](int64_t g) {
    const int64_t begin = g * format.group, end = std::min(n, begin + format.group);
    std::vector<float> refitted(count);
    for (int64_t r = 0; r < count; ++r) {
      float scale = out[r].scales[g], slope = 0, curvature = 0;
      for (int64_t j = begin; j < end; ++j)
        group[j - begin] = rows.unscaled(r, j);
      for (int64_t j = begin; j < end; ++j) {
        slope += group[j - begin] * gradient[j * lanes + r];
        for (int64_t i = begin; i < end; ++i)
          curvature += group[j - begin] * group[i - begin] * moment.values[j * n + i];
      }
      float best = roundOnce(format.scale, curvature > 0 ? scale + slope / curvature : scale);
      refitted[r] = std::isfinite(best) ? best : scale;
    }
    for (int64_t j = begin; j < end; ++j) {
      for (int64_t r = 0; r < count; ++r)
        change[r] = rows.unscaled(r, j) * (out[r].scales[g] - refitted[r]);
      addOuter(gradient.data(), &moment.values[j * n], change.data(), n);
    }
    for (int64_t r = 0; r < count; ++r)
      out[r].scales[g] = refitted[r];
  };
  // Scales of few bits hardly move, and those of blocks belong to other rows too.
  const bool refits = shared.blocks.empty() && byteSize(format.scale) > 1;
  for (int sweep = 0; sweep < sweeps; ++sweep) {
    restart(); // so that rounding errors do not add up
    for (int64_t j = 0; j < n; ++j) {
      bool changed = false;
      for (int64_t r = 0; r < count; ++r) {
        float now = rows.valueOf(r, j, out[r].codes[j]);
        uint8_t code = rows.nearest(r, j, now + gradient[j * lanes + r] / moment.at(j, j));
        change[r] = now - rows.valueOf(r, j, code);
        changed |= change[r] != 0;
        out[r].codes[j] = code;
      }
      if (changed)
        addOuter(gradient.data(), &moment.values[j * n], change.data(), n);
    }
    if (refits && sweep + 1 < sweeps)
      for (int64_t g = 0; g < format.groups(n); ++g)
        refitScale(g);
  }
  return success();
}

} // namespace moec
#endif // HWY_ONCE
