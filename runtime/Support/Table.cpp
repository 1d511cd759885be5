// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Support/Table.h"

#include <algorithm>
#include <cassert>
#include <cctype>

namespace moec {

/// Characters that a terminal shows, of UTF-8 without wide ones.
static size_t widthOf(const std::string &text) {
  return std::ranges::count_if(text, [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
}

static bool beginsWithDigit(const std::string &cell) {
  return cell.empty() || std::isdigit(static_cast<unsigned char>(cell.front()));
}

Table::Table(std::vector<std::string> header) { rows.push_back(std::move(header)); }

void Table::add(std::vector<std::string> row) {
  assert(row.size() == rows.front().size() && "a row has a cell for each column");
  rows.push_back(std::move(row));
}

std::string Table::text(TableStyle style) const {
  const size_t columns = rows.front().size();
  std::vector<size_t> widths(columns, 0);
  std::vector<bool> numbers(columns);
  for (size_t c = 0; c < columns; ++c) {
    for (const auto &row : rows)
      widths[c] = std::max(widths[c], widthOf(row[c]));
    numbers[c] = style == TableStyle::Ruled
                     ? rows.size() > 1 && std::all_of(rows.begin() + 1, rows.end(),
                                                      [&](const auto &row) { return beginsWithDigit(row[c]); })
                     : c > 0;
  }
  std::string result;
  for (size_t r = 0; r < rows.size(); ++r) {
    std::string line;
    for (size_t c = 0; c < columns; ++c) {
      if (style == TableStyle::Markdown) {
        line += "| " + rows[r][c] + " ";
        continue;
      }
      const std::string gap(widths[c] - widthOf(rows[r][c]), ' ');
      line += (c ? "  " : "") + (numbers[c] ? gap + rows[r][c] : rows[r][c] + gap);
    }
    line += style == TableStyle::Markdown ? "|" : "";
    line.erase(line.find_last_not_of(' ') + 1);
    result += line + "\n";
    if (r > 0 || style == TableStyle::Plain)
      continue;
    for (size_t c = 0; c < columns; ++c)
      result +=
          style == TableStyle::Markdown ? (c ? "| ---: " : "| --- ") : (c ? "  " : "") + std::string(widths[c], '-');
    result += style == TableStyle::Markdown ? "|\n" : "\n";
  }
  return result;
}

} // namespace moec
