// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "tools/Driver/Calibrate.h"

#include "runtime/ChunkReader.h"
#include "runtime/Sampler.h"
#include "runtime/Support/DType.h"
#include "runtime/Support/File.h"
#include "runtime/Support/Safetensors.h"
#include "runtime/Support/SplitMix.h"
#include "runtime/Support/Text.h"
#include "tools/Driver/Text.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <tuple>
#include <utility>

using namespace moec;

namespace {

//===----------------------------------------------------------------------===//
// What is where in a program
//===----------------------------------------------------------------------===//

/// A matrix in a buffer, as an argument of a launch: f32 or i32 rows, the first `width` elements of every `stride`.
struct Matrix {
  size_t launch = 0, arg = 0;
  int64_t width = 0, stride = 0;

  /// After that launch.
  template <typename T> T *row(const LaunchView &view, int64_t index) const {
    return static_cast<T *>(view.args[arg]) + index * stride;
  }
};

/// A layer's routed experts.
struct Experts {
  std::string id; ///< the first weight that follows their routing
  int64_t topk = 0, experts = 0;
  int64_t shared = 0; ///< experts behind these that every token takes, as its last choices
  Matrix chosen, weights;
  std::optional<Matrix> out;    ///< their output, summed up; what else it is added to may be in it
  std::optional<Matrix> stream; ///< what is in it for sure: with shared experts the output is complete without

  int64_t choices() const { return topk + shared; }
};

/// Rows that weights are multiplied with.
struct Input {
  std::string id; ///< the first weight that reads them
  Matrix x;
  std::optional<Matrix> order;      ///< where x is sorted by expert: place of each row among the choices
  const Experts *experts = nullptr; ///< whose choices `order` sorts
  bool ofShared = false;            ///< what its shared experts read, side by side, not the others

  int64_t rowsPerToken() const { return experts && !ofShared ? experts->topk : 1; }
  int64_t width() const { return ofShared ? experts->shared * x.width : x.width; }
};

/// Finds inputs and routings by following buffers through the launches.
class ProgramReader {
public:
  explicit ProgramReader(const Artifact &artifact) : artifact(artifact) {}
  Status run();

  std::vector<Input> inputs;                               ///< in the order of launches
  std::vector<std::unique_ptr<Experts>> experts;           ///< those that weights follow
  std::map<std::string, std::string> inputIds, routingIds; ///< of each weight

private:
  struct Spec;
  Result<Spec> specOf(size_t launch) const;
  /// What a kernel is made of; empty if it is of one piece.
  static Result<std::vector<Spec>> partsOf(const Spec &spec);
  Result<const ArgInfo *> bufferArg(size_t launch, size_t arg) const;
  Result<Matrix> matrix(size_t launch, size_t arg, DType dtype, int64_t rowsPerToken, int64_t width,
                        int64_t stride) const;
  /// Norms have their weights: what reads others would be recorded without a factor that the checkpoint's expect.
  Status checkNorms(size_t launch, const Spec &spec) const;
  Status readGemm(size_t launch, const Spec &spec);
  /// Notes that the weights `names` read `input`, which `kind` tells from others of the same memory.
  void addInput(Input input, int kind, const std::vector<std::string> &names);
  /// How errors about a launch start.
  std::string what(size_t launch) const {
    return artifact.directory() + ": launch " + quote(artifact.launches()[launch].label);
  }

  const Artifact &artifact;
  std::map<size_t, size_t> writers;   ///< of each buffer: the last launch so far
  std::set<size_t> routers;           ///< launches that give a router's logits
  std::map<size_t, Experts *> routed; ///< by the buffer of choices, and of lists and rows sorted by them
  std::vector<std::unique_ptr<Experts>> all;
  /// Inputs by buffer, offset, writer, width, stride and kind of rows.
  std::map<std::tuple<size_t, uint64_t, size_t, int64_t, int64_t, int>, std::string> known;
};

constexpr const char *whatToCalibrate = "calibrate the model compiled in a format that leaves activations as they are";

/// The kernel of a launch: its kind, and fields of its spec.
struct ProgramReader::Spec {
  std::string kind;
  JsonObject fields;

