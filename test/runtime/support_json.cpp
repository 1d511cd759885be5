// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Support/File.h"
#include "runtime/Support/Json.h"
#include "runtime/Support/Text.h"
#include "test/runtime/TemporaryDirectory.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>

using namespace moec;
using moec::test::TemporaryDirectory;

namespace {

std::string errorOf(std::string_view text) {
  Result<Json> json = parseJson(text, "a.json");
  return json ? "(parsed) " + json->dump() : json.message();
}

TEST(Json, KeepsValuesAndTheOrderOfKeys) {
  Result<Json> json =
      parseJson(R"( {"z": [1, -2, 3.5, true, null, "\u00e9\ud83d\ude00"], "a": {"z": {}, "b": []}} )", "a.json");
  ASSERT_TRUE(json) << json.message();
  EXPECT_EQ(json->dump(), R"({"z":[1,-2,3.5,true,null,"é😀"],"a":{"z":{},"b":[]}})");
}

TEST(Json, ScalarsAreDocuments) {
  for (const char *text : {"null", "true", "-1", "18446744073709551615", "0.25", "\"x\"", "[]", "{}"}) {
    Result<Json> json = parseJson(text, "a.json");
    ASSERT_TRUE(json) << json.message();
    EXPECT_EQ(json->dump(), text);
  }
}

TEST(Json, IntegersBeyond64BitsBecomeDoubles) {
  Result<Json> json = parseJson("1000000000000000019884624838656", "a.json");
  ASSERT_TRUE(json) << json.message();
  EXPECT_TRUE(json->is_number_float());
  EXPECT_EQ(json->get<double>(), 1e30);
}

TEST(Json, RefusesWhatIsNotJson) {
  EXPECT_EQ(errorOf(""), "a.json: line 1, column 1: the JSON text ends too early");
  EXPECT_EQ(errorOf("{\"a\":"), "a.json: line 1, column 6: the JSON text ends too early");
  EXPECT_EQ(errorOf("[\"abc"), "a.json: line 1, column 6: the JSON text ends too early");
  EXPECT_EQ(errorOf("{\n  \"a\": tru}"), R"(a.json: line 2, column 11: not valid JSON at the end of '  "a": tru}')");
  EXPECT_EQ(errorOf("{} x"), "a.json: line 1, column 4: not valid JSON at the end of '{} x'");
  EXPECT_EQ(errorOf("[1,]"), "a.json: line 1, column 4: not valid JSON at the end of '[1,]'");
  EXPECT_EQ(errorOf("[NaN]"), "a.json: line 1, column 2: not valid JSON at the end of '[N'");
  EXPECT_EQ(errorOf("[-Infinity]"), "a.json: line 1, column 3: not valid JSON at the end of '[-I'");
  EXPECT_EQ(errorOf("[1e999]"), "a.json: line 1, column 6: number '1e999' is too large for a double");
  EXPECT_EQ(errorOf("\"\xff\""), "a.json: line 1, column 2: not valid JSON at the end of '\"\\xff'");
  EXPECT_EQ(errorOf("\"\x1b\""), "a.json: line 1, column 2: not valid JSON at the end of '\"\\x1b'");
  EXPECT_EQ(errorOf(std::string_view("{}\0{", 4)), "a.json: holds a NUL byte at offset 2, expected JSON text");
}

TEST(Json, RefusesDuplicateKeysAtAnyDepth) {
  EXPECT_EQ(errorOf(R"({"a":1,"b":2,"a":1})"), "a.json: field 'a' is given twice");
  EXPECT_EQ(errorOf(R"([{"x":{"k":null,"\u006b":null}}])"), "a.json: field 'k' is given twice");
  EXPECT_EQ(errorOf(R"([{"a":1},{"a":{"a":1}}])"), R"((parsed) [{"a":1},{"a":{"a":1}}])");
}

TEST(Json, NestsToSixtyFour) {
  auto nested = [](size_t depth, const std::string &open, const std::string &close) {
    std::string text;
    for (size_t i = 0; i < depth; ++i)
      text += open;
    text += "1";
    for (size_t i = 0; i < depth; ++i)
      text += close;
    return text;
  };
  EXPECT_TRUE(parseJson(nested(64, "[", "]"), "a.json"));
  EXPECT_TRUE(parseJson(nested(64, "{\"a\":", "}"), "a.json"));
  EXPECT_EQ(errorOf(nested(65, "[", "]")), "a.json: is nested deeper than 64");
  EXPECT_EQ(errorOf(nested(65, "{\"a\":", "}")), "a.json: is nested deeper than 64");
  EXPECT_EQ(errorOf(std::string(1000000, '[')), "a.json: is nested deeper than 64");
}

TEST(Json, ManyKeysTakeNoQuadraticTime) {
  // Comparing each key with each other would be 2 * 10^11 comparisons: the test would not end.
  std::string text = "{";
  for (int i = 0; i < 600000; ++i)
    text += "\"k" + std::to_string(i) + "\":0,";
  EXPECT_EQ(errorOf(text + "\"k0\":0}"), "a.json: field 'k0' is given twice");
  Result<Json> json = parseJson(text + "\"k\":0}", "a.json");
  ASSERT_TRUE(json) << json.message();
  EXPECT_EQ(json->size(), 600001u);
}

TEST(Json, ErrorsQuoteHostileTextHarmlessly) {
  std::string message = errorOf("{\"" + std::string(100000, 'x') + "\":1,\"" + std::string(100000, 'x') + "\":1}");
  EXPECT_LT(message.size(), 300u);
  EXPECT_EQ(errorOf(R"({"\u001b[2J\u009b\n":1,"\u001b[2J\u009b\n":1})"),
            R"(a.json: field '\x1b[2J\xc2\x9b\x0a' is given twice)");
}

TEST(Json, ReadsFilesWithinTheLimit) {
  TemporaryDirectory dir;
  ASSERT_TRUE(writeFile(dir / "a.json", "{\"a\": 1}"));
  Result<Json> json = readJsonFile(dir / "a.json", 8);
  ASSERT_TRUE(json) << json.message();
  EXPECT_EQ(json->dump(), R"({"a":1})");
  json = readJsonFile(dir / "a.json", 7);
  ASSERT_FALSE(json);
  EXPECT_EQ(json.message(), (dir / "a.json") + ": has 8 bytes, expected at most 7");
  json = readJsonFile(dir / "b.json");
  ASSERT_FALSE(json);
  EXPECT_EQ(json.message(), (dir / "b.json") + ": cannot be opened: no such file or directory");
}

//===----------------------------------------------------------------------===//
// JsonObject
//===----------------------------------------------------------------------===//

class Fields : public testing::Test {
protected:
  void SetUp() override {
    Result<Json> parsed = parseJson(R"({
      "size": 7, "half": 0.5, "name": "moe", "flag": true, "none": null, "list": [1, 2],
      "huge": 18446744073709551615, "negative": -3, "rope": {"factor": 40, "deep": {"x": "y"}}})",
                                    "config.json");
    ASSERT_TRUE(parsed) << parsed.message();
    json = std::move(*parsed);
    Result<JsonObject> made = JsonObject::from(json, "config.json");
    ASSERT_TRUE(made) << made.message();
    object = *made;
  }
  Json json;
  JsonObject object;
};

template <typename T> std::string problem(const Result<T> &result) { return result ? "(no error)" : result.message(); }

TEST_F(Fields, GivesTypedValues) {
  EXPECT_EQ(*object.integer("size", 1, 7), 7);
  EXPECT_EQ(*object.integer("negative", -3, 0), -3);
  EXPECT_EQ(*object.number("half"), 0.5);
  EXPECT_EQ(*object.number("size"), 7.0);
  EXPECT_EQ(*object.number("huge"), 18446744073709551616.0);
  EXPECT_EQ(*object.string("name"), "moe");
  EXPECT_TRUE(*object.boolean("flag"));
  EXPECT_EQ((*object.array("list"))->size(), 2u);
  EXPECT_EQ(*object.object("rope")->object("deep")->string("x"), "y");
  EXPECT_TRUE(object.has("size"));
  EXPECT_FALSE(object.has("none"));
  EXPECT_FALSE(object.has("absent"));
}

TEST_F(Fields, DefaultsStandForAbsentAndNullOnly) {
  EXPECT_EQ(*object.integerOr("none", 0, 1, 5), 5);
  EXPECT_EQ(*object.integerOr("absent", 0, 1, 5), 5);
  EXPECT_EQ(*object.integerOr("size", 0, 9, 5), 7);
  EXPECT_EQ(*object.numberOr("absent", 2.5), 2.5);
  EXPECT_EQ(*object.stringOr("absent", "x"), "x");
  EXPECT_TRUE(*object.booleanOr("absent", true));
  EXPECT_EQ(problem(object.integerOr("name", 0, 1, 5)),
            "config.json: 'name' is the string 'moe', expected an integer from 0 to 1");
  EXPECT_EQ(problem(object.numberOr("flag", 1)), "config.json: 'flag' is true, expected a number");
  EXPECT_EQ(problem(object.stringOr("size", "")), "config.json: 'size' is 7, expected a string");
  EXPECT_EQ(problem(object.booleanOr("half", true)), "config.json: 'half' is 0.5, expected true or false");
}

TEST_F(Fields, SaysWhatIsWrongAndWhere) {
  EXPECT_EQ(problem(object.integer("absent", 1, 2)),
            "config.json: 'absent' is missing, expected an integer from 1 to 2");
  EXPECT_EQ(problem(object.integer("none", 1, 2)), "config.json: 'none' is null, expected an integer from 1 to 2");
  EXPECT_EQ(problem(object.integer("size", 1, 6)), "config.json: 'size' is 7, expected an integer from 1 to 6");
  EXPECT_EQ(problem(object.integer("half", 0, 1)), "config.json: 'half' is 0.5, expected an integer from 0 to 1");
  EXPECT_EQ(problem(object.integer("huge", -1, std::numeric_limits<int64_t>::max())),
            "config.json: 'huge' is 18446744073709551615, expected an integer from -1 to 9223372036854775807");
  EXPECT_EQ(problem(object.array("rope")), "config.json: 'rope' is an object, expected an array");
  EXPECT_EQ(problem(object.object("list")), "config.json: 'list' is an array of 2 elements, expected an object");
  EXPECT_EQ(problem(object.object("rope")->string("factor")), "config.json: 'rope.factor' is 40, expected a string");
  EXPECT_EQ(problem(object.object("rope")->object("deep")->number("x")),
            "config.json: 'rope.deep.x' is the string 'y', expected a number");
  EXPECT_EQ(problem(JsonObject::from(json["list"], "list.json")),
            "list.json: is an array of 2 elements, expected an object");
}

//===----------------------------------------------------------------------===//
// Text
//===----------------------------------------------------------------------===//

TEST(Text, QuotesWhatATerminalMayShow) {
  EXPECT_EQ(quote("model.layers.0"), "'model.layers.0'");
  EXPECT_EQ(quote("é漢😀"), "'é漢😀'");
  EXPECT_EQ(quote(std::string_view("a\0b\n\x7f", 5)), "'a\\x00b\\x0a\\x7f'");
  // Overlong, surrogate, beyond U+10FFFF, lone continuation, cut short.
  EXPECT_EQ(quote("\xc0\x80|\xed\xa0\x80|\xf4\x90\x80\x80|\x80|\xe6\xbc"),
            "'\\xc0\\x80|\\xed\\xa0\\x80|\\xf4\\x90\\x80\\x80|\\x80|\\xe6\\xbc'");
  EXPECT_EQ(quote("abcdef", 6), "'abcdef'");
  EXPECT_EQ(quote("abcdef", 5), "'abcde...'");
  EXPECT_EQ(quote("abcé", 4), "'abc...'");
}

TEST(Text, Shapes) {
  EXPECT_EQ(shapeToString({}), "[]");
  EXPECT_EQ(shapeToString({2, 0, 3}), "[2, 0, 3]");
  EXPECT_EQ(shapeToString({1, 2, 3, 4, 5, 6, 7, 8, 9, 10}), "[1, 2, 3, 4, 5, 6, 7, 8, ...]");
}

} // namespace
