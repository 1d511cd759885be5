// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The reader of calibration files: what it gives, and the sentence for each way a file can lie.

#include "dialects/Formats/Calibration.h"
#include "runtime/Support/DType.h"
#include "test/runtime/TemporaryDirectory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>

using namespace moec;
using testing::ElementsAre;
using testing::HasSubstr;

namespace {

/// A calibration of three tokens: one plain weight, and experts (three, top 2) that read the same rows and whose down
/// projection reads a row for each choice. Tests change a part and see what is said.
struct Made {
  std::map<std::string, std::string> metadata = {
      {"moec.calibration", "1"},
      {"tokens", "3"},
      {"inputs", R"({"shared.up": "shared.up", "e.{e}.gate": "shared.up", "e.{e}.down": "e.{e}.down"})"},
      {"routing", R"({"e.{e}.gate": "e.{e}.gate", "e.{e}.down": "e.{e}.gate"})"}};
  struct Tensor {
    DType dtype;
    std::vector<int64_t> shape;
    std::string bytes;
  };
  /// Written in this order: those with larger elements first.
  std::vector<std::pair<std::string, Tensor>> tensors;

  Made() {
    add<double>("e.{e}.gate.sensitivity", DType::F64, {1}, {0.25});
    add<int64_t>("e.{e}.gate.counts", DType::I64, {3}, {3, 1, 2});
    add<int32_t>("e.{e}.gate.chosen", DType::I32, {3, 2}, {0, 2, 1, 0, 2, 0});
    add<float>("e.{e}.gate.weights", DType::F32, {3, 2}, {0.5f, 0.25f, 1, 2, 3, 4});
    addBf16("shared.up.x", {3, 2});
    addBf16("e.{e}.down.x", {6, 1});
  }
  template <typename T>
  void add(const std::string &name, DType dtype, std::vector<int64_t> shape, const std::vector<T> &values) {
    remove(name);
    tensors.push_back({name,
                       {dtype, std::move(shape),
                        std::string(reinterpret_cast<const char *>(values.data()), values.size() * sizeof(T))}});
  }
  /// 0, 1, 2, ...
  void addBf16(const std::string &name, std::vector<int64_t> shape) {
    std::vector<uint16_t> values(shape[0] * shape[1]);
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = floatToBf16(static_cast<float>(i));
    add(name, DType::BF16, std::move(shape), values);
  }
  void remove(const std::string &name) {
    std::erase_if(tensors, [&](const auto &entry) { return entry.first == name; });
  }
  void write(const std::string &path) const {
    std::vector<TensorSpec> specs;
    for (const auto &[name, tensor] : tensors)
      specs.push_back({name, tensor.dtype, tensor.shape});
    Result<SafetensorsWriter> writer = SafetensorsWriter::create(path, specs, metadata);
    ASSERT_TRUE(writer) << writer.message();
    for (const auto &[name, tensor] : tensors)
      ASSERT_TRUE(writer->write(name, 0, tensor.bytes.data(), tensor.bytes.size()).ok());
    ASSERT_TRUE(writer->finish().ok());
  }
};

TEST(Calibration, GivesWhatIsInTheFile) {
  test::TemporaryDirectory dir;
  Made().write(dir / "c");
  Result<Calibration> opened = Calibration::open(dir / "c");
  ASSERT_TRUE(opened) << opened.message();
  const Calibration calibration = std::move(*opened); // moving leaves every pointer right
  EXPECT_EQ(calibration.tokens(), 3);
  EXPECT_EQ(calibration.inputs().size(), 3u);
  EXPECT_EQ(calibration.find("other"), nullptr);

  const CalibrationInput *plain = calibration.find("shared.up"), *gate = calibration.find("e.{e}.gate"),
                         *down = calibration.find("e.{e}.down");
  ASSERT_TRUE(plain && gate && down);
  EXPECT_EQ(plain->routing, nullptr);
  EXPECT_EQ(plain->x, gate->x);
  EXPECT_EQ(plain->id, gate->id);
  EXPECT_EQ(gate->routing, down->routing);
  EXPECT_FALSE(gate->perChoice);
  EXPECT_TRUE(down->perChoice);
  EXPECT_EQ(down->rows, 6);
  EXPECT_EQ(down->width, 1);

  const CalibrationRouting &routing = *gate->routing;
  EXPECT_EQ(routing.topk, 2);
  EXPECT_EQ(routing.experts, 3);
  EXPECT_EQ(routing.sensitivity, 0.25);
  EXPECT_THAT(routing.counts, ElementsAre(3, 1, 2));
  EXPECT_THAT(routing.weights, ElementsAre(0.5f, 0.25f, 1, 2, 3, 4));
  std::vector<int64_t> choices;
  EXPECT_THAT(gate->rowsOf(0, &choices), ElementsAre(0, 1, 2));
  EXPECT_THAT(choices, ElementsAre(0, 3, 5));
  EXPECT_THAT(gate->rowsOf(2), ElementsAre(0, 2));
  EXPECT_THAT(down->rowsOf(2), ElementsAre(1, 4));
  EXPECT_THAT(down->rowsOf(1), ElementsAre(2));

  std::vector<float> rows(4);
  ASSERT_TRUE(calibration.read(*plain, 1, 2, rows.data()).ok());
  EXPECT_THAT(rows, ElementsAre(2, 3, 4, 5));
  calibration.release(*plain, 1, 2);
  ASSERT_TRUE(calibration.read(*plain, 1, 2, rows.data()).ok());
  EXPECT_THAT(rows, ElementsAre(2, 3, 4, 5));
}

TEST(Calibration, SensitivityMayBeAbsent) {
  test::TemporaryDirectory dir;
  Made made;
  made.remove("e.{e}.gate.sensitivity");
  made.write(dir / "c");
  Result<Calibration> opened = Calibration::open(dir / "c");
  ASSERT_TRUE(opened) << opened.message();
  EXPECT_EQ(opened->find("e.{e}.down")->routing->sensitivity, std::nullopt);
}

/// Values are looked at where they are read, not before.
TEST(Calibration, RefusesToReadWhatIsNoNumber) {
  test::TemporaryDirectory dir;
  Made made;
  made.add<uint16_t>("e.{e}.down.x", DType::BF16, {6, 1}, {0, 0, 0, 0x7f80, 0x7fc0, 0});
  made.write(dir / "c");
  Result<Calibration> opened = Calibration::open(dir / "c");
  ASSERT_TRUE(opened) << opened.message();
  const CalibrationInput &down = *opened->find("e.{e}.down");
  std::vector<float> rows(6);
  EXPECT_TRUE(opened->read(down, 0, 3, rows.data()).ok());
  Status status = opened->read(down, 2, 4, rows.data());
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.message(), (dir / "c") + ": tensor 'e.{e}.down.x' has inf in row 3, expected finite numbers");
}