  Result<int64_t> size(const char *key) const { return fields.integer(key, 1, int64_t(1) << 31); }
};

Result<ProgramReader::Spec> ProgramReader::specOf(size_t launch) const {
  const KernelInfo &kernel = artifact.kernels()[artifact.launches()[launch].kernel];
  MOEC_TRY(JsonObject fields, JsonObject::from(kernel.spec, artifact.directory() + ": kernel " + quote(kernel.symbol)));
  return Spec{kernel.kind, fields};
}

Result<std::vector<ProgramReader::Spec>> ProgramReader::partsOf(const Spec &spec) {
  std::vector<Spec> specs;
  if (!spec.fields.has("parts"))
    return specs;
  MOEC_TRY(const Json *parts, spec.fields.array("parts"));
  for (const Json &json : *parts) {
    MOEC_TRY(JsonObject part, JsonObject::from(json, spec.fields.what()));
    MOEC_TRY(std::string kind, part.string("kind"));
    MOEC_TRY(JsonObject fields, part.object("spec"));
    specs.push_back({kind, fields});
  }
  return specs;
}

Result<const ArgInfo *> ProgramReader::bufferArg(size_t launch, size_t arg) const {
  const std::vector<ArgInfo> &args = artifact.launches()[launch].args;
  if (arg >= args.size() || args[arg].kind != ArgInfo::Kind::Buffer)
    return Error{what(launch) + " has no buffer as argument " + std::to_string(arg) +
                 ", which its kind of kernel takes"};
  return &args[arg];
}

Result<Matrix> ProgramReader::matrix(size_t launch, size_t arg, DType dtype, int64_t rowsPerToken, int64_t width,
                                     int64_t stride) const {
  MOEC_TRY(const ArgInfo *info, bufferArg(launch, arg));
  const BufferInfo &buffer = artifact.buffers()[info->index];
  if (buffer.dtype != dtype)
    return Error{what(launch) + " has buffer " + quote(buffer.name) + " of " + std::string(toString(buffer.dtype)) +
                 ", expected " + std::string(toString(dtype))};
  const __int128 elements = (static_cast<__int128>(artifact.maxTokens()) * rowsPerToken - 1) * stride + width;
  if (stride < width || elements * byteSize(dtype) > buffer.bytes - info->offset)
    return Error{what(launch) + " has buffer " + quote(buffer.name) + " of " + std::to_string(buffer.bytes) +
                 " bytes, too small for rows of " + std::to_string(width) + " elements that its kernel takes"};
  return Matrix{launch, arg, width, stride};
}

Status ProgramReader::checkNorms(size_t launch, const Spec &spec) const {
  MOEC_TRY(std::vector<Spec> parts, partsOf(spec));
  for (const Spec &part : parts)
    MOEC_CHECK(checkNorms(launch, part));
  if (spec.kind != "rms_norm")
    return success();
  MOEC_TRY(bool weight, spec.fields.booleanOr("weight", true)); // artifacts before had it always
  if (!weight)
    return Error{what(launch) + " has a norm whose weight is in those that it is multiplied with; calibrate the model "
                                "compiled without --fold-norm, at -O2"};
  return success();
}

Status ProgramReader::readGemm(size_t launch, const Spec &spec) {
  const std::vector<ArgInfo> &args = artifact.launches()[launch].args;
  MOEC_TRY(std::string routing, spec.fields.string("routing"));
  MOEC_TRY(std::string rows, spec.fields.string("rows"));
  MOEC_TRY(int64_t batch, spec.size("batch"));
  MOEC_TRY(int64_t width, spec.size("k"));
  // A batch that is no experts' has heads: the halves of kv_b_proj, which no row meets as the checkpoint has them.
  if ((routing == "none" && batch != 1) || routers.contains(launch) || args.size() < 2 ||
      args[1].kind != ArgInfo::Kind::Weight)
    return success();
  Experts *experts = nullptr;
  Input input;
  int64_t perToken = 1;
  if (routing != "none") {
    MOEC_TRY(const ArgInfo *order, bufferArg(launch, args.size() - 1));
    auto found = routed.find(order->index);
    if (found == routed.end())
      return Error{what(launch) + " follows lists of experts that no dispatch makes"};
    experts = found->second;
    MOEC_TRY(int64_t topk, spec.size("topk"));
    if (topk != experts->choices())
      return Error{what(launch) + " takes " + std::to_string(topk) + " rows for each token, but its router chooses " +
                   std::to_string(experts->choices()) + " experts"};
    if (routing == "scatter") {
      perToken = experts->choices();
      input.experts = experts;
      MOEC_TRY(input.order, matrix(launch, args.size() - 1, DType::I32, perToken, 1, 1));
    }
  }
  MOEC_TRY(const ArgInfo *argument, bufferArg(launch, 0));
  if (artifact.buffers()[argument->index].dtype == DType::U8)
    return Error{what(launch) + " rounds its input to codes; " + whatToCalibrate};
  MOEC_TRY(int64_t stride, spec.fields.integer("x_stride", width, int64_t(1) << 40));
  MOEC_TRY(input.x, matrix(launch, 0, DType::F32, perToken, width, stride));
  const std::vector<std::string> &names = artifact.weights()[args[1].index].sources;
  if (names.empty())
    return Error{artifact.directory() + ": does not say which tensors of the checkpoint its weights are made of; "
                                        "compile the model again with this moec"};

  // Shared experts are slices of matrices that are no families.
  std::vector<std::string> routedNames, sharedNames;
  for (const std::string &name : names)
    (experts && experts->shared && name.find("{e}") == std::string::npos ? sharedNames : routedNames).push_back(name);
  if (experts && !routedNames.empty() && experts->id.empty())
    experts->id = routedNames.front();
  if (experts)
    for (const std::string &name : routedNames)
      routingIds.emplace(name, experts->id);
  if (input.order) {
    Input ofShared = input;
    ofShared.ofShared = true;
    addInput(std::move(ofShared), /*kind=*/3, sharedNames);
    addInput(std::move(input), /*kind=*/2, routedNames);
  } else {
    // As where the shared expert is launched by itself, it comes first.
    sharedNames.insert(sharedNames.end(), routedNames.begin(), routedNames.end());
    addInput(std::move(input), rows == "R" ? 1 : 0, sharedNames);
  }
  if (experts)
    if (auto y = std::ranges::find(artifact.launches()[launch].writes, args.size() - 4);
        y != artifact.launches()[launch].writes.end() && args[*y].kind == ArgInfo::Kind::Buffer)
      routed[args[*y].index] = experts;
  return success();
}

void ProgramReader::addInput(Input input, int kind, const std::vector<std::string> &names) {
  std::vector<std::string> fresh; // a weight that two launches read has its rows from the first
  std::ranges::copy_if(names, std::back_inserter(fresh), [&](auto &name) { return !inputIds.contains(name); });
  if (fresh.empty())
    return;
  const ArgInfo &x = artifact.launches()[input.x.launch].args[input.x.arg];
  auto writer = writers.find(x.index);
  const std::tuple key(x.index, x.offset, writer == writers.end() ? size_t(-1) : writer->second, input.x.width,
                       input.x.stride, kind);
  auto [id, isNew] = known.emplace(key, fresh.front());
  if (isNew) {
    input.id = fresh.front();
    inputs.push_back(std::move(input));
  }
  for (const std::string &name : fresh)
    inputIds.emplace(name, id->second);
}

Status ProgramReader::run() {
  // Twice: a router's product is known by the route that follows it.
  for (bool second : {false, true}) {
    writers.clear();
    for (size_t i = 0; i < artifact.launches().size(); ++i) {
      const LaunchInfo &launch = artifact.launches()[i];
      MOEC_TRY(Spec spec, specOf(i));
      MOEC_CHECK(checkNorms(i, spec));
      if (spec.kind == "gemm_chain" && second) {
        MOEC_TRY(std::vector<Spec> parts, partsOf(spec));
        if (parts.empty())
          return Error{what(i) + " has a kernel of no parts"};
        if (std::ranges::any_of(parts, [](const Spec &part) { return part.kind == "route"; }))
          return Error{what(i) + " has a router in one launch, as where inputs are rounded; " + whatToCalibrate};
        MOEC_CHECK(readGemm(i, parts.front())); // whose arguments come first
      }
      if (spec.kind == "route" && !second) {
        MOEC_TRY(const ArgInfo *logits, bufferArg(i, 0));
        if (auto writer = writers.find(logits->index); writer != writers.end())
          routers.insert(writer->second);
      } else if (spec.kind == "route") {
        auto found = std::make_unique<Experts>();
        MOEC_TRY(found->topk, spec.size("topk"));
        MOEC_TRY(found->experts, spec.size("experts"));
        const size_t count = launch.args.size();
        MOEC_TRY(found->shared, spec.fields.integer("shared", 0, int64_t(1) << 31));
        MOEC_TRY(found->weights, matrix(i, count - 2, DType::F32, 1, found->topk, found->choices()));
        MOEC_TRY(found->chosen, matrix(i, count - 1, DType::I32, 1, found->topk, found->choices()));
        routed[launch.args[count - 1].index] = found.get();
        all.push_back(std::move(found));
      } else if (spec.kind == "dispatch" && second) {
        MOEC_TRY(const ArgInfo *chosen, bufferArg(i, 0));
        MOEC_TRY(const ArgInfo *order, bufferArg(i, launch.args.size() - 1));
        MOEC_TRY(const Json *members, spec.fields.array("members"));
        if (!members->empty()) // lists of one set say nothing of the rows of others
          return Error{what(i) +
                       " takes some of a layer's experts alone; calibrate an artifact that has them together"};
        if (auto found = routed.find(chosen->index); found != routed.end())
          routed[order->index] = found->second;
      } else if (spec.kind == "gemm" && second) {
        MOEC_CHECK(readGemm(i, spec));
      } else if (spec.kind == "combine" && second) {
        MOEC_TRY(const ArgInfo *y, bufferArg(i, 0));
        MOEC_TRY(int64_t width, spec.size("width"));
        MOEC_TRY(int64_t stride, spec.size("out_stride"));
        if (auto found = routed.find(y->index); found != routed.end()) {
          Experts &summed = *found->second;
          MOEC_TRY(summed.out, matrix(i, launch.args.size() - 1, DType::F32, 1, width, stride));
          MOEC_TRY(bool residual, spec.fields.boolean("residual"));
          if (residual && summed.shared) {
            MOEC_TRY(int64_t residualStride, spec.size("residual_stride"));
            MOEC_TRY(summed.stream, matrix(i, launch.args.size() - 2, DType::F32, 1, width, residualStride));
          }
        }
      }
      for (size_t arg : launch.writes)
        if (launch.args[arg].kind == ArgInfo::Kind::Buffer)
          writers[launch.args[arg].index] = i;
    }
  }
  for (std::unique_ptr<Experts> &one : all)
    if (!one->id.empty())
      experts.push_back(std::move(one));
  if (inputs.empty())
    return Error{artifact.directory() + ": multiplies with no weight of the checkpoint"};
  return success();
}

//===----------------------------------------------------------------------===//
// Running it
//===----------------------------------------------------------------------===//

/// Tensors of the file, those of larger elements first, so that all are aligned.
std::vector<TensorSpec> layout(const ProgramReader &program, int64_t tokens, bool sensitivity) {
  std::vector<TensorSpec> specs;
  for (const auto &experts : program.experts)
    if (sensitivity && experts->out)
      for (const char *part : {".sensitivity", ".tipping"})
        specs.push_back({experts->id + part, DType::F64, {1}});
  for (const auto &experts : program.experts)
    specs.push_back({experts->id + ".counts", DType::I64, {experts->experts}});
  specs.push_back({"tokens", DType::I32, {tokens}});
  for (const auto &experts : program.experts) {
    specs.push_back({experts->id + ".chosen", DType::I32, {tokens, experts->topk}});
    specs.push_back({experts->id + ".weights", DType::F32, {tokens, experts->topk}});
  }
  for (const Input &input : program.inputs)
    specs.push_back({input.id + ".x", DType::BF16, {tokens * input.rowsPerToken(), input.width()}});
  return specs;
}

/// Writes what launches read and choose, run after run of the program.
class Recorder {
public:
  Recorder(const Artifact &artifact, const ProgramReader &program, SafetensorsWriter &writer)
      : artifact(artifact), program(program), writer(writer) {
    for (const auto &experts : program.experts)
      counts.emplace_back(experts->experts);
  }

