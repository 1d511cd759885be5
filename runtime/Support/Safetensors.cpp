// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Support/Safetensors.h"

#include "runtime/Support/JsonSax.h"
#include "runtime/Support/Text.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <optional>

namespace moec {

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian, and read in place");

namespace {

constexpr size_t lengthBytes = 8, maxRank = 64;
constexpr uint64_t alignment = 4096;
constexpr const char *metadataKey = "__metadata__";

/// Bytes of a tensor, or nothing if they (or, where a dimension is 0, the
/// product of the others) exceed an int64: strides are then safe to compute.
std::optional<uint64_t> bytesOf(DType dtype, const std::vector<int64_t> &shape) {
  int64_t bytes = byteSize(dtype);
  bool empty = false;
  for (int64_t size : shape) {
    if (size < 0 || __builtin_mul_overflow(bytes, std::max<int64_t>(size, 1), &bytes))
      return std::nullopt;
    empty |= size == 0;
  }
  return empty ? 0 : static_cast<uint64_t>(bytes);
}

/// Reads the header's JSON, of the one form it may have:
///   {"__metadata__": {string: string}, name: {"dtype": string, "shape": [int], "data_offsets": [int, int]}}
class HeaderReader final : public JsonHandler {
public:
  HeaderReader(uint64_t dataBegin, uint64_t dataBytes, std::map<std::string, TensorInfo> &infos,
               std::map<std::string, std::string> &meta)
      : dataBegin(dataBegin), dataBytes(dataBytes), infos(infos), meta(meta) {}

  bool null() override { return value("null"); }
  bool boolean(bool value) override { return this->value(value ? "true" : "false"); }
  bool number_integer(int64_t number) override { return value(std::to_string(number)); } // only negative ones
  bool number_float(double, const std::string &text) override { return value(quote(text, 40)); }

  bool number_unsigned(uint64_t number) override {
    if (state == State::Shape) {
      if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
        return value(std::to_string(number));
      if (info.shape.size() == maxRank)
        return failTensor("has more than " + std::to_string(maxRank) + " dimensions");
      info.shape.push_back(static_cast<int64_t>(number));
      return true;
    }
    if (state == State::Offsets) {
      if (offsetCount == 2)
        return failTensor("has more than two data_offsets");
      offsets[offsetCount++] = number;
      return true;
    }
    return value(std::to_string(number));
  }

  bool string(std::string &text) override {
    if (state == State::Metadata) {
      meta[name] = std::move(text);
      return true;
    }
    if (state != State::Tensor || field != Field::DType)
      return value("the string " + quote(text, 40));
    std::optional<DType> dtype = dtypeFromString(text);
    if (!dtype)
      return failTensor("has dtype " + quote(text, 40) +
                        ", expected one of F64, F32, F16, BF16, F8_E4M3, F8_E8M0, I64, I32, I16, I8, U8, BOOL");
    info.dtype = *dtype;
    return true;
  }

  bool start_object(size_t) override {
    if (state == State::Start) {
      state = State::Top;
    } else if (state == State::Top && name == metadataKey) {
      state = State::Metadata;
    } else if (state == State::Top) {
      state = State::Tensor;
      info = TensorInfo();
      seen[0] = seen[1] = seen[2] = false;
      offsetCount = 0;
    } else {
      return value("an object");
    }
    return true;
  }

  bool key(std::string &text) override {
    if (state == State::Tensor) {
      field = text == "dtype" ? Field::DType : text == "shape" ? Field::Shape : Field::Offsets;
      if (field == Field::Offsets && text != "data_offsets")
        return failTensor("has the unknown field " + quote(text, 40) + ", expected dtype, shape and data_offsets");
      if (std::exchange(seen[static_cast<size_t>(field)], true))
        return failTensor("has " + text + " twice");
      return true;
    }
    name = std::move(text);
    if (state == State::Metadata)
      return meta.emplace(name, "").second || fail("metadata " + quote(name) + " is given twice");
    if (name == metadataKey)
      return !std::exchange(metadataSeen, true) || fail("__metadata__ is given twice");
    return !infos.contains(name) || failTensor("is given twice");
  }

  bool start_array(size_t) override {
    if (state != State::Tensor || field == Field::DType)
      return value("an array");
    state = field == Field::Shape ? State::Shape : State::Offsets;
    return true;
  }

  bool end_array() override {
    if (state == State::Offsets && offsetCount != 2)
      return failTensor("has " + std::to_string(offsetCount) + " data_offsets, expected two");
    state = State::Tensor;
    return true;
  }

  bool end_object() override {
    if (state == State::Tensor && !finishTensor())
      return false;
    state = state == State::Top ? State::End : State::Top;
    return true;
  }

private:
  enum class State { Start, Top, Metadata, Tensor, Shape, Offsets, End };
  enum class Field { DType, Shape, Offsets };

  bool failTensor(const std::string &reason) { return fail("tensor " + quote(name) + " " + reason); }

