// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef MOEC_TEST_DIALECTS_FORMATS_EACHTARGET_H
#define MOEC_TEST_DIALECTS_FORMATS_EACHTARGET_H

#include <hwy/targets.h>

#include <gtest/gtest.h>

#include <functional>

/// Runs `check` once for each of Highway's targets, the scalar one included.
inline void onEachTarget(const std::function<void()> &check) {
  int64_t supported = hwy::SupportedTargets() & ~(HWY_SSSE3 | HWY_SSE4);
  int count = 0;
  for (int64_t rest = supported | HWY_SCALAR; rest != 0; rest &= rest - 1) {
    int64_t target = rest & -rest;
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    SCOPED_TRACE(hwy::TargetName(target));
    check();
    ++count;
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  EXPECT_GE(count, 1);
}

#endif // MOEC_TEST_DIALECTS_FORMATS_EACHTARGET_H