  void observe(const LaunchView &view) {
    if (view.launch == 0) {
      begin = end;
      end += view.tokens;
    }
    if (failure.ok())
      failure = record(view);
  }
  /// What went wrong so far.
  Status status() const { return failure; }
  /// Of each of the program's experts.
  const std::vector<std::vector<int64_t>> &expertCounts() const { return counts; }

private:
  Status record(const LaunchView &view);
  Status recordChoices(const LaunchView &view, size_t index);
  Status recordInput(const LaunchView &view, const Input &input);
  std::string what(const LaunchView &view) const {
    return artifact.directory() + ": launch " + quote(artifact.launches()[view.launch].label);
  }

  const Artifact &artifact;
  const ProgramReader &program;
  SafetensorsWriter &writer;
  int64_t begin = 0, end = 0; ///< tokens of this run
  std::vector<std::vector<int64_t>> counts;
  std::vector<uint16_t> half; ///< reused
  Status failure = success();
};

Status Recorder::record(const LaunchView &view) {
  for (size_t i = 0; i < program.experts.size(); ++i)
    if (program.experts[i]->chosen.launch == view.launch)
      MOEC_CHECK(recordChoices(view, i));
  for (const Input &input : program.inputs)
    if (input.x.launch == view.launch)
      MOEC_CHECK(recordInput(view, input));
  return success();
}

Status Recorder::recordChoices(const LaunchView &view, size_t index) {
  const Experts &experts = *program.experts[index];
  const int64_t choices = view.tokens * experts.topk;
  std::vector<int32_t> chosen(choices);
  std::vector<float> weights(choices);
  for (int64_t t = 0; t < view.tokens; ++t) {
    std::copy_n(experts.chosen.row<int32_t>(view, t), experts.topk, &chosen[t * experts.topk]);
    std::copy_n(experts.weights.row<float>(view, t), experts.topk, &weights[t * experts.topk]);
  }
  for (int32_t expert : chosen) {
    if (expert < 0 || expert >= experts.experts)
      return Error{what(view) + " chooses expert " + std::to_string(expert) + " of " + std::to_string(experts.experts)};
    ++counts[index][expert];
  }
  const uint64_t at = begin * experts.topk * sizeof(int32_t), bytes = choices * sizeof(int32_t);
  MOEC_CHECK(writer.write(experts.id + ".chosen", at, chosen.data(), bytes));
  return writer.write(experts.id + ".weights", at, weights.data(), bytes);
}

Status Recorder::recordInput(const LaunchView &view, const Input &input) {
  // All rows of logits are asked for, so that R is T.
  const int64_t choices = input.experts ? input.experts->choices() : 1, rows = view.tokens * choices;
  const int64_t routed = input.experts ? input.experts->topk : 1, width = input.x.width;
  half.resize(view.tokens * input.rowsPerToken() * input.width());
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t place = input.order ? *input.order->row<int32_t>(view, row) : row;
    if (place < 0 || place >= rows)
      return Error{what(view) + " has row " + std::to_string(place) + " in its order of " + std::to_string(rows)};
    const int64_t token = place / choices, choice = place % choices;
    if ((choice >= routed) != input.ofShared)
      continue;
    uint16_t *to = input.ofShared ? &half[(token * (choices - routed) + choice - routed) * width]
                                  : &half[(token * routed + choice) * width];
    const auto *from = input.x.row<float>(view, row);
    for (int64_t column = 0; column < width; ++column) {
      const uint16_t bits = to[column] = floatToBf16(from[column]);
      if ((bits & 0x7f80) == 0x7f80)
        return Error{what(view) + " reads " + numberText(from[column]) + " at token " + std::to_string(begin + token) +
                     " of the text"};
    }
  }
  return writer.write(input.id + ".x", begin * input.rowsPerToken() * input.width() * sizeof(uint16_t), half.data(),
                      half.size() * sizeof(uint16_t));
}