  /// A value where none, or another one, belongs.
  bool value(const std::string &found) {
    switch (state) {
    case State::Metadata:
      return fail("metadata " + quote(name) + " is " + found + ", expected a string");
    case State::Shape:
      return failTensor("has dimension " + found + ", expected an integer from 0 to 2^63 - 1");
    case State::Offsets:
      return failTensor("has data offset " + found + ", expected an integer from 0 to 2^64 - 1");
    case State::Tensor:
      if (field == Field::DType)
        return failTensor("has dtype " + found + ", expected a string");
      return failTensor(std::string("has ") + (field == Field::Shape ? "shape " : "data_offsets ") + found +
                        ", expected an array");
    case State::Top:
      if (name == metadataKey)
        return fail("__metadata__ is " + found + ", expected an object of strings");
      return failTensor("is " + found + ", expected an object");
    default:
      return fail("the header is " + found + ", expected an object");
    }
  }

  bool finishTensor() {
    static constexpr const char *names[] = {"dtype", "shape", "data_offsets"};
    for (size_t i = 0; i < 3; ++i)
      if (!seen[i])
        return failTensor(std::string("has no ") + names[i]);
    std::string type = std::string(toString(info.dtype)) + " " + shapeToString(info.shape);
    std::optional<uint64_t> bytes = bytesOf(info.dtype, info.shape);
    if (!bytes)
      return failTensor("is " + type + ", more bytes than a file can hold");
    std::string place = "[" + std::to_string(offsets[0]) + ", " + std::to_string(offsets[1]) + "]";
    if (offsets[0] > offsets[1] || offsets[1] > dataBytes)
      return failTensor("has data_offsets " + place + ", expected a range within the file's " +
                        std::to_string(dataBytes) + " bytes of data");
    if (offsets[1] - offsets[0] != *bytes)
      return failTensor("has data_offsets " + place + ", which is " + std::to_string(offsets[1] - offsets[0]) +
                        " bytes, expected " + std::to_string(*bytes) + " for " + type);
    info.begin = dataBegin + offsets[0];
    info.bytes = *bytes;
    infos.emplace(name, std::move(info));
    return true;
  }

  uint64_t dataBegin, dataBytes;
  std::map<std::string, TensorInfo> &infos;
  std::map<std::string, std::string> &meta;

  State state = State::Start;
  Field field = Field::DType;
  std::string name;
  TensorInfo info;
  uint64_t offsets[2] = {0, 0};
  size_t offsetCount = 0;
  bool seen[3] = {false, false, false};
  bool metadataSeen = false;
};

/// Tensors must tile `[begin, end)`: a hole or an overlap can hide data or
/// point two names at the same bytes.
Status checkTiling(const std::string &path, const std::map<std::string, TensorInfo> &infos, uint64_t begin,
                   uint64_t end) {
  std::vector<const std::pair<const std::string, TensorInfo> *> order;
  order.reserve(infos.size());
  for (const auto &entry : infos)
    order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](auto *a, auto *b) {
    return std::pair(a->second.begin, a->second.bytes) < std::pair(b->second.begin, b->second.bytes);
  });
  uint64_t at = begin;
  const std::string *before = nullptr;
  for (const auto *entry : order) {
    const TensorInfo &info = entry->second;
    if (info.begin < at)
      return Error{path + ": tensor " + quote(entry->first) + " starts at data offset " +
                   std::to_string(info.begin - begin) + " and overlaps tensor " + quote(*before) + ", which ends at " +
                   std::to_string(at - begin)};
    if (info.begin > at)
      return Error{path + ": tensor " + quote(entry->first) + " starts at data offset " +
                   std::to_string(info.begin - begin) + ", expected " + std::to_string(at - begin) +
                   ", where the tensors before it end"};
    at += info.bytes;
    before = &entry->first;
  }
  if (at != end)
    return Error{path + ": has " + std::to_string(end - begin) + " bytes of data, but its tensors cover " +
                 std::to_string(at - begin)};
  return success();
}

} // namespace

int64_t TensorInfo::elements() const {
  int64_t count = 1;
  for (int64_t size : shape)
    count *= size;
  return count;
}

Result<SafetensorsHeader> SafetensorsHeader::parse(std::string_view file, const std::string &path) {
  if (file.size() < lengthBytes)
    return Error{path + ": has " + std::to_string(file.size()) + " bytes, expected at least the 8 of a header length"};
  uint64_t headerBytes;
  std::memcpy(&headerBytes, file.data(), lengthBytes);
  if (headerBytes > maxBytes)
    return Error{path + ": says its header has " + std::to_string(headerBytes) + " bytes, expected at most " +
                 std::to_string(maxBytes)};
  if (headerBytes > file.size() - lengthBytes)
    return Error{path + ": says its header has " + std::to_string(headerBytes) + " bytes, but only " +
                 std::to_string(file.size() - lengthBytes) + " follow"};
  std::string_view json = file.substr(lengthBytes, headerBytes);
  // The format wants this very byte; JSON alone would allow blanks or a byte order mark before it.
  if (!json.starts_with('{'))
    return Error{path + ": its header starts with " + quote(json.substr(0, 8)) + ", expected '{'"};
  SafetensorsHeader header;
  uint64_t dataBegin = lengthBytes + headerBytes;
  HeaderReader reader(dataBegin, file.size() - dataBegin, header.tensors, header.metadata);
  MOEC_CHECK(saxParse(json, path, reader));
  MOEC_CHECK(checkTiling(path, header.tensors, dataBegin, file.size()));
  return header;
}

