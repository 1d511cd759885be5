/* Part of moec, under the Apache License v2.0 with LLVM Exceptions.
 * SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception */

/** \file
 * The runtime as a C library, libmoec.so: load an artifact, read tokens, get
 * logits, generate text.
 *
 * A function that can fail returns a negative number or NULL, and
 * `moec_last_error` then gives the reason as one sentence; it never aborts.
 * A model may be used by several threads; its steps run one at a time. Text is
 * UTF-8. Structs start with their own size, so that later versions can add
 * fields: fill them with the `_init` function, then change what you need.
 */

#ifndef MOEC_RUNTIME_MOEC_H
#define MOEC_RUNTIME_MOEC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define MOEC_API __attribute__((visibility("default")))
#else
#define MOEC_API
#endif

/** The library's version, "0.1.0". */
MOEC_API const char *moec_version(void);

/** Why the last call of this thread failed; empty if none has. Valid until the next failure of this thread. */
MOEC_API const char *moec_last_error(void);

typedef struct moec_model moec_model;

typedef struct moec_load_options {
  size_t size;       /**< sizeof(moec_load_options), set by init */
  int32_t threads;   /**< 0: the physical cores available to the process */
  int64_t max_slots; /**< sequences held at the same time; 1 */
  const char *cpu;   /**< CPU level such as "v3"; NULL: MOEC_CPU or the best that runs here */
  /** NULL or "mapped": weights are used where the page cache has them. "copied": from huge pages of our own, on all
   * memory nodes in turn; "replicated": such a copy on each node, for its threads. */
  const char *weights;
} moec_load_options;

MOEC_API void moec_load_options_init(moec_load_options *options);

/** Loads the artifact in `directory`.
 * \param options NULL for the defaults
 * \returns the model, to be freed with moec_model_free; NULL on failure
 */
MOEC_API moec_model *moec_model_load(const char *directory, const moec_load_options *options);
/** Frees a model that no call uses any more; NULL is fine. */
MOEC_API void moec_model_free(moec_model *model);

/** Published name and architecture ("deepseek_v3"); they live as long as the model. */
MOEC_API const char *moec_model_name(const moec_model *model);
MOEC_API const char *moec_model_type(const moec_model *model);
/** V: tokens are in [0, V), a row of logits has V values. */
MOEC_API int64_t moec_model_vocab(const moec_model *model);
/** Tokens that one slot can hold. */
MOEC_API int64_t moec_model_max_context(const moec_model *model);
MOEC_API int64_t moec_model_max_slots(const moec_model *model);

/** Reads `count` tokens and gives `row_count` rows of logits.
 *
 * Token t continues the sequence in `slots[t]` at `positions[t]`. In one slot
 * positions follow each other and start at most at its length; a lower start
 * forgets what was there. Tokens of several slots may be mixed in any way.
 * Each row has the same bits however a sequence is cut into steps, for any
 * number of threads and beside any other sequences.
 * \param tokens, positions, slots  i32 [count], count >= 1
 * \param rows    i32 [row_count], indices below `count`, in any order; may be NULL if row_count is 0
 * \param logits  out: f32 [row_count, V], row-major; row i belongs to token rows[i]
 * \returns 0, or -1 with nothing changed
 */
MOEC_API int moec_model_step(moec_model *model, const int32_t *tokens, const int32_t *positions, const int32_t *slots,
                             int64_t count, const int32_t *rows, int64_t row_count, float *logits);

/** The same for who wants the likeliest token of each row alone: no logits are stored, which takes less time.
 * \param argmax  out: i32 [row_count]; the lowest of equal ones, or -1 where no logit is a number above -infinity
 * \returns 0, or -1 with nothing changed
 */
MOEC_API int moec_model_step_argmax(moec_model *model, const int32_t *tokens, const int32_t *positions,
                                    const int32_t *slots, int64_t count, const int32_t *rows, int64_t row_count,
                                    int32_t *argmax);

/** Tokens held in a slot, or -1. */
MOEC_API int64_t moec_model_length(const moec_model *model, int64_t slot);
/** Forgets the tokens of a slot from `length` on (0: all). \returns 0 or -1 */
MOEC_API int moec_model_truncate(moec_model *model, int64_t slot, int64_t length);

/** The ids of a text.
 * \param text     `size` bytes; bytes that are not UTF-8 count as U+FFFD
 * \param add_bos  whether to put the tokens around it that the tokenizer adds on its own
 * \param ids      out: the first `capacity` ids; may be NULL if capacity is 0
 * \returns the number of all ids, or -1
 */
MOEC_API int64_t moec_tokenize(moec_model *model, const char *text, size_t size, int add_bos, int32_t *ids,
                               int64_t capacity);
/** The text of ids, special tokens left out; no terminating zero.
 * \param text  out: the first `capacity` bytes; may be NULL if capacity is 0
 * \returns the number of all bytes, or -1
 */
MOEC_API int64_t moec_detokenize(moec_model *model, const int32_t *ids, int64_t count, char *text, int64_t capacity);

typedef struct moec_generate_options {
  size_t size;        /**< sizeof(moec_generate_options), set by init */
  int64_t max_tokens; /**< at most; negative: until the model or the context ends; 128 */
  double temperature; /**< 0: greedy; negative: as generation_config.json says (the default) */
  double top_p;       /**< in (0, 1]; negative: as generation_config.json says (the default) */
  int64_t top_k;      /**< 0: no cut; negative: as generation_config.json says (the default) */
  uint64_t seed;      /**< equal seeds draw equal texts; 0 */
  int64_t slot;       /**< the sequence to use; what it held is forgotten; 0 */
  int32_t add_bos;    /**< whether to put the tokens around the prompt that the tokenizer adds; 1 */
} moec_generate_options;

MOEC_API void moec_generate_options_init(moec_generate_options *options);

/** Takes `size` bytes of text, whole characters, as they are generated. A result other than 0 ends the generation. */
typedef int (*moec_text_callback)(void *user, const char *text, size_t size);

typedef struct moec_generate_stats {
  int64_t prompt_tokens, generated_tokens;
  double prompt_seconds, generation_seconds;
  const char *stop_reason; /**< "eos", "length", "context" or "cancelled" (by the callback); a constant */
} moec_generate_stats;

/** Continues a prompt.
 * \param prompt   `size` bytes of text
 * \param options  NULL for the defaults
 * \param stats    out; may be NULL
 * \returns 0, or -1
 */
MOEC_API int moec_generate(moec_model *model, const char *prompt, size_t size, const moec_generate_options *options,
                           moec_text_callback callback, void *user, moec_generate_stats *stats);

#ifdef __cplusplus
}
#endif

#endif /* MOEC_RUNTIME_MOEC_H */