/// Adds noise to the output of one layer's experts: signs from a fixed seed, a step that is a share of the row's norm.
class Noise {
public:
  /// `share`: of the row's root mean square.
  Noise(const Experts &experts, uint64_t seed, double share)
      : out(*experts.out), stream(experts.stream), share(share), seed(seed) {}

  void observe(const LaunchView &view) {
    if (view.launch != out.launch)
      return;
    for (int64_t t = 0; t < view.tokens; ++t, ++tokens)
      disturb(out.row<float>(view, t), stream ? stream->row<float>(view, t) : nullptr);
  }
  /// Of all noise so far.
  double meanSquaredNorm() const { return tokens ? sum / static_cast<double>(tokens) : 0; }

private:
  void disturb(float *row, const float *stream) {
    double squares = 0;
    for (int64_t i = 0; i < out.width; ++i) {
      const double value = static_cast<double>(row[i]) - (stream ? stream[i] : 0);
      squares += value * value;
    }
    const auto step = static_cast<float>(share * std::sqrt(squares / static_cast<double>(out.width)));
    for (int64_t i = 0; i < out.width; ++i) {
      if (i % 64 == 0)
        signs = splitMix(std::exchange(seed, seed + kSplitMixStep));
      const float before = row[i];
      row[i] += (signs >> (i % 64)) & 1 ? step : -step;
      const double added = static_cast<double>(row[i]) - before;
      sum += added * added;
    }
  }
  Matrix out;
  std::optional<Matrix> stream;
  double share;
  uint64_t seed, signs = 0;
  int64_t tokens = 0;
  double sum = 0;
};

