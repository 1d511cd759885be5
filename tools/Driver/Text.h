// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Figures and tables as people read them.

#ifndef MOEC_TOOLS_DRIVER_TEXT_H
#define MOEC_TOOLS_DRIVER_TEXT_H

#include "runtime/Support/Result.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moec {

/// "1.5 GiB", "12.0 MiB", "640 B".
std::string sizeText(uint64_t bytes);

/// "671.0 B", "37 k": parameters, or operations.
std::string countText(double count);

/// "2GiB", "512 MiB", "1g" or a plain number of bytes. Powers of 1024 throughout.
Result<uint64_t> parseSize(std::string_view text);

/// Rows of cells in columns as wide as their widest cell; columns of numbers are flush right.
class Table {
public:
  explicit Table(std::vector<std::string> header);
  void add(std::vector<std::string> row);
  /// Header, a rule, and the rows, each ended by a newline.
  std::string text() const;

private:
  std::vector<std::vector<std::string>> rows;
};

} // namespace moec

#endif // MOEC_TOOLS_DRIVER_TEXT_H
