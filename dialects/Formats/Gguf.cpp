// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Formats/Gguf.h"

#include "runtime/Support/Text.h"

#include <bit>
#include <cstring>

namespace moec {

namespace {

/// Reads forward; the first thing that cannot be is `problem`, and all that follows reads as 0.
class Cursor {
public:
  Cursor(std::string_view file) : file(file) {}

  bool ok() const { return problem.empty(); }
  uint64_t left() const { return file.size() - at; }
  uint64_t position() const { return at; }

  void fail(const std::string &reason) {
    if (ok())
      problem = reason;
    at = file.size();
  }

  std::string_view take(uint64_t bytes, const std::string &what) {
    if (bytes > left()) {
      fail("ends within " + what);
      return {};
    }
    std::string_view part = file.substr(at, bytes);
    at += bytes;
    return part;
  }

  template <typename T> T number(const std::string &what) {
    T value{};
    std::string_view part = take(sizeof(T), what);
    if (ok())
      std::memcpy(&value, part.data(), sizeof(T));
    return value;
  }

  std::string_view text(const std::string &what) { return take(number<uint64_t>(what), what); }

  std::string problem;

private:
  std::string_view file;
  uint64_t at = 0;
};

/// Bytes of one element, by type; 0 for strings and arrays.
constexpr uint64_t elementBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

GgufValue readValue(Cursor &in, GgufArray::Type type, const std::string &what) {
  using Type = GgufArray::Type;
  switch (type) {
  case Type::U8:
    return uint64_t{in.number<uint8_t>(what)};
  case Type::U16:
    return uint64_t{in.number<uint16_t>(what)};
  case Type::U32:
    return uint64_t{in.number<uint32_t>(what)};
  case Type::U64:
    return in.number<uint64_t>(what);
  case Type::I8:
    return int64_t{in.number<int8_t>(what)};
  case Type::I16:
    return int64_t{in.number<int16_t>(what)};
  case Type::I32:
    return int64_t{in.number<int32_t>(what)};
  case Type::I64:
    return in.number<int64_t>(what);
  case Type::F32:
    return double{in.number<float>(what)};
  case Type::F64:
    return in.number<double>(what);
  case Type::Bool: {
    auto value = in.number<uint8_t>(what);
    if (value > 1)
      in.fail("holds the boolean " + std::to_string(value) + " in " + what);
    return value == 1;
  }
  case Type::String:
    return in.text(what);
  case Type::Array:
    break;
  }
  GgufArray array;
  auto inner = in.number<uint32_t>(what);
  array.count = in.number<uint64_t>(what);
  if (inner >= std::size(elementBytes) || inner == static_cast<uint32_t>(Type::Array)) {
    in.fail("holds an array of elements of type " + std::to_string(inner) + " in " + what);
    return array;
  }
  array.type = static_cast<Type>(inner);
  uint64_t begin = in.left();
  if (array.type == Type::String) {
    std::string_view all = in.take(0, what);
    for (uint64_t i = 0; i < array.count && in.ok(); ++i)
      in.text(what);
    array.bytes = {all.data(), static_cast<size_t>(begin - in.left())};
  } else if (array.count > in.left() / elementBytes[inner]) {
    in.fail("ends within " + what);
  } else {
    array.bytes = in.take(array.count * elementBytes[inner], what);
  }
  return array;
}

class Parser {
public:
  Parser(std::string_view file) : in(file), size(file.size()) {}

  void parse(GgufHeader &out) {
    if (in.take(4, "its first four bytes") != "GGUF")
      return in.fail("does not begin with GGUF");
    auto version = in.number<uint32_t>("its version");
    if (version >> 16)
      return in.fail("is big-endian, but only little-endian files are read");
    if (version != 2 && version != 3)
      return in.fail("has version " + std::to_string(version) + ", but only versions 2 and 3 are read");
    auto numTensors = in.number<uint64_t>("its counts"), numPairs = in.number<uint64_t>("its counts");
    // The shortest pair is an empty key with a byte, the shortest tensor an empty name with one dimension.
    if (numPairs > in.left() / 13 || numTensors > in.left() / 32)
      return in.fail("says that it holds " + std::to_string(numTensors) + " tensors and " + std::to_string(numPairs) +
                     " metadata, more than its size allows");
    for (uint64_t i = 0; i < numPairs && in.ok(); ++i)
      pair(out);
    for (uint64_t i = 0; i < numTensors && in.ok(); ++i)
      tensor(out);
    if (in.ok())
      place(out);
  }