/// Makes later runs over some tokens choose the experts that the first one chose. A choice that tips over costs the
/// same however small the noise was, and whether one does is chance: it would hide what grows with the noise.
class HeldChoices {
public:
  explicit HeldChoices(const ProgramReader &program) : program(program), layers(program.experts.size()) {}

  void forget() { layers.assign(layers.size(), {}); }
  /// Begins a run over the tokens again.
  void rewind() {
    for (Layer &layer : layers)
      layer.at = 0;
  }
  void remember(const LaunchView &view) {
    atRows(view, [](Layer &layer, int32_t *chosen, float *weights, int64_t topk) {
      layer.chosen.insert(layer.chosen.end(), chosen, chosen + topk);
      layer.weights.insert(layer.weights.end(), weights, weights + topk);
    });
  }
  void hold(const LaunchView &view) {
    atRows(view, [](Layer &layer, int32_t *chosen, float *weights, int64_t topk) {
      const size_t at = std::exchange(layer.at, layer.at + topk);
      const int32_t *held = &layer.chosen[at];
      if (std::is_permutation(chosen, chosen + topk, held))
        return;
      std::copy_n(held, topk, chosen);
      std::copy_n(&layer.weights[at], topk, weights);
    });
  }

private:
  struct Layer {
    std::vector<int32_t> chosen; ///< [tokens, topk]
    std::vector<float> weights;  ///< [tokens, topk]
    size_t at = 0;
  };
  /// Of each token, at the launch that routes a layer.
  template <typename Visit> void atRows(const LaunchView &view, Visit visit) {
    for (size_t i = 0; i < layers.size(); ++i) {
      const Experts &experts = *program.experts[i];
      for (int64_t t = 0; experts.chosen.launch == view.launch && t < view.tokens; ++t)
        visit(layers[i], experts.chosen.row<int32_t>(view, t), experts.weights.row<float>(view, t), experts.topk);
    }
  }