TEST(Calibration, RefusesWhatContradictsItself) {
  struct Case {
    std::function<void(Made &)> change;
    const char *message;
  };
  const auto set = [](const char *key, const char *value) { return [=](Made &made) { made.metadata[key] = value; }; };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Case cases[] = {
      {[](Made &made) { made.metadata.clear(); },
       "has no metadata 'moec.calibration', expected a file made by moec calibrate"},
      {set("moec.calibration", "2"), "is a calibration of version '2', expected '1'"},
      {set("tokens", "3 "), "metadata 'tokens' is '3 ', expected a number that is at least 1"},
      {set("tokens", "-3"), "metadata 'tokens' is '-3'"},
      {set("tokens", "99999999999999999999"), "metadata 'tokens' is '99999999999999999999'"},
      {set("tokens", "4"), "tensor 'e.{e}.gate.chosen' is I32 [3, 2], expected I32 [4, at least 1]"},
      {[](Made &made) { made.metadata.erase("inputs"); }, "has no metadata 'inputs'"},
      {set("inputs", "{"), "metadata 'inputs'"},
      {set("inputs", "[]"), "metadata 'inputs': is an array of 0 elements, expected an object"},
      {set("inputs", R"({"a": 1})"), "metadata 'inputs' maps 'a' to 1, expected a string"},
      {set("inputs", R"({"a": "a", "a": "b"})"), "metadata 'inputs'"},
      {set("inputs", R"({"shared.up": "shared.up"})"),
       "metadata 'routing' has weight 'e.{e}.down', which 'inputs' has not"},
      {set("routing", R"({"e.{e}.down": "absent"})"), "has no tensor 'absent.chosen', of which its metadata speaks"},
      {set("routing", "{}"), "tensor 'e.{e}.down.x' has 6 rows, expected the 3 that weight 'e.{e}.down' reads"},
      {[](Made &made) { made.remove("shared.up.x"); }, "has no tensor 'shared.up.x'"},
      {[](Made &made) { made.addBf16("shared.up.x", {4, 2}); }, "tensor 'shared.up.x' has 4 rows, expected the 3"},
      {[](Made &made) { made.addBf16("e.{e}.down.x", {5, 1}); },
       "tensor 'e.{e}.down.x' has 5 rows, expected the 3 or 6"},
      {[](Made &made) { made.addBf16("shared.up.x", {3, 0}); },
       "is BF16 [3, 0], expected BF16 [at least 1, at least 1]"},
      {[](Made &made) { made.add<uint16_t>("shared.up.x", DType::F16, {3, 2}, std::vector<uint16_t>(6)); },
       "tensor 'shared.up.x' is F16 [3, 2], expected BF16"},
      {[](Made &made) { made.add<int32_t>("e.{e}.gate.chosen", DType::I32, {3, 2}, {0, 2, 3, 0, 2, 0}); },
       "tensor 'e.{e}.gate.chosen' has expert 3 of token 1, expected 0 to 2"},
      {[](Made &made) { made.add<int32_t>("e.{e}.gate.chosen", DType::I32, {3, 2}, {0, 2, 1, 0, 2, -1}); },
       "tensor 'e.{e}.gate.chosen' has expert -1 of token 2"},
      {[](Made &made) { made.add<int64_t>("e.{e}.gate.counts", DType::I64, {3}, {3, 2, 1}); },
       "tensor 'e.{e}.gate.counts' says that expert 1 was chosen 2 times, but 'e.{e}.gate.chosen' has it 1 times"},
      {[=](Made &made) { made.add<float>("e.{e}.gate.weights", DType::F32, {3, 2}, {1, 1, nan, 1, 1, 1}); },
       "tensor 'e.{e}.gate.weights' has nan of token 1, expected a finite number"},
      {[](Made &made) { made.add<float>("e.{e}.gate.weights", DType::F32, {2, 3}, std::vector<float>(6)); },
       "tensor 'e.{e}.gate.weights' is F32 [2, 3], expected F32 [3, 2]"},
      {[](Made &made) { made.add<double>("e.{e}.gate.sensitivity", DType::F64, {1}, {-1}); },
       "tensor 'e.{e}.gate.sensitivity' is -1, expected a number that is at least 0"},
      {[](Made &made) { made.add<double>("e.{e}.gate.sensitivity", DType::F64, {2}, {1, 1}); },
       "tensor 'e.{e}.gate.sensitivity' is F64 [2], expected F64 [1]"},
      // One byte before it moves the others: `chosen` would be read at an odd address.
      {[](Made &made) { made.tensors.insert(made.tensors.begin(), {"byte", {DType::U8, {1}, "b"}}); },
       "begins at byte 4129, expected a multiple of 4"},
  };
  test::TemporaryDirectory dir;
  for (const Case &one : cases) {
    SCOPED_TRACE(one.message);
    Made made;
    one.change(made);
    made.write(dir / "c");
    Result<Calibration> opened = Calibration::open(dir / "c");
    ASSERT_FALSE(opened.ok());
    EXPECT_THAT(opened.message(), HasSubstr(one.message));
    EXPECT_THAT(opened.message(), HasSubstr(dir / "c"));
  }
  EXPECT_FALSE(Calibration::open(dir / "absent").ok());
}

} // namespace
