// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Support/Json.h"

#include "runtime/Support/File.h"
#include "runtime/Support/JsonSax.h"
#include "runtime/Support/Text.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <vector>

namespace moec {

//===----------------------------------------------------------------------===//
// Parsing
//===----------------------------------------------------------------------===//

bool JsonHandler::parse_error(size_t position, const std::string &lastToken, const nlohmann::detail::exception &e) {
  // `position` counts the bytes read, the offending one included.
  std::string_view before = text.substr(0, std::min(position ? position - 1 : 0, text.size()));
  size_t newline = before.rfind('\n');
  size_t lineBegin = newline == std::string_view::npos ? 0 : newline + 1;
  std::string where = "line " + std::to_string(1 + std::count(before.begin(), before.end(), '\n')) + ", column " +
                      std::to_string(before.size() - lineBegin + 1) + ": ";
  if (e.id == 406) // nlohmann's "number overflow"
    return fail(where + "number " + quote(lastToken, 40) + " is too large for a double");
  if (position > text.size())
    return fail(where + "the JSON text ends too early");
  // The token may be as long as the text, and its end is what is wrong with it.
  size_t shown = std::max(lineBegin, position - std::min<size_t>(position, 32));
  return fail(where + "not valid JSON at the end of " + quote(text.substr(shown, position - shown)));
}

Status saxParse(std::string_view text, const std::string &what, JsonHandler &handler) {
  // nlohmann takes a NUL for the end of the text, whatever follows.
  if (size_t nul = text.find('\0'); nul != std::string_view::npos)
    return Error{what + ": holds a NUL byte at offset " + std::to_string(nul) + ", expected JSON text"};
  handler.text = text;
  try {
    if (Json::sax_parse(text.begin(), text.end(), &handler))
      return success();
  } catch (const std::bad_alloc &) {
    return Error{what + ": does not fit in memory"};
  } catch (const std::exception &e) {
    return Error{what + ": cannot be parsed: " + e.what()};
  }
  return Error{what + ": " + handler.problem};
}

namespace {

/// Builds the tree. Keys are appended unseen and compared once an object ends:
/// looking each up in an ordered_json as it comes would take quadratic time.
class TreeBuilder final : public JsonHandler {
public:
  Json root;

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(int64_t value) override { return add(value); }
  bool number_unsigned(uint64_t value) override { return add(value); }
  bool number_float(double value, const std::string &) override { return add(value); }
  bool string(std::string &value) override { return add(std::move(value)); }
  bool start_object(size_t) override { return open(Json::value_t::object); }
  bool start_array(size_t) override { return open(Json::value_t::array); }
  bool key(std::string &name) override {
    pending = std::move(name);
    return true;
  }
  bool end_array() override {
    stack.pop_back();
    return true;
  }
  bool end_object() override {
    const auto &members = stack.back()->get_ref<const Json::object_t &>();
    stack.pop_back();
    std::vector<std::string_view> names;
    names.reserve(members.size());
    for (const auto &member : members)
      names.push_back(member.first);
    std::sort(names.begin(), names.end());
    auto twice = std::adjacent_find(names.begin(), names.end());
    return twice == names.end() || fail("field " + quote(*twice) + " is given twice");
  }

private:
  bool add(Json value) {
    place(std::move(value));
    return true;
  }
  bool open(Json::value_t kind) {
    if (stack.size() == maxDepth)
      return fail("is nested deeper than " + std::to_string(maxDepth));
    stack.push_back(place(Json(kind)));
    return true;
  }
  /// Addresses on the stack stay: a container grows only while it is on top.
  Json *place(Json value) {
    if (stack.empty()) {
      root = std::move(value);
      return &root;
    }
    if (stack.back()->is_array()) {
      auto &elements = stack.back()->get_ref<Json::array_t &>();
      elements.push_back(std::move(value));
      return &elements.back();
    }
    auto &members = stack.back()->get_ref<Json::object_t &>();
    members.emplace_back(std::move(pending), std::move(value));
    return &members.back().second;
  }