  const ProgramReader &program;
  std::vector<Layer> layers;
};

/// How much noise in each layer's experts costs, over the chunks given to `add`: with all choices of experts held, and
/// with those that it tips over.
class Sensitivity {
public:
  /// Small enough for the divergence to grow with its square, large enough for it to be above rounding.
  static constexpr double heldShare = 0.02;
  /// About what int4 weights make.
  static constexpr double freeShare = 0.08;

  explicit Sensitivity(const ProgramReader &program) : held(program) {
    for (const auto &experts : program.experts)
      if (experts->out)
        for (bool holds : {true, false})
          probes.push_back(
              {experts.get(), holds, Noise(*experts, /*seed=*/probes.size() << 32, holds ? heldShare : freeShare), 0});
  }

  /// Told of the launches of a chunk's first reading, before `add`.
  void observe(const LaunchView &view) { held.remember(view); }
  /// Reads the chunk that `reader` has just read again for each layer.
  Status add(ChunkReader &reader, const int32_t *expected) {
    const std::vector<float> base(reader.all().begin(), reader.all().end());
    const int64_t vocab = reader.vocab();
    for (Probe &probe : probes) {
      held.rewind();
      reader->setObserver([&](const LaunchView &view) {
        if (probe.holds)
          held.hold(view);
        probe.noise.observe(view);
      });
      MOEC_CHECK(reader.readAgain(expected));
      for (int64_t t = 0; t < ChunkReader::chunkTokens; ++t)
        probe.divergence += klDivergence(std::span(base).subspan(t * vocab, vocab), reader.row(t));
    }
    held.forget();
    tokens += ChunkReader::chunkTokens;
    return success();
  }
  struct Cost {
    double sensitivity = 0, tipping = 0;
  };
  /// None if it was not measured; 0 for experts whose output is 0.
  std::optional<Cost> of(const Experts &experts) const {
    std::optional<Cost> cost;
    for (const Probe &probe : probes) {
      const double noise = probe.noise.meanSquaredNorm();
      if (probe.experts != &experts || !tokens)
        continue;
      if (!cost)
        cost.emplace();
      const double divergence = probe.divergence / static_cast<double>(tokens);
      if (noise > 0 && probe.holds)
        cost->sensitivity = divergence / noise;
      else if (noise > 0) // what is beyond the square grows with the noise itself
        cost->tipping = std::max(0.0, divergence - cost->sensitivity * noise) / std::sqrt(noise);
    }
    return cost;
  }

private:
  /// One reading with noise; of a layer, the one with choices held comes first.
  struct Probe {
    const Experts *experts;
    bool holds;
    Noise noise;
    double divergence;
  };
  HeldChoices held;
  std::vector<Probe> probes;
  int64_t tokens = 0;
};

