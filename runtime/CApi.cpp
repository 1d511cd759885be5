// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/moec.h"

#include "runtime/Generate.h"
#include "runtime/Model.h"
#include "runtime/Tokenizer/Tokenizer.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>

using namespace moec;

struct moec_model {
  std::unique_ptr<Model> model;
  std::once_flag once;
  std::optional<Result<Tokenizer>> tokenizer;

  /// Read at first use: a model without a tokenizer still gives logits.
  Result<Tokenizer> getTokenizer() {
    std::call_once(once, [this] { tokenizer = Tokenizer::load(model->artifact().directory()); });
    return *tokenizer;
  }
};

static thread_local std::string lastError;

/// Runs `body`, which gives a Result; its error, or an exception such as the
/// lack of memory, becomes `moec_last_error` and `failure`.
template <typename T, typename Body> static T guarded(T failure, Body body) noexcept {
  try {
    auto result = body();
    if (result.ok())
      return std::move(*result);
    lastError = result.message();
  } catch (const std::bad_alloc &) {
    lastError.clear();
    lastError = "out of memory"; // short enough to need none
  } catch (const std::exception &error) {
    lastError = error.what();
  }
  return failure;
}

/// The caller's struct over the defaults, as far as its version goes.
template <typename Options> static Result<Options> withDefaults(const Options *given, void (*init)(Options *)) {
  Options options;
  init(&options);
  if (!given)
    return options;
  if (given->size < sizeof(size_t) || given->size > sizeof(Options))
    return Error{"options have a size of " + std::to_string(given->size) + " bytes, expected at most " +
                 std::to_string(sizeof(Options)) + "; use the init function"};
  std::memcpy(&options, given, given->size);
  return options;
}

template <typename T> static std::span<T> spanOf(T *data, int64_t count) {
  return count > 0 ? std::span<T>(data, count) : std::span<T>();
}

/// A step whose results are put by `step`, which gets the tokens, positions, slots and rows.
template <typename Step>
static int guardedStep(const int32_t *tokens, const int32_t *positions, const int32_t *slots, int64_t count,
                       const int32_t *rows, int64_t rowCount, Step step) {
  return guarded(-1, [&]() -> Result<int> {
    if (rowCount < 0)
      return Error{"number of rows is " + std::to_string(rowCount) + ", expected 0 or more"};
    MOEC_CHECK(step(spanOf(tokens, count), spanOf(positions, count), spanOf(slots, count), spanOf(rows, rowCount)));
    return 0;
  });
}

