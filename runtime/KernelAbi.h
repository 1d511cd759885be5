/* Part of moec, under the Apache License v2.0 with LLVM Exceptions.
 * SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception */

/** \file
 * How the runtime calls compiled code: the whole contract between an
 * artifact's ELF file and the CPU device. Plain C; changing anything here
 * changes MOE_ABI_VERSION.
 */

#ifndef MOEC_RUNTIME_KERNELABI_H
#define MOEC_RUNTIME_KERNELABI_H

#include <stdint.h>

#define MOE_ABI_VERSION 1

/** Tokens in one page of the key-value cache. */
#define MOE_PAGE_TOKENS 64

/** What all launches of one step share. */
typedef struct moe_step {
  int64_t tokens;         /**< T: tokens in this step, >= 1 */
  int64_t rows;           /**< R: rows of logits asked for, >= 0 */
  int64_t pages_per_slot; /**< row stride of the page table, in entries */
} moe_step;

/** Runs tasks `[begin, end)` of a launch. Tasks of one launch are independent:
 * any thread may run any range, at the same time, and the bits do not depend on it.
 * \param args one pointer per argument of the launch, in the manifest's order
 */
typedef void (*moe_kernel)(void *const *args, const moe_step *step, int64_t begin, int64_t end);

#endif /* MOEC_RUNTIME_KERNELABI_H */