/// "model.layers.1.mlp.experts" of "model.layers.1.mlp.experts.{e}.gate_proj.weight".
std::string layerName(const std::string &weight) { return weight.substr(0, weight.find(".{e}")); }

} // namespace

Result<CalibrateReport> moec::calibrate(const CalibrateOptions &options) {
  constexpr int64_t chunkTokens = ChunkReader::chunkTokens;
  if (options.tokens != 0 && options.tokens < chunkTokens)
    return Error{"tokens to read are " + std::to_string(options.tokens) + ", expected at least the " +
                 std::to_string(chunkTokens) + " of a chunk"};
  MOEC_TRY(std::string text, readFile(options.file, uint64_t(4) << 30));
  ModelOptions loading;
  loading.threads = options.threads;
  MOEC_TRY(std::unique_ptr<Model> model, Model::load(options.artifact, loading));
  MOEC_TRY(ChunkReader reader, ChunkReader::open(std::move(model)));
  const Artifact &artifact = reader->artifact();
  ProgramReader program(artifact);
  MOEC_CHECK(program.run());
  MOEC_TRY(std::vector<int32_t> ids, ChunkReader::encode(options.artifact, text));
  MOEC_TRY(int64_t chunks, reader.chunksOf(ids, options.file));
  if (options.tokens)
    chunks = std::min(chunks, options.tokens / chunkTokens);

  CalibrateReport report;
  report.output = options.output;
  report.tokens = chunks * chunkTokens;
  MOEC_TRY(SafetensorsWriter writer,
           SafetensorsWriter::create(options.output, layout(program, report.tokens, options.sensitivity),
                                     {{"moec.calibration", "1"},
                                      {"tokens", std::to_string(report.tokens)},
                                      {"inputs", Json(program.inputIds).dump()},
                                      {"routing", Json(program.routingIds).dump()}}));
  report.bytes = writer.size();
  MOEC_CHECK(writer.write("tokens", 0, ids.data(), report.tokens * sizeof(int32_t)));
  Recorder recorder(artifact, program, writer);
  Sensitivity sensitivity(program);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int32_t *expected = ids.data() + chunk * chunkTokens;
    const bool noisy = options.sensitivity && chunk < CalibrateReport::sensitivityTokens / chunkTokens;
    reader->setObserver([&](const LaunchView &view) {
      recorder.observe(view);
      if (noisy)
        sensitivity.observe(view);
    });
    MOEC_CHECK(reader.read(expected));
    MOEC_CHECK(recorder.status());
    if (!std::isfinite(reader.perplexity()))
      return Error{options.file + ": the perplexity is no finite number, so " + options.artifact +
                   " is not worth calibrating"};
    if (noisy)
      MOEC_CHECK(sensitivity.add(reader, expected));
    if (options.progress)
      options.progress((chunk + 1) * chunkTokens, report.tokens);
  }
  for (size_t i = 0; i < program.experts.size(); ++i) {
    const Experts &experts = *program.experts[i];
    ExpertUse use{layerName(experts.id), experts.topk, recorder.expertCounts()[i], std::nullopt, std::nullopt};
    MOEC_CHECK(writer.write(experts.id + ".counts", 0, use.counts.data(), use.counts.size() * sizeof(int64_t)));
    if (auto cost = sensitivity.of(experts)) {
      use.sensitivity = cost->sensitivity;
      use.tipping = cost->tipping;
      MOEC_CHECK(writer.write(experts.id + ".sensitivity", 0, &cost->sensitivity, sizeof(double)));
      MOEC_CHECK(writer.write(experts.id + ".tipping", 0, &cost->tipping, sizeof(double)));
    }
    report.layers.push_back(std::move(use));
  }
  MOEC_CHECK(writer.finish());
  return report;
}
