/* Part of moec, under the Apache License v2.0 with LLVM Exceptions.
 * SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception */

/** \file
 * The code of the hand-made artifact that the runtime's tests load (see
 * model_tiny.h): a model of one table, one cache and one head. Every kernel
 * also reads the 128 bytes that the runtime owes it behind its inputs.
 */

#include "runtime/KernelAbi.h"

#include <stddef.h>

enum { D = 6, V = 11, TAIL = 37 };

static void touch(const void *end) {
  const volatile unsigned char *bytes = end;
  for (size_t i = 0; i < 128; ++i)
    (void)bytes[i];
}

static float *entry(float *cache, const int *pages, const moe_step *step, int slot, int position) {
  int page = pages[slot * step->pages_per_slot + position / MOE_PAGE_TOKENS];
  return cache + ((size_t)page * MOE_PAGE_TOKENS + position % MOE_PAGE_TOKENS) * D;
}

/** x[t, :] = table[tokens[t], :]; args: tokens, table, tail, x. Grid: T. */
void tiny_embed(void *const *args, const moe_step *step, int64_t begin, int64_t end) {
  const int *tokens = args[0];
  const float *table = args[1];
  float *x = args[3];
  touch(tokens + step->tokens);
  touch(table + V * D);
  touch((const float *)args[2] + TAIL);
  for (int64_t t = begin; t < end; ++t)
    for (int d = 0; d < D; ++d)
      x[t * D + d] = table[tokens[t] * D + d];
}

/** cache[slot, position, :] = x[t, :]; args: x, positions, slots, page table, cache. Grid: T. */
void tiny_append(void *const *args, const moe_step *step, int64_t begin, int64_t end) {
  const float *x = args[0];
  const int *positions = args[1], *slots = args[2];
  touch(positions + step->tokens);
  touch(slots + step->tokens);
  for (int64_t t = begin; t < end; ++t)
    for (int d = 0; d < D; ++d)
      entry(args[4], args[3], step, slots[t], positions[t])[d] = x[t * D + d];
}

/** y[t, d] = sum_j cache[slot, j, d] / (1 + position - j), j ascending to position.
 * args: positions, slots, page table, cache, y. Grid: 2 T, one task per half row. */
void tiny_mix(void *const *args, const moe_step *step, int64_t begin, int64_t end) {
  const int *positions = args[0], *slots = args[1];
  float *y = args[4];
  touch(y + step->tokens * D);
  for (int64_t task = begin; task < end; ++task) {
    int64_t t = task / 2;
    for (int d = task % 2 * (D / 2); d < (task % 2 + 1) * (D / 2); ++d) {
      float sum = 0;
      for (int j = 0; j <= positions[t]; ++j)
        sum += entry(args[3], args[2], step, slots[t], j)[d] / (float)(1 + positions[t] - j);
      y[t * D + d] = sum;
    }
  }
}

/** logits = 0, if they are asked for; args: logits. Grid: R. */
void tiny_clear(void *const *args, const moe_step *step, int64_t begin, int64_t end) {
  (void)step;
  for (int64_t i = begin * V; args[0] && i < end * V; ++i)
    ((float *)args[0])[i] = 0;
}

/** logits[r, v] += y[rows[r], :] . head[v, :]; args: y, rows, head, logits. Grid: R * V.
 * The addition shows tasks that run twice or before the clearing. */
void tiny_head(void *const *args, const moe_step *step, int64_t begin, int64_t end) {
  const float *y = args[0], *head = args[2];
  const int *rows = args[1];
  touch(rows + step->rows);
  for (int64_t task = begin; args[3] && task < end; ++task) {
    int64_t r = task / V, v = task % V;
    float sum = 0;
    for (int d = 0; d < D; ++d)
      sum += y[rows[r] * D + d] * head[v * D + d];
    ((float *)args[3])[r * V + v] += sum;
  }
}

/** argmax[r] = the v with the greatest y[rows[r], :] . head[v, :], the first of equal ones; args: y, rows, head,
 * argmax. Grid: R. */
void tiny_argmax(void *const *args, const moe_step *step, int64_t begin, int64_t end) {
  const float *y = args[0], *head = args[2];
  const int *rows = args[1];
  (void)step;
  for (int64_t r = begin; r < end; ++r) {
    float best = 0;
    for (int v = 0; v < V; ++v) {
      float sum = 0;
      for (int d = 0; d < D; ++d)
        sum += y[rows[r] * D + d] * head[v * D + d];
      if (v == 0 || sum > best) {
        best = sum;
        ((int *)args[3])[r] = v;
      }
    }
  }
}