Result<SafetensorsFile> SafetensorsFile::open(const std::string &path) {
  SafetensorsFile result;
  MOEC_TRY(result.file, MappedFile::open(path));
  std::string_view bytes(reinterpret_cast<const char *>(result.file.data()), result.file.size());
  MOEC_TRY(result.header, SafetensorsHeader::parse(bytes, path));
  return result;
}

Result<SafetensorsWriter> SafetensorsWriter::create(const std::string &path, const std::vector<TensorSpec> &tensors,
                                                    const std::map<std::string, std::string> &metadata) {
  return open(path, tensors, metadata, std::nullopt);
}

Result<SafetensorsWriter> SafetensorsWriter::reopen(const std::string &path, const std::vector<TensorSpec> &tensors,
                                                    uint64_t keep) {
  return open(path, tensors, {}, keep);
}

Result<SafetensorsWriter> SafetensorsWriter::open(const std::string &path, const std::vector<TensorSpec> &tensors,
                                                  const std::map<std::string, std::string> &metadata,
                                                  std::optional<uint64_t> keep) {
  SafetensorsWriter writer;
  writer.path = path;
  // Not a Json tree: its keys are looked up one by one, and there may be 100,000.
  std::string header = "{";
  try {
    if (!metadata.empty())
      header += Json(metadataKey).dump() + ":" + Json(metadata).dump() + ",";
    uint64_t at = 0;
    for (const TensorSpec &spec : tensors) {
      std::string name = Json(spec.name).dump();
      std::optional<uint64_t> bytes = bytesOf(spec.dtype, spec.shape);
      if (spec.shape.size() > maxRank || !bytes || *bytes > std::numeric_limits<int64_t>::max() / 2 - at)
        return Error{path + ": tensor " + quote(spec.name) + " cannot be written as " +
                     std::string(toString(spec.dtype)) + " " + shapeToString(spec.shape)};
      TensorInfo info{spec.dtype, spec.shape, at, *bytes};
      if (spec.name == metadataKey || !writer.infos.emplace(spec.name, info).second)
        return Error{path + ": tensor " + quote(spec.name) + " cannot be written, its name is taken"};
      header += name + R"(:{"dtype":")" + std::string(toString(spec.dtype)) + R"(","shape":)" +
                Json(spec.shape).dump() + R"(,"data_offsets":[)" + std::to_string(at) + "," +
                std::to_string(at + *bytes) + "]},";
      at += *bytes;
    }
  } catch (const Json::exception &) {
    return Error{path + ": a tensor name or metadata entry is not UTF-8"};
  }
  if (header.back() == ',')
    header.pop_back();
  header += '}';
  header.resize((lengthBytes + header.size() + alignment - 1) / alignment * alignment - lengthBytes, ' ');
  uint64_t headerBytes = header.size();
  if (headerBytes > SafetensorsHeader::maxBytes)
    return Error{path + ": " + std::to_string(tensors.size()) + " tensors need a header of " +
                 std::to_string(headerBytes) + " bytes, more than readers accept"};

  uint64_t end = lengthBytes + headerBytes;
  for (auto &[name, info] : writer.infos) {
    info.begin += lengthBytes + headerBytes;
    end = std::max(end, info.begin + info.bytes);
  }
  writer.fileSize = end;
  MOEC_TRY(OutputFile file, keep ? OutputFile::reopen(path, *keep) : OutputFile::create(path));
  MOEC_CHECK(file.allocate(end));
  MOEC_CHECK(file.writeAt(0, &headerBytes, lengthBytes));
  MOEC_CHECK(file.writeAt(lengthBytes, header.data(), header.size()));
  writer.file = std::make_unique<OutputFile>(std::move(file));
  return writer;
}

Status SafetensorsWriter::write(const std::string &name, uint64_t offset, const void *data, uint64_t size) {
  auto it = infos.find(name);
  if (it == infos.end())
    return Error{path + ": has no tensor " + quote(name)};
  const TensorInfo &info = it->second;
  if (offset > info.bytes || size > info.bytes - offset)
    return Error{path + ": tensor " + quote(name) + " has " + std::to_string(info.bytes) + " bytes, but " +
                 std::to_string(size) + " are written at offset " + std::to_string(offset)};
  return file->writeAt(info.begin + offset, data, size);
}

Status SafetensorsWriter::finish() { return file->commit(); }

} // namespace moec
