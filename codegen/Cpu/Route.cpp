// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The router and the sort of its choices by expert.

#include "codegen/Cpu/Emitters.h"
#include "codegen/Cpu/Math.h"
#include "codegen/Cpu/Members.h"

#include <limits>
#include <numeric>

namespace moec::cpu {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int32_t kTaken = std::numeric_limits<int32_t>::min();

int64_t wholeVectors(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

/// An i32 that orders as the float does, with -0 equal to 0 and NaN below -inf but above kTaken.
Val orderedKey(KernelBuilder &b, Val x) {
  // Adding 0 turns -0 into 0.
  Val bits = b.bitcast(x + 0.0, b.i32);
  Val key = bits ^ ((bits >> 31) & 0x7FFFFFFF);
  return b.select(b.isNaN(x), key.like(kTaken + 1), key);
}

/// Takes the greatest of `padded` keys `count` times (the lower index of equal ones) and replaces it by kTaken.
/// `body` gets the turn and the index, both i64, and carries values.
Vals takeGreatest(KernelBuilder &b, Ptr keys, int64_t padded, int64_t count, llvm::ArrayRef<Val> init,
                  llvm::function_ref<Vals(Val turn, Val index, llvm::ArrayRef<Val> carried)> body) {
  llvm::SmallVector<int32_t> iota(kLanes);
  std::iota(iota.begin(), iota.end(), 0);
  return b.loop(b.cI64(0), b.cI64(count), 1, init, [&](Val turn, llvm::ArrayRef<Val> carried) {
    Val lanes = b.constants(llvm::ArrayRef<int32_t>(iota));
    // Each lane keeps the first index of its greatest key, as only a greater one replaces it.
    Vals best = {lanes.like(kTaken), lanes};
    best = b.loop(b.cI64(0), b.cI64(padded), kLanes, best, [&](Val i, llvm::ArrayRef<Val> so) -> Vals {
      Val key = (keys + i).load(kLanes);
      Val better = key > so[0];
      return {b.select(better, key, so[0]), b.select(better, lanes + b.convert(i, b.i32), so[1])};
    });
    Val greatest = b.maxIntLanes(best[0]);
    Val first = b.minIntLanes(b.select(best[0] == greatest, best[1], lanes.like(std::numeric_limits<int32_t>::max())));
    Val index = b.convert(first, b.i64);
    (keys + index).store(first.like(kTaken));
    return body(turn, index, carried);
  });
}

class RouteEmitter {
public:
  RouteEmitter(KernelBuilder &b, const RouteSpec &spec) : b(b), spec(spec), padded(wholeVectors(spec.experts)) {}

  void emit() {
    int64_t next = 0;
    logits = b.arg(next++, b.f32);
    if (spec.bias)
      bias = b.arg(next++, b.f32);
    weights = b.arg(next++, b.f32);
    chosen = b.arg(next++, b.i32);
    scores = b.scratch(b.f32, padded);
    choice = b.scratch(b.f32, padded);
    keys = b.scratch(b.i32, padded);
    const int64_t width = spec.topk + spec.shared; // choices of a row
    b.tasks([&](Val t) {
      Ptr row = logits + t * spec.logitsStride;
      spec.sigmoid ? sigmoidScores(row) : softmaxScores(row);
      chooseKeys();
      if (spec.groups > 1)
        dropGroups();
      Vals sum =
          takeGreatest(b, keys, padded, spec.topk, b.cF32(0), [&](Val k, Val expert, llvm::ArrayRef<Val> sum) -> Vals {
            Val score = (scores + expert).load();
            (chosen + t * width + k).store(b.convert(expert, b.i32));
            (weights + t * width + k).store(score);
            return {sum[0] + score};
          });
      b.loop(b.cI64(0), b.cI64(spec.topk), 1, [&](Val k) {
        Ptr at = weights + t * width + k;
        Val weight = at.load();
        if (spec.normalize)
          weight = weight / (sum[0] + 1e-20);
        at.store(weight * spec.scale);
      });
      for (int64_t i = 0; i < spec.shared; ++i) {
        (chosen + t * width + (spec.topk + i)).store(b.constant(b.i32, spec.experts + i));
        (weights + t * width + (spec.topk + i)).store(b.cF32(1));
      }
    });
  }

private:
  /// Carries a vector over all experts; `body` sees the lanes beyond the last as `padding`.
  Val overExperts(Ptr row, double padding, Val init, llvm::function_ref<Val(Val i, Val value, Val carried)> body) {
    int64_t whole = spec.experts / kLanes * kLanes;
    Val result = b.loop(b.cI64(0), b.cI64(whole), kLanes, init, [&](Val i, llvm::ArrayRef<Val> carried) -> Vals {
      return {body(i, (row + i).load(kLanes), carried[0])};
    })[0];
    if (whole == spec.experts)
      return result;
    Val value = (row + whole).load(kLanes);
    value = b.select(b.firstLanes(spec.experts - whole), value, value.like(padding));
    return body(b.cI64(whole), value, result);
  }

  void sigmoidScores(Ptr row) {
    overExperts(row, 0, b.constant(b.vec(b.f32), 0.0), [&](Val i, Val value, Val carried) {
      (scores + i).store(sigmoid(b, value));
      return carried;
    });
  }

  void softmaxScores(Ptr row) {
    Val lowest = b.constant(b.vec(b.f32), -kInfinity);
    Val top = b.maxLanes(
        overExperts(row, -kInfinity, lowest, [&](Val, Val value, Val carried) { return b.max(value, carried); }));
    Val sums = overExperts(row, -kInfinity, b.constant(b.vec(b.f32), 0.0), [&](Val i, Val value, Val carried) {
      Val p = exp(b, value - top);
      (scores + i).store(p);
      return carried + p;
    });
    Val sum = b.sumLanes(sums);
    b.loop(b.cI64(0), b.cI64(padded), kLanes, [&](Val i) { (scores + i).store((scores + i).load(kLanes) / sum); });
  }

  /// choice = score + bias, and its key; lanes beyond the last expert count as taken.
  void chooseKeys() {
    overExperts(scores, 0, b.constant(b.vec(b.f32), 0.0), [&](Val i, Val value, Val carried) {
      if (spec.bias)
        value = value + (bias + i).load(kLanes);
      (choice + i).store(value);
      (keys + i).store(orderedKey(b, value));
      return carried;
    });
    int64_t tail = spec.experts % kLanes;
    if (tail) {
      Ptr last = keys + (padded - kLanes);
      Val key = last.load(kLanes);
      last.store(b.select(b.firstLanes(tail), key, key.like(kTaken)));
    }
  }

  /// Gives the experts outside the best groups the key of -inf.
  void dropGroups() {
    int64_t size = spec.experts / spec.groups, paddedGroups = wholeVectors(spec.groups);
    Ptr groupKeys = b.scratch(b.i32, paddedGroups), kept = b.scratch(b.i32, spec.groups);
    b.loop(b.cI64(0), b.cI64(paddedGroups), kLanes,
           [&](Val i) { (groupKeys + i).store(b.constant(b.vec(b.i32), int64_t(kTaken))); });
    b.loop(b.cI64(0), b.cI64(spec.groups), 1, [&](Val g) {
      Vals top(2, b.cF32(-kInfinity));
      top = b.loop(b.cI64(0), b.cI64(size), 1, top, [&](Val i, llvm::ArrayRef<Val> so) -> Vals {
        Val value = (choice + g * size + i).load();
        Val better = value > so[0];
        return {b.select(better, value, so[0]), b.select(better, so[0], b.max(value, so[1]))};
      });
      Val score = spec.groupTop2Sum && size > 1 ? top[0] + top[1] : top[0];
      (groupKeys + g).store(orderedKey(b, score));
      (kept + g).store(b.constant(b.i32, int64_t(0)));
    });
    takeGreatest(b, groupKeys, paddedGroups, spec.topkGroups, {}, [&](Val, Val g, llvm::ArrayRef<Val>) -> Vals {
      (kept + g).store(b.constant(b.i32, int64_t(1)));
      return {};
    });
    b.loop(b.cI64(0), b.cI64(spec.groups), 1, [&](Val g) {
      b.ifThen((kept + g).load() == 0, [&] {
        Val lowest = orderedKey(b, b.cF32(-kInfinity));
        b.loop(b.cI64(0), b.cI64(size), 1, [&](Val i) { (keys + g * size + i).store(lowest); });
      });
    });
  }

  KernelBuilder &b;
  const RouteSpec &spec;
  int64_t padded; ///< experts, in whole vectors
  Ptr logits, bias, weights, chosen;
  Ptr scores, choice, keys; ///< one entry per expert
};

} // namespace

void emit(KernelBuilder &b, llvm::StringRef symbol, const RouteSpec &spec, const Tiles &) {
  b.kernel(symbol, [&] { RouteEmitter(b, spec).emit(); });
}

void emit(KernelBuilder &b, llvm::StringRef symbol, const ArgmaxSpec &spec, const Tiles &) {
  b.kernel(symbol, [&] {
    Ptr candidates = b.arg(0, b.f32), out = b.arg(1, b.i32);
    const Val lowest = b.constant(b.vec(b.f32), -kInfinity), nowhere = b.constant(b.vec(b.i32), int64_t(-1));
    Ptr values = b.scratch(b.f32, kLanes), columns = b.scratch(b.i32, kLanes);
    b.tasks([&](Val r) {
      Ptr row = candidates + r * (2 * spec.count);
      values.store(lowest);
      columns.store(nowhere);
      // Each lane has the first of the greatest that it saw.
      b.vectors(spec.count, [&](Val at, Val mask) {
        Val value = (row + at).load(kLanes), best = values.load(kLanes), isGreater = value > best;
        if (mask.value)
          isGreater = isGreater & mask;
        values.store(b.select(isGreater, value, best));
        Val column = Ptr{(row + spec.count + at).base, b.i32}.load(kLanes);
        columns.store(b.select(isGreater, column, columns.load(kLanes)));
      });
      Val best = values.load(kLanes), none = b.constant(b.vec(b.i32), int64_t(std::numeric_limits<int32_t>::max()));
      Val first = b.minIntLanes(b.select(best == b.splat(b.maxLanes(best)), columns.load(kLanes), none));
      (out + r).store(first);
    });
  });
}

void emit(KernelBuilder &b, llvm::StringRef symbol, const DispatchSpec &spec, const Tiles &) {
  b.kernel(symbol, [&] {
    Ptr chosen = b.arg(0, b.i32), offsets = b.arg(1, b.i32), active = b.arg(2, b.i32), order = b.arg(3, b.i32);
    // Entries of experts that are no members come last, as if of one expert more.
    MemberTable members(b, spec.members, /*other=*/spec.experts);
    Ptr cursors = b.scratch(b.i32, spec.experts + 1);
    Val none = b.constant(b.i32, int64_t(0)), first = b.cI64(0), experts = b.cI64(spec.experts);
    Val entries = (spec.rows == Rows::T ? b.tokens() : b.rows()) * spec.topk;
    b.tasks([&](Val) {
      auto cursorOf = [&](Val entry) { return cursors + members.placeOf((chosen + entry).load()); };
      b.loop(first, experts + 1, 1, [&](Val e) { (cursors + e).store(none); });
      b.loop(first, entries, 1, [&](Val i) {
        Ptr at = cursorOf(i);
        at.store(at.load() + 1);
      });
      // Counts become where each expert's entries begin.
      Vals totals = b.loop(first, experts, 1, {none, first}, [&](Val e, llvm::ArrayRef<Val> so) -> Vals {
        Val count = (cursors + e).load();
        (offsets + e).store(so[0]);
        (cursors + e).store(so[0]);
        Val used = count > 0;
        b.ifThen(used, [&] { (active + 1 + so[1]).store(b.convert(e, b.i32)); });
        return {so[0] + count, b.select(used, so[1] + 1, so[1])};
      });
      (offsets + spec.experts).store(totals[0]);
      (cursors + spec.experts).store(totals[0]);
      active.store(b.convert(totals[1], b.i32));
      b.loop(first, entries, 1, [&](Val i) {
        Ptr at = cursorOf(i);
        Val place = at.load();
        (order + b.convert(place, b.i64)).store(b.convert(i, b.i32));
        at.store(place + 1);
      });
    });
  });
}

} // namespace moec::cpu
