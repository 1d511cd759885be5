// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Support/Json.h"
#include "test/fuzz/FuzzTarget.h"

#include <limits>

using namespace moec;
using namespace moec::fuzz;

/// Asks for every field of every object in every way.
static void readFields(const Json &json) {
  if (json.is_array())
    for (const Json &element : json)
      readFields(element);
  Result<JsonObject> object = JsonObject::from(json, "in");
  if (!object) {
    requireSentence(object.message(), "in");
    return;
  }
  auto check = [](const auto &result) {
    if (!result)
      requireSentence(result.message(), "in");
  };
  // The search through an object is linear: a few fields of a large one will do.
  size_t left = 16;
  for (const auto &[key, value] : json.items()) {
    if (left-- == 0)
      break;
    Result<int64_t> integer =
        object->integer(key, std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max());
    check(integer);
    if (integer)
      require(*object->number(key) == static_cast<double>(*integer), "an integer is a number");
    check(object->integer(key, 0, 10));
    check(object->number(key));
    check(object->string(key));
    check(object->boolean(key));
    check(object->array(key));
    check(object->object(key));
    check(object->integerOr(key, 0, 10, 5));
    check(object->stringOr(key, "x"));
    readFields(value);
  }
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  Result<Json> json = parseJson({reinterpret_cast<const char *>(data), size}, "in");
  if (!json) {
    requireSentence(json.message(), "in");
    return 0;
  }
  Result<Json> again = parseJson(json->dump(), "again");
  require(again.ok(), again ? "" : "what was parsed parses again: " + again.message());
  require(*again == *json, "printing and parsing changes nothing");
  readFields(*json);
  return 0;
}
