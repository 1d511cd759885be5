// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Hostile JSON: parsing that refuses duplicate keys, deep nesting and
/// non-finite numbers, and field access whose failure is a sentence.

#ifndef MOEC_RUNTIME_SUPPORT_JSON_H
#define MOEC_RUNTIME_SUPPORT_JSON_H

#include "runtime/Support/Result.h"

#include <nlohmann/json.hpp>

#include <optional>
#include <string>
#include <string_view>

namespace moec {

/// Keeps the order of keys, as files that people read should.
using Json = nlohmann::ordered_json;

/// Parses `text`; `what` names it in errors ("model/config.json"). Refuses
/// duplicate keys, nesting deeper than 64, NaN/Infinity, numbers too large for
/// a double, ill-formed UTF-8 and trailing text. An integer beyond 64 bits
/// becomes a double (published tokenizer configs hold 10^30).
Result<Json> parseJson(std::string_view text, const std::string &what);
/// Reads and parses a file of at most `limit` bytes.
Result<Json> readJsonFile(const std::string &path, uint64_t limit = 64u << 20);

/// A value as the middle of a sentence: "an array of 3 elements", "7", "the string 'x'".
std::string describe(const Json &json);

/// Typed access to the fields of one JSON object. Each error names the file,
/// the field, what was found and what was expected.
class JsonObject {
public:
  /// `what` names the object in errors; `json` must outlive this.
  static Result<JsonObject> from(const Json &json, std::string what);

  bool has(const std::string &key) const; ///< present and not null
  Result<int64_t> integer(const std::string &key, int64_t min, int64_t max) const;
  Result<double> number(const std::string &key) const; ///< finite
  Result<std::string> string(const std::string &key) const;
  Result<bool> boolean(const std::string &key) const;
  Result<const Json *> array(const std::string &key) const;
  Result<JsonObject> object(const std::string &key) const;
  /// The same with a value for an absent or null key.
  Result<int64_t> integerOr(const std::string &key, int64_t min, int64_t max, int64_t otherwise) const;
  Result<double> numberOr(const std::string &key, double otherwise) const;
  Result<std::string> stringOr(const std::string &key, std::string otherwise) const;
  Result<bool> booleanOr(const std::string &key, bool otherwise) const;

  const Json &json() const { return *value; }
  /// The file, as given to `from`.
  const std::string &what() const { return name; }
  /// How an error about a field starts: "config.json: 'rope_scaling.factor'".
  std::string field(const std::string &key) const;

private:
  const Json *find(const std::string &key) const; ///< null if absent or null
  Error unexpected(const std::string &key, const std::string &expected) const;

  const Json *value = nullptr;
  std::string name;
  std::string prefix; ///< the way from the root to here: "rope_scaling."
};

} // namespace moec

#endif // MOEC_RUNTIME_SUPPORT_JSON_H
