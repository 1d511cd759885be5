// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The extension module: the driver and the runtime, seen from Python. The
/// typed face of it is __init__.py and _moec.pyi.

#include "runtime/Generate.h"
#include "runtime/Model.h"
#include "runtime/Tokenizer/Tokenizer.h"
#include "tools/Driver/Calibrate.h"
#include "tools/Driver/Compilation.h"
#include "tools/Driver/Verify.h"

#include <array>
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <tuple>

namespace py = pybind11;
using namespace moec;

namespace {

void check(Status status) {
  if (!status.ok())
    throw py::value_error(status.message());
}

template <typename T> T take(Result<T> result) {
  if (!result.ok())
    throw py::value_error(result.message());
  return std::move(*result);
}

/// Only what NumPy can hand over as it is: `noconvert` refuses other types, `c_style` other layouts.
using IntArray = py::array_t<int32_t, py::array::c_style>;
using FloatArray = py::array_t<float, py::array::c_style>;

std::span<const int32_t> view(const IntArray &array, const char *name) {
  if (array.ndim() != 1)
    throw py::value_error(std::string(name) + " has " + std::to_string(array.ndim()) + " dimensions, expected 1");
  return {array.data(), static_cast<size_t>(array.size())};
}

/// A model and, once something asks for it, its tokenizer.
struct PyModel {
  std::unique_ptr<Model> model;
  std::optional<Tokenizer> cachedTokenizer;

  const Tokenizer &tokenizer() {
    if (!cachedTokenizer)
      cachedTokenizer = take(Tokenizer::load(model->artifact().directory()));
    return *cachedTokenizer;
  }

  FloatArray step(const IntArray &tokens, const IntArray &positions, const IntArray &slots, const IntArray &rows,
                  std::optional<FloatArray> out) {
    auto rowCount = static_cast<py::ssize_t>(view(rows, "rows").size());
    py::ssize_t vocab = model->vocab();
    if (out && (out->ndim() != 2 || out->shape(0) != rowCount || out->shape(1) != vocab))
      throw py::value_error("out is not of shape (" + std::to_string(rowCount) + ", " + std::to_string(vocab) + ")");
    FloatArray result = out ? *out : FloatArray({rowCount, vocab});
    std::span<float> logits(result.mutable_data(), static_cast<size_t>(result.size()));
    unlocked(tokens, positions, slots, rows, [&](auto... what) { return model->step(what..., logits); });
    return result;
  }
  IntArray stepArgmax(const IntArray &tokens, const IntArray &positions, const IntArray &slots, const IntArray &rows) {
    IntArray result(std::vector<py::ssize_t>{static_cast<py::ssize_t>(view(rows, "rows").size())});
    std::span<int32_t> argmax(result.mutable_data(), static_cast<size_t>(result.size()));
    unlocked(tokens, positions, slots, rows, [&](auto... what) { return model->stepArgmax(what..., argmax); });
    return result;
  }

private:
  /// Runs a step without Python's lock.
  template <typename Step>
  static void unlocked(const IntArray &tokens, const IntArray &positions, const IntArray &slots, const IntArray &rows,
                       Step step) {
    auto tokenView = view(tokens, "tokens"), positionView = view(positions, "positions");
    auto slotView = view(slots, "slots"), rowView = view(rows, "rows");
    Status status = success();
    {
      py::gil_scoped_release release;
      status = step(tokenView, positionView, slotView, rowView);
    }
    check(std::move(status));
  }
};

/// Keeps the model alive while text comes.
struct PyGeneration {
  std::shared_ptr<PyModel> model;
  Generation generation;

