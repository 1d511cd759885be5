// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Kernels whose work is a pass over rows: lookups, norms, sums, rotations and cache writes.

#include "codegen/Cpu/Emitters.h"
#include "codegen/Cpu/Math.h"
#include "codegen/Cpu/Members.h"
#include "codegen/Cpu/Rounding.h"

#include "runtime/KernelAbi.h"

#include <optional>

namespace moec::cpu {

void emit(KernelBuilder &b, llvm::StringRef symbol, const EmbedSpec &spec, const Tiles &) {
  b.kernel(symbol, [&] {
    Ptr tokens = b.arg(0, b.i32), table = b.arg(1, b.storage(spec.table)), out = b.arg(2, b.f32);
    b.tasks([&](Val t) {
      Ptr from = table + b.convert((tokens + t).load(), b.i64) * spec.width;
      Ptr to = out + t * spec.outStride;
      b.vectors(spec.width, [&](Val i, Val mask) { (to + i).store(b.loadAsF32(from + i, spec.table), mask); });
    });
  });
}

void emit(KernelBuilder &b, llvm::StringRef symbol, const GatherRowsSpec &spec, const Tiles &) {
  b.kernel(symbol, [&] {
    Ptr x = b.arg(0, b.f32), rows = b.arg(1, b.i32), out = b.arg(2, b.f32);
    b.tasks([&](Val r) {
      Ptr from = x + b.convert((rows + r).load(), b.i64) * spec.xStride;
      Ptr to = out + r * spec.outStride;
      b.vectors(spec.width, [&](Val i, Val mask) { (to + i).store((from + i).load(kLanes), mask); });
    });
  });
}

void emit(KernelBuilder &b, llvm::StringRef symbol, const RmsNormSpec &spec, const Tiles &) {
  b.kernel(symbol, [&] {
    Ptr x = b.arg(0, b.f32), out = b.arg(spec.weight ? 2 : 1, b.f32);
    std::optional<Ptr> g;
    if (spec.weight)
      g = b.arg(1, b.f32);
    b.tasks([&](Val t) {
      Ptr row = x + t * spec.xStride;
      Ptr to = out + t * spec.outStride;
      // Lane l sums the squares of elements l, 16 + l, ... in order; a tree sums the lanes.
      Val zero = b.constant(b.vec(b.f32), 0.0);
      int64_t whole = spec.width / kLanes * kLanes;
      Val squares = b.loop(b.cI64(0), b.cI64(whole), kLanes, zero, [&](Val i, llvm::ArrayRef<Val> sum) -> Vals {
        Val v = (row + i).load(kLanes);
        return {b.fma(v, v, sum[0])};
      })[0];
      if (whole < spec.width) {
        Val v = b.select(b.firstLanes(spec.width - whole), (row + whole).load(kLanes), zero);
        squares = b.fma(v, v, squares);
      }
      Val mean = b.sumLanes(squares) / static_cast<double>(spec.width);
      Val factor = 1.0 / b.sqrt(mean + spec.eps);
      b.vectors(spec.width, [&](Val i, Val mask) {
        Val normed = (row + i).load(kLanes) * factor;
        (to + i).store(g ? normed * (*g + i).load(kLanes) : normed, mask);
      });
    });
  });
}

void emit(KernelBuilder &b, llvm::StringRef symbol, const ElementwiseSpec &spec, const Tiles &) {
  b.kernel(symbol, [&] {
    Ptr a = b.arg(0, b.f32), other = b.arg(1, b.f32), out = b.arg(2, b.f32);
    b.tasks([&](Val t) {
      b.vectors(spec.width, [&](Val i, Val mask) {
        Val left = (a + t * spec.aStride + i).load(kLanes);
        Val right = (other + t * spec.bStride + i).load(kLanes);
        (out + t * spec.outStride + i).store(spec.swiglu ? silu(b, left) * right : left + right, mask);
      });
    });
  });
}

void emit(KernelBuilder &b, llvm::StringRef symbol, const CombineSpec &spec, const Tiles &) {
  b.kernel(symbol, [&] {
    int64_t next = 0;
    Ptr y = b.arg(next++, b.f32), weights = b.arg(next++, b.f32), chosen, residual, rows, factors;
    bool some = !spec.members.empty();
    if (some)
      chosen = b.arg(next++, b.i32);
    if (spec.residual)
      residual = b.arg(next++, b.f32);
    Ptr out = b.arg(next++, b.f32);
    MemberTable members(b, spec.members, /*other=*/-1);
    if (some) {
      rows = b.scratch(b.i64, spec.topk);
      factors = b.scratch(b.f32, spec.topk);
    }
    b.tasks([&](Val t) {
      Val first = t * spec.topk, count = b.cI64(0);
      Vals weight;
      for (int64_t k = 0; k < spec.topk; ++k) {
        Val factor = (weights + first + k).load();
        if (some) { // listed, and overwritten by the next one unless it counts
          (rows + count).store(first + k);
          (factors + count).store(factor);
          count = b.select(members.placeOf((chosen + first + k).load()) >= 0, count + 1, count);
        } else {
          weight.push_back(b.splat(factor));
        }
      }
      auto listed = [&](Val i) {
        return b.loop(b.cI64(0), count, 1, b.constant(b.vec(b.f32), 0.0), [&](Val j, llvm::ArrayRef<Val> so) -> Vals {
          Val v = (y + (rows + j).load() * spec.yStride + i).load(kLanes);
          return {b.fma(b.splat((factors + j).load()), v, so[0])};
        })[0];
      };
      auto all = [&](Val i) {
        Val sum;
        for (int64_t k = 0; k < spec.topk; ++k) {
          Val v = (y + (first + k) * spec.yStride + i).load(kLanes);
          sum = k ? b.fma(weight[k], v, sum) : weight[k] * v;
        }
        return sum;
      };
      b.vectors(spec.width, [&](Val i, Val mask) {
        Val sum = some ? listed(i) : all(i);
        if (spec.residual)
          sum = (residual + t * spec.residualStride + i).load(kLanes) + sum;
        (out + t * spec.outStride + i).store(sum, mask);
      });
    });
  });
}

void emit(KernelBuilder &b, llvm::StringRef symbol, const RopeAnglesSpec &spec, const Tiles &) {
  b.kernel(symbol, [&] {
    Ptr positions = b.arg(0, b.i32), out = b.arg(1, b.f32);
    int64_t half = spec.invFreq.size();
    b.tasks([&](Val t) {
      Val position = b.convert((positions + t).load(), b.f32);
      Ptr row = out + t * (2 * half);
      for (int64_t first = 0; first < half; first += kLanes) {
        int64_t count = std::min(kLanes, half - first);
        llvm::SmallVector<float> frequencies(spec.invFreq.begin() + first, spec.invFreq.begin() + first + count);
        frequencies.resize(kLanes, 0.0f);
        SinCos angle = sinCos(b, position * b.constants(llvm::ArrayRef<float>(frequencies)));
        Val mask;
        if (count < kLanes)
          mask = b.firstLanes(count);
        (row + first).store(b.convert(angle.cos * spec.factor, b.f32), mask);
        (row + half + first).store(b.convert(angle.sin * spec.factor, b.f32), mask);
      }
    });
  });
}

void emit(KernelBuilder &b, llvm::StringRef symbol, const RopeSpec &spec, const Tiles &) {
  b.kernel(symbol, [&] {
    Ptr x = b.arg(0, b.f32), angles = b.arg(1, b.f32), out = b.arg(2, b.f32);
    llvm::SmallVector<int64_t> even, odd, low, high;
    for (int64_t i = 0; i < kLanes; ++i) {
      even.push_back(2 * i);
      odd.push_back(2 * i + 1);
      low.push_back(i % 2 * kLanes + i / 2);
      high.push_back(i % 2 * kLanes + (kLanes + i) / 2);
    }
    b.tasks([&](Val t) {
      Ptr row = angles + t * spec.dim;
      b.loop(b.cI64(0), b.cI64(spec.heads), 1, [&](Val head) {
        Ptr from = x + t * spec.xStride + head * spec.xHead;
        Ptr to = out + t * spec.outStride + head * spec.outHead;
        // 16 pairs at a time. Both vectors are read before either is written: x may be out.
        for (int64_t first = 0; first < spec.dim; first += 2 * kLanes) {
          Val cos = (row + first / 2).load(kLanes);
          Val sin = (row + spec.dim / 2 + first / 2).load(kLanes);
          Val v0 = (from + first).load(kLanes), v1 = (from + first + kLanes).load(kLanes);
          Val re = b.shuffle(v0, v1, even), im = b.shuffle(v0, v1, odd);
          Val rotatedRe = re * cos - im * sin;
          Val rotatedIm = re * sin + im * cos;
          for (int64_t v = 0; v < 2; ++v) {
            int64_t left = spec.dim - first - v * kLanes;
            if (left > 0)
              (to + first + v * kLanes)
                  .store(b.shuffle(rotatedRe, rotatedIm, v ? high : low), left < kLanes ? b.firstLanes(left) : Val{});
          }
        }
      });
    });
  });
}

void emit(KernelBuilder &b, llvm::StringRef symbol, const CacheAppendSpec &spec, const Tiles &) {
  b.kernel(symbol, [&] {
    Ptr latent = b.arg(0, b.f32), ropeKey = b.arg(1, b.f32), positions = b.arg(2, b.i32), slots = b.arg(3, b.i32),
        pageTable = b.arg(4, b.i32), cache = b.arg(5, b.storage(cacheElement(spec)));
    auto stored = [&](Val value) { return spec.cache == DType::BF16 ? b.toBf16(value) : value; };
    const bool coded = spec.codes != CacheCodes::None;
    const CodedEntry layout{spec.latent, spec.rope};
    b.tasks([&](Val t) {
      Val position = b.convert((positions + t).load(), b.i64);
      Val slot = b.convert((slots + t).load(), b.i64);
      Val page = b.convert((pageTable + slot * b.pagesPerSlot() + position / MOE_PAGE_TOKENS).load(), b.i64);
      Ptr entry =
          cache + (page * MOE_PAGE_TOKENS + position % MOE_PAGE_TOKENS) * (coded ? layout.stride() : spec.width);
      auto copy = [&](Ptr from, Ptr to, int64_t width) {
        b.vectors(width, [&](Val i, Val mask) { (to + i).store(stored((from + i).load(kLanes)), mask); });
      };
      Ptr latentRow = latent + t * spec.latentStride, ropeRow = ropeKey + t * spec.ropeStride;
      if (coded) {
        storeLatentCodes(b, latentRow, spec.latent, spec.codes, entry, Ptr{(entry + layout.scalesAt()).base, b.f32});
        copy(ropeRow, Ptr{(entry + layout.ropeAt()).base, b.i16}, spec.rope);
        return;
      }
      copy(latentRow, entry, spec.latent);
      copy(ropeRow, entry + spec.latent, spec.rope);
      int64_t used = spec.latent + spec.rope;
      b.vectors(spec.width - used,
                [&](Val i, Val mask) { (entry + used + i).store(b.constant(b.vec(cache.element), int64_t(0)), mask); });
    });
  });
}

} // namespace moec::cpu