extern "C" {

const char *moec_version(void) { return MOEC_VERSION; }

const char *moec_last_error(void) { return lastError.c_str(); }

void moec_load_options_init(moec_load_options *options) {
  *options = {};
  options->size = sizeof *options;
  options->max_slots = 1;
}

moec_model *moec_model_load(const char *directory, const moec_load_options *given) {
  return guarded<moec_model *>(nullptr, [&]() -> Result<moec_model *> {
    MOEC_TRY(moec_load_options options, withDefaults(given, moec_load_options_init));
    ModelOptions how;
    how.threads = options.threads;
    how.maxSlots = options.max_slots;
    if (options.cpu)
      how.cpu = options.cpu;
    if (options.weights) {
      MOEC_TRY(how.weights, weightPlacementFromString(options.weights));
    }
    auto result = std::make_unique<moec_model>();
    MOEC_TRY(result->model, Model::load(directory, how));
    return result.release();
  });
}

void moec_model_free(moec_model *model) { delete model; }

const char *moec_model_name(const moec_model *model) { return model->model->info().name.c_str(); }
const char *moec_model_type(const moec_model *model) { return model->model->info().type.c_str(); }
int64_t moec_model_vocab(const moec_model *model) { return model->model->vocab(); }
int64_t moec_model_max_context(const moec_model *model) { return model->model->maxContext(); }
int64_t moec_model_max_slots(const moec_model *model) { return model->model->maxSlots(); }

int moec_model_step(moec_model *model, const int32_t *tokens, const int32_t *positions, const int32_t *slots,
                    int64_t count, const int32_t *rows, int64_t row_count, float *logits) {
  return guardedStep(tokens, positions, slots, count, rows, row_count, [&](auto... what) {
    return model->model->step(what..., spanOf(logits, row_count * model->model->vocab()));
  });
}

int moec_model_step_argmax(moec_model *model, const int32_t *tokens, const int32_t *positions, const int32_t *slots,
                           int64_t count, const int32_t *rows, int64_t row_count, int32_t *argmax) {
  return guardedStep(tokens, positions, slots, count, rows, row_count,
                     [&](auto... what) { return model->model->stepArgmax(what..., spanOf(argmax, row_count)); });
}

int64_t moec_model_length(const moec_model *model, int64_t slot) {
  return guarded<int64_t>(-1, [&] { return model->model->length(slot); });
}

int moec_model_truncate(moec_model *model, int64_t slot, int64_t length) {
  return guarded(-1, [&]() -> Result<int> {
    MOEC_CHECK(model->model->truncate(slot, length));
    return 0;
  });
}

int64_t moec_tokenize(moec_model *model, const char *text, size_t size, int add_bos, int32_t *ids, int64_t capacity) {
  return guarded<int64_t>(-1, [&]() -> Result<int64_t> {
    MOEC_TRY(Tokenizer tokenizer, model->getTokenizer());
    EncodeOptions options;
    options.addBos = add_bos != 0;
    std::vector<int32_t> all = tokenizer.encode(std::string_view(text, size), options);
    const int64_t count = all.size();
    std::copy_n(all.begin(), std::clamp<int64_t>(capacity, 0, count), ids);
    return count;
  });
}

int64_t moec_detokenize(moec_model *model, const int32_t *ids, int64_t count, char *text, int64_t capacity) {
  return guarded<int64_t>(-1, [&]() -> Result<int64_t> {
    MOEC_TRY(Tokenizer tokenizer, model->getTokenizer());
    const std::string all = tokenizer.decode(spanOf(ids, count));
    const int64_t size = all.size();
    std::copy_n(all.begin(), std::clamp<int64_t>(capacity, 0, size), text);
    return size;
  });
}

void moec_generate_options_init(moec_generate_options *options) {
  *options = {};
  options->size = sizeof *options;
  options->max_tokens = 128;
  options->temperature = options->top_p = options->top_k = -1;
  options->add_bos = 1;
}

int moec_generate(moec_model *model, const char *prompt, size_t size, const moec_generate_options *given,
                  moec_text_callback callback, void *user, moec_generate_stats *stats) {
  return guarded(-1, [&]() -> Result<int> {
    MOEC_TRY(moec_generate_options options, withDefaults(given, moec_generate_options_init));
    MOEC_TRY(Tokenizer tokenizer, model->getTokenizer());
    SamplingRequest request;
    request.seed = options.seed;
    if (!(options.temperature < 0)) // NaN is the check's to refuse
      request.temperature = options.temperature;
    if (!(options.top_p < 0))
      request.topP = options.top_p;
    if (options.top_k >= 0)
      request.topK = options.top_k;
    MOEC_CHECK(model->model->length(options.slot)); // also that the slot fits an int32_t
    GenerationOptions how;
    how.maxTokens = options.max_tokens;
    how.slot = static_cast<int32_t>(options.slot);
    MOEC_TRY(how.sampling, resolveSampling(request, tokenizer.generationDefaults()));
    std::atomic<bool> cancel{false};
    how.cancel = &cancel;
    EncodeOptions encoding;
    encoding.addBos = options.add_bos != 0;
    MOEC_TRY(Generation generation, Generation::begin(*model->model, tokenizer,
                                                      tokenizer.encode(std::string_view(prompt, size), encoding), how));
    for (;;) {
      MOEC_TRY(std::optional<std::string> text, generation.next());
      if (!text)
        break;
      if (!text->empty() && callback && callback(user, text->data(), text->size()) != 0)
        cancel = true;
    }
    if (stats) {
      const GenerationStats &figures = generation.stats();
      *stats = {figures.promptTokens, figures.generatedTokens, figures.promptSeconds, figures.generationSeconds,
                toString(*generation.stopReason()).data()};
    }
    return 0;
  });
}

} // extern "C"
