// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// How code that includes no MLIR says that something went wrong: a value or
/// one sentence. The sentence names the file, the thing in it, what was found
/// and what was expected; lower case, no final period.

#ifndef MOEC_RUNTIME_SUPPORT_RESULT_H
#define MOEC_RUNTIME_SUPPORT_RESULT_H

#include <cassert>
#include <string>
#include <utility>
#include <variant>

namespace moec {

/// One sentence for the user.
struct Error {
  std::string message;
};

/// A `T`, or the reason why there is none.
template <typename T> class [[nodiscard]] Result {
public:
  Result(T value) : state(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state(std::in_place_index<1>, std::move(error)) {}

  bool ok() const { return state.index() == 0; }
  explicit operator bool() const { return ok(); }

  T &operator*() & { return get(); }
  const T &operator*() const & {
    assert(ok());
    return std::get<0>(state);
  }
  T &&operator*() && { return std::move(get()); }
  T *operator->() { return &get(); }
  const T *operator->() const { return &**this; }

  /// The sentence; only when `!ok()`.
  const std::string &message() const {
    assert(!ok());
    return std::get<1>(state).message;
  }
  Error takeError() {
    assert(!ok());
    return std::move(std::get<1>(state));
  }

private:
  T &get() {
    assert(ok());
    return std::get<0>(state);
  }
  std::variant<T, Error> state;
};

/// Success, or a sentence.
using Status = Result<std::monostate>;
inline Status success() { return std::monostate{}; }

} // namespace moec

#define MOEC_CONCAT_IMPL(a, b) a##b
#define MOEC_CONCAT(a, b) MOEC_CONCAT_IMPL(a, b)

/// `MOEC_TRY(auto x, f());` binds `x` to the value of `f()` or returns its error.
#define MOEC_TRY(decl, expr) MOEC_TRY_IMPL(decl, expr, MOEC_CONCAT(result_, __LINE__))
#define MOEC_TRY_IMPL(decl, expr, tmp)                                                                                 \
  auto tmp = (expr);                                                                                                   \
  if (!tmp.ok())                                                                                                       \
    return tmp.takeError();                                                                                            \
  decl = std::move(*tmp)

/// `MOEC_CHECK(f());` returns the error of `f()`, if any.
#define MOEC_CHECK(expr)                                                                                               \
  do {                                                                                                                 \
    auto status = (expr);                                                                                              \
    if (!status.ok())                                                                                                  \
      return status.takeError();                                                                                       \
  } while (false)

#endif // MOEC_RUNTIME_SUPPORT_RESULT_H
