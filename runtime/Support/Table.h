// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Tables as people read them.

#ifndef MOEC_RUNTIME_SUPPORT_TABLE_H
#define MOEC_RUNTIME_SUPPORT_TABLE_H

#include <string>
#include <vector>

namespace moec {

enum class TableStyle {
  Ruled, ///< a rule below the header; columns whose cells all begin with digits are flush right
  Plain, ///< no rule; all columns but the first are flush right
  Markdown,
};

/// Rows of cells in columns as wide as their widest cell, in characters.
class Table {
public:
  explicit Table(std::vector<std::string> header);
  void add(std::vector<std::string> row);
  /// Header and rows, each ended by a newline.
  std::string text(TableStyle style = TableStyle::Ruled) const;

private:
  std::vector<std::vector<std::string>> rows;
};

} // namespace moec

#endif // MOEC_RUNTIME_SUPPORT_TABLE_H