  std::vector<Json *> stack;
  std::string pending;
};

} // namespace

Result<Json> parseJson(std::string_view text, const std::string &what) {
  TreeBuilder builder;
  MOEC_CHECK(saxParse(text, what, builder));
  return std::move(builder.root);
}

Result<Json> readJsonFile(const std::string &path, uint64_t limit) {
  MOEC_TRY(std::string text, readFile(path, limit));
  return parseJson(text, path);
}

//===----------------------------------------------------------------------===//
// Fields
//===----------------------------------------------------------------------===//

std::string describe(const Json &json) {
  switch (json.type()) {
  case Json::value_t::null:
    return "null";
  case Json::value_t::object:
    return "an object";
  case Json::value_t::array:
    return "an array of " + std::to_string(json.size()) + " elements";
  case Json::value_t::string:
    return "the string " + quote(json.get_ref<const std::string &>(), 60);
  default:
    return json.dump();
  }
}

Result<JsonObject> JsonObject::from(const Json &json, std::string what) {
  if (!json.is_object())
    return Error{what + ": is " + describe(json) + ", expected an object"};
  JsonObject object;
  object.value = &json;
  object.name = std::move(what);
  return object;
}

const Json *JsonObject::find(const std::string &key) const {
  auto it = value->find(key);
  return it == value->end() || it->is_null() ? nullptr : &*it;
}

Error JsonObject::unexpected(const std::string &key, const std::string &expected) const {
  const Json *found = find(key);
  return Error{field(key) + " is " +
               (found                  ? describe(*found)
                : value->contains(key) ? "null"
                                       : "missing") +
               ", expected " + expected};
}

std::string JsonObject::field(const std::string &key) const { return name + ": " + quote(prefix + key); }

bool JsonObject::has(const std::string &key) const { return find(key) != nullptr; }

Result<int64_t> JsonObject::integer(const std::string &key, int64_t min, int64_t max) const {
  const Json *found = find(key);
  if (found && found->is_number_integer()) {
    constexpr auto largest = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
    bool fits = !found->is_number_unsigned() || found->get<uint64_t>() <= largest;
    int64_t number = fits ? found->get<int64_t>() : 0;
    if (fits && number >= min && number <= max)
      return number;
  }
  return unexpected(key, "an integer from " + std::to_string(min) + " to " + std::to_string(max));
}

Result<double> JsonObject::number(const std::string &key) const {
  const Json *found = find(key);
  if (found && found->is_number() && std::isfinite(found->get<double>()))
    return found->get<double>();
  return unexpected(key, "a number");
}

Result<std::string> JsonObject::string(const std::string &key) const {
  const Json *found = find(key);
  if (found && found->is_string())
    return found->get<std::string>();
  return unexpected(key, "a string");
}

Result<bool> JsonObject::boolean(const std::string &key) const {
  const Json *found = find(key);
  if (found && found->is_boolean())
    return found->get<bool>();
  return unexpected(key, "true or false");
}

Result<const Json *> JsonObject::array(const std::string &key) const {
  const Json *found = find(key);
  if (found && found->is_array())
    return found;
  return unexpected(key, "an array");
}

Result<JsonObject> JsonObject::object(const std::string &key) const {
  const Json *found = find(key);
  if (!found || !found->is_object())
    return unexpected(key, "an object");
  JsonObject object;
  object.value = found;
  object.name = name;
  object.prefix = prefix + key + ".";
  return object;
}

Result<int64_t> JsonObject::integerOr(const std::string &key, int64_t min, int64_t max, int64_t otherwise) const {
  return has(key) ? integer(key, min, max) : Result<int64_t>(otherwise);
}

Result<double> JsonObject::numberOr(const std::string &key, double otherwise) const {
  return has(key) ? number(key) : Result<double>(otherwise);
}

Result<std::string> JsonObject::stringOr(const std::string &key, std::string otherwise) const {
  return has(key) ? string(key) : Result<std::string>(std::move(otherwise));
}

Result<bool> JsonObject::booleanOr(const std::string &key, bool otherwise) const {
  return has(key) ? boolean(key) : Result<bool>(otherwise);
}

} // namespace moec
