// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Formats/Gguf.h"
#include "test/fuzz/FuzzTarget.h"

#include <algorithm>
#include <utility>
#include <vector>

using namespace moec;
using namespace moec::fuzz;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  std::string_view file(reinterpret_cast<const char *>(data), size);
  Result<GgufHeader> header = GgufHeader::parse(file, "in");
  if (!header) {
    requireSentence(header.message(), "in");
    return 0;
  }
  for (const auto &[key, value] : header->metadata) {
    std::string_view view;
    if (const auto *text = std::get_if<std::string_view>(&value))
      view = *text;
    if (const auto *array = std::get_if<GgufArray>(&value))
      view = array->bytes;
    require(view.empty() || (view.data() >= file.data() && view.data() + view.size() <= file.data() + size),
            "views lie in the file");
  }
  std::vector<std::pair<uint64_t, uint64_t>> places;
  for (const auto &[name, tensor] : header->tensors) {
    require(tensor.begin <= size && tensor.bytes <= size - tensor.begin, "tensors lie in the file");
    uint64_t elements = 1;
    for (int64_t dimension : tensor.shape) {
      require(dimension >= 1, "dimensions are positive");
      elements *= dimension;
    }
    const GgufType *type = ggufType(tensor.type);
    if (!type)
      continue;
    require(tensor.bytes == elements / type->elements * type->bytes, "bytes are blocks times their size");
    places.emplace_back(tensor.begin, tensor.begin + tensor.bytes);
  }
  std::sort(places.begin(), places.end());
  for (size_t i = 1; i < places.size(); ++i)
    require(places[i - 1].second <= places[i].first, "tensors do not overlap");
  return 0;
}