  std::string next() {
    std::optional<std::string> piece;
    Status status = success();
    {
      py::gil_scoped_release release;
      status = [&]() -> Status {
        // Tokens that complete no character give nothing to show; no value is the end.
        do {
          MOEC_TRY(piece, generation.next());
        } while (piece && piece->empty());
        return success();
      }();
    }
    check(std::move(status));
    if (!piece)
      throw py::stop_iteration();
    return *piece;
  }
};

void setFormats(CompileOptions &options, const std::array<std::string, 8> &formats) {
  std::tie(options.experts, options.attention, options.dense, options.head, options.formats, options.rounding,
           options.calibration, options.cache) =
      std::tie(formats[0], formats[1], formats[2], formats[3], formats[4], formats[5], formats[6], formats[7]);
}

void compileModel(const std::string &model, const std::string &out, const std::string &target,
                  const std::vector<std::string> &cpus, int64_t maxContext, const std::string &mla,
                  const std::array<std::string, 8> &formats, int64_t level, bool foldNorm, int64_t maxTokens,
                  uint64_t maxMemory, unsigned threads, std::function<void(uint64_t, uint64_t, std::string)> progress) {
  CompileOptions options;
  options.model = model;
  options.target = target;
  options.cpus = cpus;
  options.maxContext = maxContext;
  options.mla = mla;
  setFormats(options, formats);
  options.passes.level = level;
  options.passes.foldNorm = foldNorm;
  options.maxTokens = maxTokens;
  options.maxMemory = maxMemory;
  options.threads = threads;
  options.progress = [&](uint64_t done, uint64_t total, const std::string &weight) {
    py::gil_scoped_acquire acquire;
    // Control-C would wait for the end otherwise.
    if (PyErr_CheckSignals() != 0)
      throw py::error_already_set();
    if (progress)
      progress(done, total, weight);
  };
  Status status = success();
  {
    py::gil_scoped_release release;
    status = [&]() -> Status {
      MOEC_TRY(auto compilation, Compilation::open(options));
      MOEC_CHECK(compilation->optimize());
      MOEC_CHECK(compilation->lower());
      return compilation->write(out);
    }();
  }
  check(std::move(status));
}

/// The report as JSON text.
std::string verifyModel(const std::string &model, std::vector<int32_t> tokens, int64_t count, uint64_t seed,
                        std::vector<int64_t> layers, const std::string &mla, const std::array<std::string, 8> &formats,
                        int64_t level, bool foldNorm, bool artifact) {
  VerifyOptions options;
  options.compile.model = model;
  options.compile.layers = std::move(layers);
  options.compile.mla = mla;
  setFormats(options.compile, formats);
  options.compile.passes.level = level;
  options.compile.passes.foldNorm = foldNorm;
  options.tokens = std::move(tokens);
  options.count = count;
  options.seed = seed;
  options.artifact = artifact;
  py::gil_scoped_release release;
  Result<VerifyReport> report = verify(options);
  py::gil_scoped_acquire acquire;
  return take(std::move(report)).json().dump();
}

/// The report as JSON text.
std::string calibrateArtifact(const std::string &artifact, const std::string &file, const std::string &output,
                              int64_t tokens, int threads, bool sensitivity) {
  py::gil_scoped_release release;
  Result<CalibrateReport> report = calibrate({artifact, file, output, tokens, threads, sensitivity, {}});
  py::gil_scoped_acquire acquire;
  return take(std::move(report)).json().dump();
}

std::string irText(const std::string &model, const std::string &stage, int64_t maxContext) {
  if (stage != "moe" && stage != "optimized" && stage != "exec")
    throw py::value_error("unknown stage '" + stage + "', expected moe, optimized or exec");
  CompileOptions options;
  options.model = model;
  options.maxContext = maxContext;
  auto compilation = take(Compilation::open(options));
  if (stage != "moe")
    check(compilation->optimize());
  if (stage == "exec")
    check(compilation->lower());
  return compilation->text();
}

} // namespace

