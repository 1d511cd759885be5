// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Support/Table.h"

#include <gtest/gtest.h>

namespace moec {
namespace {

TEST(Table, EachStyle) {
  Table table({"name", "n", "share"});
  table.add({"one", "7", "-"});
  table.add({"\u00e9t\u00e9 two", "123", "4 %"});
  EXPECT_EQ(table.text(), "name       n  share\n"
                          "-------  ---  -----\n"
                          "one        7  -\n"
                          "\u00e9t\u00e9 two  123  4 %\n");
  EXPECT_EQ(table.text(TableStyle::Plain), "name       n  share\n"
                                           "one        7      -\n"
                                           "\u00e9t\u00e9 two  123    4 %\n");
  EXPECT_EQ(table.text(TableStyle::Markdown), "| name | n | share |\n"
                                              "| --- | ---: | ---: |\n"
                                              "| one | 7 | - |\n"
                                              "| \u00e9t\u00e9 two | 123 | 4 % |\n");
}

TEST(Table, AHeaderAlone) { EXPECT_EQ(Table({"a", "bc"}).text(), "a  bc\n-  --\n"); }

} // namespace
} // namespace moec
