/* Part of moec, under the Apache License v2.0 with LLVM Exceptions.
 * SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception */

/** \file
 * libmoec.so as a C program uses it. */

#include "runtime/moec.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/** Prints and counts what does not hold. */
static int failures;
#define CHECK(condition)                                                                                               \
  do {                                                                                                                 \
    if (!(condition)) {                                                                                                \
      ++failures;                                                                                                      \
      printf("%s:%d: %s does not hold; last error: %s\n", __FILE__, __LINE__, #condition, moec_last_error());          \
    }                                                                                                                  \
  } while (0)

struct text {
  char data[4096];
  size_t size;
  int calls, most_calls;
};

static int append(void *user, const char *data, size_t size) {
  struct text *text = user;
  memcpy(text->data + text->size, data, size);
  text->size += size;
  return ++text->calls == text->most_calls;
}

static void test_failures(void) {
  moec_load_options options;
  moec_load_options_init(&options);
  CHECK(moec_model_load("/nonexistent", NULL) == NULL);
  CHECK(strcmp(moec_last_error(), "/nonexistent: is not a directory, expected an artifact made by moec compile") == 0);
  options.size = sizeof options + 8;
  CHECK(moec_model_load("/nonexistent", &options) == NULL);
  CHECK(strstr(moec_last_error(), "use the init function") != NULL);
  moec_model_free(NULL);
}

static void test_steps(moec_model *model) {
  int64_t vocab = moec_model_vocab(model);
  const int32_t tokens[] = {3, 1, 4, 1, 5}, positions[] = {0, 1, 2, 3, 4}, slots[] = {1, 1, 1, 1, 1};
  const int32_t rows[] = {4, 2}, zero = 0;
  float *whole = malloc(2 * vocab * sizeof(float)), *single = malloc(vocab * sizeof(float));
  CHECK(moec_model_step(model, tokens, positions, slots, 5, rows, 2, whole) == 0);
  for (int t = 0; t < 5; ++t) { /* from the begin again, token by token */
    CHECK(moec_model_step(model, tokens + t, positions + t, slots + t, 1, &zero, 1, single) == 0);
    if (t == 4)
      CHECK(memcmp(single, whole, vocab * sizeof(float)) == 0);
    if (t == 2)
      CHECK(memcmp(single, whole + vocab, vocab * sizeof(float)) == 0);
  }
  CHECK(moec_model_length(model, 1) == 5);
  int32_t argmax[2];
  CHECK(moec_model_step_argmax(model, tokens, positions, slots, 5, rows, 2, argmax) == 0);
  for (int r = 0; r < 2; ++r)
    for (int64_t v = 0; v < vocab; ++v)
      CHECK(whole[r * vocab + argmax[r]] >= whole[r * vocab + v]);
  CHECK(moec_model_step_argmax(model, tokens, positions, slots, 1, rows, -1, argmax) == -1);
  CHECK(moec_model_truncate(model, 1, 2) == 0);
  CHECK(moec_model_length(model, 1) == 2);
  CHECK(moec_model_step(model, tokens, positions, slots, 2, NULL, 0, NULL) == 0);
  CHECK(moec_model_step(model, tokens, positions, slots, 0, NULL, 0, NULL) == -1);
  CHECK(strcmp(moec_last_error(), "a step needs at least one token") == 0);
  CHECK(moec_model_step(model, tokens, positions, slots, 1, rows, -1, whole) == -1);
  CHECK(moec_model_length(model, 9) == -1);
  CHECK(moec_model_truncate(model, 1, 3) == -1);
  free(whole);
  free(single);
}

static void test_text(moec_model *model) {
  int32_t ids[8];
  char text[8];
  CHECK(moec_tokenize(model, "abc", 3, 1, NULL, 0) == 4);
  CHECK(moec_tokenize(model, "abc", 3, 0, ids, 8) == 3);
  CHECK(moec_detokenize(model, ids, 3, text, 8) == 3 && memcmp(text, "abc", 3) == 0);
  CHECK(moec_detokenize(model, ids, 3, text, 1) == 3);

  struct text whole = {.most_calls = -1}, again = {.most_calls = -1}, cut = {.most_calls = 3};
  moec_generate_options options;
  moec_generate_stats stats;
  moec_generate_options_init(&options);
  options.max_tokens = 20;
  options.temperature = 0;
  CHECK(moec_generate(model, "abc", 3, &options, append, &whole, &stats) == 0);
  CHECK(stats.prompt_tokens == 4 && stats.generated_tokens == 20 && whole.size > 0);
  CHECK(strcmp(stats.stop_reason, "length") == 0);
  CHECK(moec_generate(model, "abc", 3, &options, append, &again, NULL) == 0);
  CHECK(whole.size == again.size && memcmp(whole.data, again.data, whole.size) == 0);
  CHECK(moec_generate(model, "abc", 3, &options, append, &cut, &stats) == 0);
  CHECK(strcmp(stats.stop_reason, "cancelled") == 0 && cut.calls == 3 && cut.size < whole.size);
  options.temperature = NAN;
  CHECK(moec_generate(model, "abc", 3, &options, append, &cut, NULL) == -1);
  options.temperature = 0;
  options.slot = 1LL << 40;
  CHECK(moec_generate(model, "abc", 3, &options, append, &cut, NULL) == -1);
}

/** \returns the number of checks that failed */
int test_c_abi(const char *artifact) {
  moec_load_options options;
  moec_model *model;
  failures = 0;
  CHECK(strlen(moec_version()) > 0);
  test_failures();
  moec_load_options_init(&options);
  options.threads = 2;
  options.max_slots = 2;
  options.cpu = "x86-64";
  model = moec_model_load(artifact, &options);
  CHECK(model != NULL);
  if (!model)
    return failures;
  CHECK(strcmp(moec_model_name(model), "tiny") == 0);
  CHECK(strcmp(moec_model_type(model), "tiny") == 0);
  CHECK(moec_model_vocab(model) == 11);
  CHECK(moec_model_max_context(model) == 200);
  CHECK(moec_model_max_slots(model) == 2);
  test_steps(model);
  test_text(model);
  moec_model_free(model);
  return failures;
}