PYBIND11_MODULE(_moec, m) {
  m.attr("__version__") = MOEC_VERSION_NUMBER;

  py::class_<PyGeneration>(m, "Generation", R"doc(
Text as it is generated: iterate over it for pieces of whole characters.
)doc")
      .def("__iter__", [](py::object self) { return self; })
      .def("__next__", &PyGeneration::next)
      .def_property_readonly(
          "tokens", [](const PyGeneration &self) { return self.generation.tokens(); },
          "Token ids generated so far, without an end-of-sequence token.")
      .def_property_readonly(
          "stop_reason",
          [](const PyGeneration &self) -> std::optional<std::string> {
            if (auto reason = self.generation.stopReason())
              return std::string(toString(*reason));
            return std::nullopt;
          },
          "\"eos\", \"length\" or \"context\" once it is known that no token follows, else None.");

  py::class_<PyModel, std::shared_ptr<PyModel>>(m, "Model", R"doc(
A loaded artifact with its cache. Calls may come from any thread; steps run one at a time.
)doc")
      .def_property_readonly("name", [](const PyModel &self) { return self.model->info().name; })
      .def_property_readonly("type", [](const PyModel &self) { return self.model->info().type; })
      .def_property_readonly("vocab_size", [](const PyModel &self) { return self.model->vocab(); })
      .def_property_readonly("max_context", [](const PyModel &self) { return self.model->maxContext(); })
      .def_property_readonly("max_slots", [](const PyModel &self) { return self.model->maxSlots(); })
      .def_property_readonly("device", [](const PyModel &self) { return self.model->deviceDescription(); })
      .def("step", &PyModel::step, py::arg("tokens").noconvert(), py::arg("positions").noconvert(),
           py::arg("slots").noconvert(), py::arg("rows").noconvert(), py::kw_only(),
           py::arg("out").noconvert() = py::none(), R"doc(
Read T tokens and give logits of R of them: one run of the compiled program.

Token t continues the sequence in slots[t] at positions[t]. Within a slot positions follow each other
and the first is at most the slot's length; a lower one rewinds. Sequences may be mixed in any way. The
bits of a row depend on its sequence alone.

Args:
  tokens, positions, slots: int32, shape (T,), C-contiguous, read in place; T >= 1.
  rows: int32, shape (R,): indices into the tokens, in any order.
  out: float32, shape (R, vocab_size), C-contiguous, to be written in place; None: a new array.
Returns:
  float32, shape (R, vocab_size): `out`, or a new array.
Raises:
  ValueError: a value is out of range, or a sequence would be longer than max_context; nothing changed.
  TypeError: another dtype or layout; nothing is converted silently.
)doc")
      .def("step_argmax", &PyModel::stepArgmax, py::arg("tokens").noconvert(), py::arg("positions").noconvert(),
           py::arg("slots").noconvert(), py::arg("rows").noconvert(), R"doc(
Read T tokens as `step` does, and give the likeliest token after R of them. No logits are stored, which takes less time.

Args:
  tokens, positions, slots, rows: as for `step`.
Returns:
  int32, shape (R,): the greatest logit's token, the lowest of equal ones; -1 if none is a number above -infinity.
Raises:
  ValueError, TypeError: as for `step`.
)doc")
      .def(
          "generate",
          [](std::shared_ptr<PyModel> self, const std::string &prompt, int64_t maxNewTokens,
             std::optional<double> temperature, std::optional<double> topP, std::optional<int64_t> topK, uint64_t seed,
             int32_t slot, bool addBos) {
            const Tokenizer &tokenizer = self->tokenizer();
            EncodeOptions encoding;
            encoding.addBos = addBos;
            GenerationOptions options;
            options.maxTokens = maxNewTokens;
            options.slot = slot;
            SamplingRequest request{temperature, topP, topK, seed};
            options.sampling = take(resolveSampling(request, tokenizer.generationDefaults()));
            Generation generation =
                take(Generation::begin(*self->model, tokenizer, tokenizer.encode(prompt, encoding), options));
            return PyGeneration{self, std::move(generation)};
          },
          py::arg("prompt"), py::kw_only(), py::arg("max_new_tokens") = 128, py::arg("temperature") = py::none(),
          py::arg("top_p") = py::none(), py::arg("top_k") = py::none(), py::arg("seed") = 0, py::arg("slot") = 0,
          py::arg("add_bos") = true, R"doc(
Continue a text; an iterator over pieces of the continuation.

Args:
  prompt: text; special tokens in it count as such.
  max_new_tokens: the end of the text or of the context may come sooner.
  temperature, top_p, top_k: None follows the model's generation_config.json; temperature 0 is greedy.
  seed: the same seed gives the same text.
  slot: where the sequence is kept; what it held is forgotten.
  add_bos: put the token before the text that the model expects there.
Raises:
  ValueError: an argument is out of range, or the artifact has no tokenizer.
)doc")
      .def(
          "encode",
          [](PyModel &self, const std::string &text, bool addBos) {
            EncodeOptions encoding;
            encoding.addBos = addBos;
            return self.tokenizer().encode(text, encoding);
          },
          py::arg("text"), py::kw_only(), py::arg("add_bos") = true, "Token ids of a text.")
      .def(
          "decode",
          [](PyModel &self, const std::vector<int32_t> &tokens, bool skipSpecial) {
            return self.tokenizer().decode(tokens, skipSpecial);
          },
          py::arg("tokens"), py::kw_only(), py::arg("skip_special") = true, "The text of token ids.")
      .def(
          "length", [](const PyModel &self, int64_t slot) { return take(self.model->length(slot)); },
          py::arg("slot") = 0, "Tokens held in a slot.")
      .def(
          "truncate", [](PyModel &self, int64_t slot, int64_t length) { check(self.model->truncate(slot, length)); },
          py::arg("slot") = 0, py::arg("length") = 0, "Forget the tokens of a slot from `length` on.");

  m.def("_compile", &compileModel);
  m.def("_load", [](const std::string &artifact, int threads, int64_t maxSlots, std::optional<std::string> cpu,
                    const std::string &weights) {
    ModelOptions options;
    options.threads = threads;
    options.maxSlots = maxSlots;
    options.cpu = std::move(cpu);
    options.weights = take(weightPlacementFromString(weights));
    auto model = std::make_shared<PyModel>();
    model->model = take(Model::load(artifact, options));
    return model;
  });
  m.def("_ir", &irText);
  m.def("_verify", &verifyModel);
  m.def("_calibrate", &calibrateArtifact);
}