  Cursor in;

private:
  void pair(GgufHeader &out) {
    std::string key(in.text("a metadata key"));
    std::string what = "the metadata " + quote(key);
    auto type = in.number<uint32_t>(what);
    if (type >= std::size(elementBytes))
      return in.fail("gives " + what + " the type " + std::to_string(type));
    GgufValue value = readValue(in, static_cast<GgufArray::Type>(type), what);
    if (in.ok() && !out.metadata.emplace(std::move(key), value).second)
      in.fail("holds " + what + " twice");
  }

  void tensor(GgufHeader &out) {
    std::string name(in.text("a tensor's name"));
    std::string what = "the tensor " + quote(name);
    auto rank = in.number<uint32_t>(what);
    if (in.ok() && (rank < 1 || rank > 4))
      return in.fail("gives " + what + " " + std::to_string(rank) + " dimensions, expected 1 to 4");
    GgufTensor info;
    info.shape.resize(rank);
    uint64_t elements = 1;
    for (uint32_t i = 0; i < rank && in.ok(); ++i) {
      auto dimension = in.number<uint64_t>(what);
      // No element takes less than an eighth of a byte, so that this holds for types that are not known too.
      if (in.ok() && (dimension == 0 || dimension > (8 * size) / elements))
        return in.fail("gives " + what + " a dimension of " + std::to_string(dimension) +
                       ", which its size does not allow");
      info.shape[rank - 1 - i] = static_cast<int64_t>(dimension);
      elements *= dimension;
    }
    info.type = in.number<uint32_t>(what);
    info.begin = in.number<uint64_t>(what);
    if (!in.ok())
      return;
    if (const GgufType *type = ggufType(info.type)) {
      if (info.shape.back() % type->elements != 0)
        return in.fail("stores " + what + " as " + std::string(type->name) + " with rows of " +
                       std::to_string(info.shape.back()) + ", which is no multiple of " +
                       std::to_string(type->elements));
      info.bytes = elements / type->elements * type->bytes;
    }
    if (!out.tensors.emplace(std::move(name), std::move(info)).second)
      in.fail("holds " + what + " twice");
  }

  /// Offsets become places in the file.
  void place(GgufHeader &out) {
    uint64_t alignment = 32;
    if (auto found = out.metadata.find("general.alignment"); found != out.metadata.end()) {
      const auto *value = std::get_if<uint64_t>(&found->second);
      if (!value || !std::has_single_bit(*value) || *value > GgufHeader::maxAlignment)
        return in.fail("has a 'general.alignment' that is no power of two up to " +
                       std::to_string(GgufHeader::maxAlignment));
      alignment = *value;
    }
    // The data may be missing altogether where there are no tensors.
    uint64_t data = (in.position() + alignment - 1) / alignment * alignment;
    std::map<uint64_t, std::pair<uint64_t, const std::string *>> taken; // begin -> end, name
    for (auto &[name, tensor] : out.tensors) {
      std::string what = "the tensor " + quote(name);
      if (tensor.begin % alignment != 0)
        return in.fail("gives " + what + " the offset " + std::to_string(tensor.begin) + ", which is no multiple of " +
                       std::to_string(alignment));
      if (data > size || tensor.begin > size - data || tensor.bytes > size - data - tensor.begin)
        return in.fail("ends before " + what + " does");
      tensor.begin += data;
      if (tensor.bytes == 0)
        continue;
      auto [next, isNew] = taken.try_emplace(tensor.begin, tensor.begin + tensor.bytes, &name);
      bool overlaps = !isNew;
      auto other = next;
      if (isNew && next != taken.begin() && std::prev(next)->second.first > tensor.begin) {
        overlaps = true;
        other = std::prev(next);
      }
      if (isNew && std::next(next) != taken.end() && std::next(next)->first < tensor.begin + tensor.bytes) {
        overlaps = true;
        other = std::next(next);
      }
      if (overlaps)
        return in.fail("stores " + what + " and " + quote(*other->second.second) + " in the same bytes");
    }
  }

  uint64_t size;
};

} // namespace

Result<GgufHeader> GgufHeader::parse(std::string_view file, const std::string &path) {
  GgufHeader header;
  Parser parser(file);
  parser.parse(header);
  if (!parser.in.ok())
    return Error{path + ": " + parser.in.problem};
  return header;
}

} // namespace moec
