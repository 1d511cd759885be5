// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// JSON as events, for readers that need no tree of a large hostile text.

#ifndef MOEC_RUNTIME_SUPPORT_JSONSAX_H
#define MOEC_RUNTIME_SUPPORT_JSONSAX_H

#include "runtime/Support/Json.h"

#include <string>
#include <string_view>

namespace moec {

/// Gets the events of `saxParse`. A handler that dislikes one returns
/// `fail(reason)`, which ends the parsing.
class JsonHandler : public nlohmann::json_sax<Json> {
public:
  /// Deepest nesting of arrays and objects that handlers accept.
  static constexpr size_t maxDepth = 64;

  bool parse_error(size_t position, const std::string &lastToken, const nlohmann::detail::exception &e) final;

  /// JSON text holds none; the parser never reports it.
  bool binary(Json::binary_t &) override { return fail("holds binary data"); }

protected:
  bool fail(std::string reason) {
    problem = std::move(reason);
    return false;
  }

private:
  friend Status saxParse(std::string_view text, const std::string &what, JsonHandler &handler);
  std::string_view text;
  std::string problem;
};

/// Parses one JSON value and nothing after it. No exception escapes; errors
/// start with `what`. Checks neither depth nor duplicate keys: handlers do.
Status saxParse(std::string_view text, const std::string &what, JsonHandler &handler);

} // namespace moec

#endif // MOEC_RUNTIME_SUPPORT_JSONSAX_H
