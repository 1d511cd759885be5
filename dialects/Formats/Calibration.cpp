// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Formats/Calibration.h"

#include "runtime/Support/DType.h"
#include "runtime/Support/Json.h"
#include "runtime/Support/Text.h"

#include <cassert>
#include <charconv>
#include <cmath>
#include <numeric>

namespace moec {

namespace {

constexpr const char *versionKey = "moec.calibration", *version = "1";

/// The metadata `key`, or a sentence.
Result<std::string> metadata(const SafetensorsFile &file, const char *key) {
  auto found = file.metadata().find(key);
  if (found == file.metadata().end())
    return Error{file.path() + ": has no metadata '" + key + "', expected a file made by moec calibrate"};
  return found->second;
}

/// A metadata entry that is the text of a JSON object of strings.
Result<std::map<std::string, std::string>> names(const SafetensorsFile &file, const char *key) {
  MOEC_TRY(std::string text, metadata(file, key));
  const std::string what = file.path() + ": metadata '" + key + "'";
  MOEC_TRY(Json json, parseJson(text, what));
  MOEC_TRY(JsonObject object, JsonObject::from(json, what));
  std::map<std::string, std::string> result;
  for (const auto &[name, id] : object.json().items()) {
    if (!id.is_string())
      return Error{what + " maps " + quote(name) + " to " + describe(id) + ", expected a string"};
    result[name] = id.get<std::string>();
  }
  return result;
}

} // namespace

std::vector<int64_t> CalibrationInput::rowsOf(int64_t expert, std::vector<int64_t> *choices) const {
  assert(routing && "each row of a plain weight is read");
  std::vector<int64_t> result;
  for (int64_t at = 0, end = routing->chosen.size(); at < end; ++at) {
    if (routing->chosen[at] != expert)
      continue;
    result.push_back(perChoice ? at : at / routing->topk);
    if (choices)
      choices->push_back(at);
  }
  return result;
}

Result<const TensorInfo *> Calibration::tensor(const std::string &name, DType dtype,
                                               const std::vector<int64_t> &shape) const {
  auto found = file->tensors().find(name);
  if (found == file->tensors().end())
    return Error{path() + ": has no tensor " + quote(name) + ", of which its metadata speaks"};
  const TensorInfo &info = found->second;
  bool fits = info.dtype == dtype && info.shape.size() == shape.size();
  std::string expected;
  for (size_t i = 0; i < shape.size(); ++i) {
    fits = fits && (shape[i] < 0 ? info.shape[i] > 0 : info.shape[i] == shape[i]);
    expected += (i ? ", " : "") + (shape[i] < 0 ? "at least 1" : std::to_string(shape[i]));
  }
  const std::string what = path() + ": tensor " + quote(name);
  if (!fits)
    return Error{what + " is " + std::string(toString(info.dtype)) + " " + shapeToString(info.shape) + ", expected " +
                 std::string(toString(dtype)) + " [" + expected + "]"};
  if (info.begin % byteSize(dtype) != 0)
    return Error{what + " begins at byte " + std::to_string(info.begin) + ", expected a multiple of " +
                 std::to_string(byteSize(dtype))};
  return &info;
}

Result<CalibrationRouting> Calibration::readRouting(const std::string &id) const {
  CalibrationRouting routing;
  MOEC_TRY(const TensorInfo *chosen, tensor(id + ".chosen", DType::I32, {count, -1}));
  MOEC_TRY(const TensorInfo *weights, tensor(id + ".weights", DType::F32, chosen->shape));
  MOEC_TRY(const TensorInfo *counts, tensor(id + ".counts", DType::I64, {-1}));
  routing.topk = chosen->shape[1];
  routing.experts = counts->shape[0];
  const size_t choices = chosen->elements();
  routing.chosen = {reinterpret_cast<const int32_t *>(file->data(*chosen)), choices};
  routing.weights = {reinterpret_cast<const float *>(file->data(*weights)), choices};
  routing.counts = {reinterpret_cast<const int64_t *>(file->data(*counts)), static_cast<size_t>(routing.experts)};

  const auto tokenOf = [&](size_t at) { return " of token " + std::to_string(at / routing.topk); };
  std::vector<int64_t> seen(routing.experts);
  for (size_t at = 0; at < choices; ++at) {
    if (routing.chosen[at] < 0 || routing.chosen[at] >= routing.experts)
      return Error{path() + ": tensor " + quote(id + ".chosen") + " has expert " + std::to_string(routing.chosen[at]) +
                   tokenOf(at) + ", expected 0 to " + std::to_string(routing.experts - 1)};
    if (!std::isfinite(routing.weights[at]))
      return Error{path() + ": tensor " + quote(id + ".weights") + " has " + numberText(routing.weights[at]) +
                   tokenOf(at) + ", expected a finite number"};
    ++seen[routing.chosen[at]];
  }
  for (int64_t expert = 0; expert < routing.experts; ++expert)
    if (routing.counts[expert] != seen[expert])
      return Error{path() + ": tensor " + quote(id + ".counts") + " says that expert " + std::to_string(expert) +
                   " was chosen " + std::to_string(routing.counts[expert]) + " times, but " + quote(id + ".chosen") +
                   " has it " + std::to_string(seen[expert]) + " times"};

  for (auto [part, place] : {std::pair(".sensitivity", &routing.sensitivity), {".tipping", &routing.tipping}}) {
    const std::string name = id + part;
    if (!file->tensors().contains(name))
      continue;
    MOEC_TRY(const TensorInfo *info, tensor(name, DType::F64, {1}));
    *place = *reinterpret_cast<const double *>(file->data(*info));
    if (!std::isfinite(**place) || **place < 0)
      return Error{path() + ": tensor " + quote(name) + " is " + numberText(**place) +
                   ", expected a number that is at least 0"};
  }
  return routing;
}

Status Calibration::readInput(const std::string &weight, const std::string &id, const std::string &routingId) {
  CalibrationInput input;
  input.id = id;
  if (!routingId.empty()) {
    auto known = routings.find(routingId);
    if (known == routings.end()) {
      MOEC_TRY(CalibrationRouting routing, readRouting(routingId));
      known = routings.emplace(routingId, std::move(routing)).first;
    }
    input.routing = &known->second;
  }
  MOEC_TRY(const TensorInfo *info, tensor(id + ".x", DType::BF16, {-1, -1}));
  input.rows = info->shape[0];
  input.width = info->shape[1];
  input.x = reinterpret_cast<const uint16_t *>(file->data(*info));
  const int64_t choices = input.routing ? static_cast<int64_t>(input.routing->chosen.size()) : count;
  input.perChoice = input.routing && input.rows != count;
  if (input.rows != count && input.rows != choices)
    return Error{path() + ": tensor " + quote(id + ".x") + " has " + std::to_string(input.rows) +
                 " rows, expected the " + std::to_string(count) +
                 (input.routing ? " or " + std::to_string(choices) : "") + " that weight " + quote(weight) + " reads"};
  byName.emplace(weight, std::move(input));
  return success();
}

Result<Calibration> Calibration::open(const std::string &path) {
  Calibration result;
  MOEC_TRY(SafetensorsFile mapped, SafetensorsFile::open(path));
  result.file = std::make_unique<SafetensorsFile>(std::move(mapped));
  MOEC_TRY(std::string found, metadata(*result.file, versionKey));
  if (found != version)
    return Error{path + ": is a calibration of version " + quote(found, 20) + ", expected '" + version +
                 "'; calibrate again with this moec"};
  MOEC_TRY(std::string tokens, metadata(*result.file, "tokens"));
  const char *end = tokens.data() + tokens.size();
  auto [last, error] = std::from_chars(tokens.data(), end, result.count);
  if (error != std::errc() || last != end || result.count < 1)
    return Error{path + ": metadata 'tokens' is " + quote(tokens, 40) + ", expected a number that is at least 1"};
  MOEC_TRY(auto inputs, names(*result.file, "inputs"));
  MOEC_TRY(auto routing, names(*result.file, "routing"));
  for (const auto &[weight, id] : routing)
    if (!inputs.contains(weight))
      return Error{path + ": metadata 'routing' has weight " + quote(weight) + ", which 'inputs' has not"};
  for (const auto &[weight, id] : inputs) {
    auto routed = routing.find(weight);
    MOEC_CHECK(result.readInput(weight, id, routed == routing.end() ? "" : routed->second));
  }
  if (result.file->tensors().contains("tokens")) {
    MOEC_TRY(const TensorInfo *info, result.tensor("tokens", DType::I32, {result.count}));
    result.ids = {reinterpret_cast<const int32_t *>(result.file->data(*info)), static_cast<size_t>(result.count)};
  }
  return result;
}

const CalibrationInput *Calibration::find(const std::string &weight) const {
  auto found = byName.find(weight);
  return found == byName.end() ? nullptr : &found->second;
}

Status Calibration::read(const CalibrationInput &input, int64_t first, int64_t count, float *out) const {
  assert(first >= 0 && count >= 0 && first + count <= input.rows);
  const uint16_t *x = input.x + first * input.width;
  for (int64_t at = 0, end = count * input.width; at < end; ++at) {
    out[at] = bf16ToFloat(x[at]);
    if (!std::isfinite(out[at]))
      return Error{path() + ": tensor " + quote(input.id + ".x") + " has " + numberText(out[at]) + " in row " +
                   std::to_string(first + at / input.width) + ", expected finite numbers"};
  }
  return success();
}

void Calibration::release(const CalibrationInput &input, int64_t first, int64_t count) const {
  const auto *begin = reinterpret_cast<const std::byte *>(input.x + first * input.width);
  file->mapping().release(begin - file->mapping().data(), count * input.width * sizeof(uint16_t));
}

Status Calibration::check(const std::string &source, int64_t cols) const {
  const CalibrationInput *input = find(source);
  if (!input)
    return Error{path() + " says nothing of tensor " + quote(source) + ", which is to be rounded by it"};
  if (input->width != cols)
    return Error{path() + " has inputs of " + std::to_string(input->width) + " columns for tensor " + quote(source) +
                 ", which has " + std::to_string(cols)};
  return success();
}

Status Calibration::forEachInput(const std::string &source, int64_t member,
                                 const std::function<void(const float *, float)> &fn) const {
  const CalibrationInput &input = *find(source);
  std::vector<int64_t> rows, choices;
  if (input.routing)
    rows = input.rowsOf(member, &choices);
  int64_t count = input.routing ? static_cast<int64_t>(rows.size()) : input.rows;
  std::vector<float> x(input.width);
  for (int64_t i = 0; i < count; ++i) {
    int64_t row = input.routing ? rows[i] : i;
    MOEC_CHECK(read(input, row, 1, x.data()));
    float weight = input.routing ? input.routing->weights[choices[i]] : 1;
    fn(x.data(), weight * weight);
  }
  return success();
}

Result<SecondMoment> Calibration::moment(const std::string &source, int64_t member) const {
  SecondMoment moment(find(source)->width);
  MOEC_CHECK(forEachInput(source, member, [&](const float *x, float weight) { moment.add(x, weight); }));
  return moment;
}

Result<std::vector<float>> Calibration::importance(const std::string &source, int64_t member) const {
  std::vector<float> sums(find(source)->width, 0.0f);
  MOEC_CHECK(forEachInput(source, member, [&](const float *x, float weight) {
    for (size_t i = 0; i < sums.size(); ++i)
      sums[i] += weight * x[i] * x[i];
  }));
  // Columns without inputs matter a little too.
  double mean = std::accumulate(sums.begin(), sums.end(), 0.0) / static_cast<double>(sums.size());
  for (float &sum : sums)
    sum += mean > 0 ? 0.01f * static_cast<float>(mean) : 1.0f;
  return sums;
}

} // namespace moec
