// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Artifact.h"

#include "runtime/Hash.h"
#include "runtime/KernelAbi.h"
#include "runtime/Support/CacheCodes.h"
#include "runtime/Support/Text.h"

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>
#include <set>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace moec {

//===----------------------------------------------------------------------===//
// Grid expressions
//===----------------------------------------------------------------------===//

/// Values of an expression stay within this, so that sums of two cannot overflow.
static constexpr int64_t exprLimit = int64_t(1) << 62;

static int64_t floorDiv(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }
static int64_t ceilDiv(int64_t a, int64_t b) { return -floorDiv(-a, b); }

namespace {
struct Range {
  int64_t low, high;
};
} // namespace

static bool fits(__int128 value) { return value > -__int128(exprLimit) && value < __int128(exprLimit); }

Status GridExpr::append(const Json &json, int64_t maxTokens, const std::string &what, int depth) {
  if (depth > 16)
    return Error{what + " nests deeper than 16"};
  if (json.is_number_integer()) {
    // A number above 2^63 would come back negative.
    if (json.is_number_unsigned() && json.get<uint64_t>() >= uint64_t(exprLimit))
      return Error{what + " has the constant " + json.dump() + ", which is too large"};
    int64_t value = json.get<int64_t>();
    if (!fits(value))
      return Error{what + " has the constant " + json.dump() + ", which is too small"};
    steps.push_back({Op::Constant, value});
    low = high = value;
    return success();
  }
  if (json == "T") {
    steps.push_back({Op::T});
    low = 1, high = maxTokens;
    return success();
  }
  if (json == "R") {
    steps.push_back({Op::R});
    low = 0, high = maxTokens;
    return success();
  }
  if (!json.is_array() || json.size() != 3 || !json[0].is_string())
    return Error{what + " is " + json.dump().substr(0, 80) + ", expected an integer, \"T\", \"R\" or [op, a, b]"};
  const std::string &name = json[0].get_ref<const std::string &>();
  Op op;
  if (name == "+")
    op = Op::Add;
  else if (name == "*")
    op = Op::Mul;
  else if (name == "ceildiv")
    op = Op::CeilDiv;
  else if (name == "floordiv")
    op = Op::FloorDiv;
  else if (name == "mod")
    op = Op::Mod;
  else
    return Error{what + " has the operator '" + name + "', expected one of + * ceildiv floordiv mod"};
  MOEC_CHECK(append(json[1], maxTokens, what, depth + 1));
  Range a{low, high};
  MOEC_CHECK(append(json[2], maxTokens, what, depth + 1));
  Range b{low, high};
  steps.push_back({op});
  if (op == Op::Add || op == Op::Mul) {
    __int128 corners[4] = {a.low, a.low, a.high, a.high};
    const int64_t other[4] = {b.low, b.high, b.low, b.high};
    for (int i = 0; i < 4; ++i)
      corners[i] = op == Op::Add ? corners[i] + other[i] : corners[i] * other[i];
    auto [least, most] = std::minmax_element(corners, corners + 4);
    if (!fits(*least) || !fits(*most))
      return Error{what + " overflows for some step of up to " + std::to_string(maxTokens) + " tokens"};
    low = *least, high = *most;
    return success();
  }
  if (b.low < 1)
    return Error{what + " divides by a value that may be " + std::to_string(b.low) + ", expected at least 1"};
  auto divide = op == Op::CeilDiv ? ceilDiv : floorDiv;
  low = op == Op::Mod ? 0 : std::min(divide(a.low, b.low), divide(a.low, b.high));
  high = op == Op::Mod ? b.high - 1 : std::max(divide(a.high, b.low), divide(a.high, b.high));
  return success();
}

Result<GridExpr> GridExpr::parse(const Json &json, int64_t maxTokens, const std::string &what) {
  GridExpr expr;
  MOEC_CHECK(expr.append(json, maxTokens, what, 0));
  return expr;
}

int64_t GridExpr::evaluate(int64_t tokens, int64_t rows) const {
  int64_t stack[18]; // nesting of 16 needs 17
  int top = 0;
  for (const Step &step : steps) {
    switch (step.op) {
    case Op::Constant:
      stack[top++] = step.value;
      continue;
    case Op::T:
      stack[top++] = tokens;
      continue;
    case Op::R:
      stack[top++] = rows;
      continue;
    default:
      break;
    }
    int64_t b = stack[--top], &a = stack[top - 1];
    switch (step.op) {
    case Op::Add:
      a += b;
      break;
    case Op::Mul:
      a *= b;
      break;
    case Op::CeilDiv:
      a = ceilDiv(a, b);
      break;
    case Op::FloorDiv:
      a = floorDiv(a, b);
      break;
    default:
      a -= floorDiv(a, b) * b;
      break;
    }
  }
  assert(top == 1);
  return stack[0];
}

int64_t LaunchInfo::tasks(int64_t tokens, int64_t rows) const {
  int64_t least = grid.front().evaluate(tokens, rows);
  for (size_t i = 1; i < grid.size(); ++i)
    least = std::min(least, grid[i].evaluate(tokens, rows));
  return least;
}

//===----------------------------------------------------------------------===//
// Weights
//===----------------------------------------------------------------------===//

/// A read-only file mapping with zero bytes behind it, however near to a page's end the file ends.
class Artifact::Mapping {
public:
  static Result<std::shared_ptr<const Mapping>> open(const std::string &path, uint64_t bytes) {
    auto fail = [&](const std::string &doing) { return Error{path + ": " + doing + ": " + std::strerror(errno)}; };
    int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0)
      return fail("cannot open");
    struct Closer {
      int fd;
      ~Closer() { ::close(fd); }
    } closer{fd};
    struct stat info;
    if (::fstat(fd, &info) != 0)
      return fail("cannot stat");
    if (static_cast<uint64_t>(info.st_size) != bytes)
      return Error{path + ": has " + std::to_string(info.st_size) + " bytes, but had " + std::to_string(bytes) +
                   " a moment ago"};
    const uint64_t page = ::sysconf(_SC_PAGESIZE);
    auto result = std::make_shared<Mapping>();
    // Anonymous pages first, the file over all but the last of them, and from a huge page's border on: where the page
    // cache holds it in such, they are mapped whole, and reading it all for each token misses no TLB.
    uint64_t length = (bytes + page - 1) / page * page + page + hugePageBytes;
    void *memory = ::mmap(nullptr, length, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
      return fail("cannot map " + std::to_string(bytes) + " bytes");
    result->memory = memory;
    result->length = length;
    void *base = reinterpret_cast<void *>((reinterpret_cast<uintptr_t>(memory) + hugePageBytes - 1) / hugePageBytes *
                                          hugePageBytes);
    result->base = static_cast<std::byte *>(base);
    if (::mmap(base, bytes, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
      return fail("cannot map " + std::to_string(bytes) + " bytes");
    // A wish; an old kernel that refuses it maps small pages.
    ::madvise(base, bytes, MADV_HUGEPAGE);
    return std::shared_ptr<const Mapping>(std::move(result));
  }

  Mapping() = default;
  Mapping(const Mapping &) = delete;
  ~Mapping() {
    if (memory)
      ::munmap(memory, length);
  }

  std::byte *base = nullptr; ///< of the file
  void *memory = nullptr;    ///< all that is mapped
  uint64_t length = 0;
};

//===----------------------------------------------------------------------===//
// The manifest
//===----------------------------------------------------------------------===//

/// Bounds that no real model comes near and that keep products within 64 bits.
static constexpr int64_t maxBytes = int64_t(1) << 50;
static constexpr int64_t maxCount = int64_t(1) << 31;

static std::string at(const JsonObject &object, const std::string &key) { return object.what() + ": '" + key + "'"; }

/// An array of objects, each given to `read`.
template <typename Read> static Status forEachObject(const JsonObject &object, const std::string &key, Read read) {
  MOEC_TRY(const Json *array, object.array(key));
  for (size_t i = 0; i < array->size(); ++i) {
    MOEC_TRY(JsonObject element,
             JsonObject::from((*array)[i], object.what() + ": " + key + "[" + std::to_string(i) + "]"));
    MOEC_CHECK(read(element));
  }
  return success();
}

static Result<DType> readDType(const JsonObject &object) {
  MOEC_TRY(std::string name, object.string("dtype"));
  std::optional<DType> dtype = dtypeFromString(name);
  if (!dtype)
    return Error{at(object, "dtype") + " is '" + name + "', which is no element type"};
  return *dtype;
}

static Result<std::string> readHash(const JsonObject &object) {
  MOEC_TRY(std::string hash, object.string("xxh3"));
  if (hash.size() != 16 || hash.find_first_not_of("0123456789abcdef") != std::string::npos)
    return Error{at(object, "xxh3") + " is '" + hash + "', expected 16 lower-case hex digits"};
  return hash;
}

static Result<uint64_t> sizeOfFile(const std::string &path) {
  std::error_code error;
  uint64_t size = std::filesystem::file_size(path, error);
  if (error)
    return Error{path + ": " + error.message()};
  return size;
}

static Status checkSize(const std::string &path, uint64_t expected) {
  MOEC_TRY(uint64_t size, sizeOfFile(path));
  if (size != expected)
    return Error{path + ": has " + std::to_string(size) + " bytes, but the manifest says " + std::to_string(expected)};
  return success();
}

/// Inside the artifact only, links included.
Result<std::string> Artifact::resolve(const std::string &relative, const std::string &what) const {
  namespace fs = std::filesystem;
  fs::path path(relative);
  bool plain = !relative.empty() && path.is_relative() && relative.find('\0') == std::string::npos;
  for (const fs::path &part : path)
    plain = plain && part != ".." && part != "." && !part.empty();
  if (!plain)
    return Error{what + " is '" + relative + "', expected a path inside the artifact"};
  std::error_code error;
  fs::path root = fs::canonical(dir, error);
  if (error)
    return Error{dir + ": " + error.message()};
  fs::path file = fs::canonical(root / path, error);
  if (error)
    return Error{(fs::path(dir) / path).string() + ": " + error.message()};
  auto [end, rest] = std::mismatch(root.begin(), root.end(), file.begin(), file.end());
  if (end != root.end())
    return Error{what + " is '" + relative + "', a link to outside the artifact"};
  if (!fs::is_regular_file(file, error))
    return Error{file.string() + ": is not a regular file"};
  return file.string();
}

Status Artifact::readModel(const JsonObject &manifest) {
  MOEC_TRY(JsonObject model, manifest.object("model"));
  MOEC_TRY(modelInfo.type, model.string("type"));
  MOEC_TRY(modelInfo.name, model.string("name"));
  MOEC_TRY(modelInfo.vocab, model.integer("vocab", 1, 1 << 26));
  MOEC_TRY(modelInfo.hidden, model.integer("hidden", 1, 1 << 26));
  MOEC_TRY(modelInfo.layers, model.integer("layers", 0, 1 << 20));
  MOEC_TRY(modelInfo.maxContext, model.integer("max_context", 1, 1 << 30));
  MOEC_TRY(modelInfo.bos, model.integerOr("bos", 0, modelInfo.vocab - 1, -1));
  if (!model.has("eos"))
    return success();
  MOEC_TRY(const Json *eos, model.array("eos"));
  for (const Json &id : *eos) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() >= modelInfo.vocab)
      return Error{at(model, "eos") + " has " + id.dump() + ", expected ids below " + std::to_string(modelInfo.vocab)};
    modelInfo.eos.push_back(id.get<int64_t>());
  }
  return success();
}

Status Artifact::readCode(const JsonObject &manifest) {
  std::set<std::string> levels;
  MOEC_CHECK(forEachObject(manifest, "code", [&](const JsonObject &json) -> Status {
    CodeFile code;
    MOEC_TRY(code.level, json.string("level"));
    if (!levels.insert(code.level).second)
      return Error{at(json, "level") + " is '" + code.level + "' a second time"};
    MOEC_TRY(std::string file, json.string("file"));
    MOEC_TRY(code.path, resolve(file, at(json, "file")));
    MOEC_TRY(code.bytes, json.integer("bytes", 1, maxBytes));
    MOEC_TRY(code.xxh3, readHash(json));
    MOEC_CHECK(checkSize(code.path, code.bytes));
    MOEC_TRY(std::string hash, xxh3HexOfFile(code.path));
    if (hash != code.xxh3)
      return Error{code.path + ": has the hash " + hash + ", but the manifest says " + code.xxh3};
    codeFiles.push_back(std::move(code));
    return success();
  }));
  if (codeFiles.empty())
    return Error{at(manifest, "code") + " is empty"};
  return success();
}

Status Artifact::readWeights(const JsonObject &manifest) {
  return forEachObject(manifest, "weights", [&](const JsonObject &json) -> Status {
    WeightFile file;
    MOEC_TRY(std::string name, json.string("file"));
    MOEC_TRY(file.path, resolve(name, at(json, "file")));
    MOEC_TRY(file.bytes, json.integer("bytes", 1, maxBytes));
    MOEC_TRY(file.xxh3, readHash(json));
    MOEC_CHECK(checkSize(file.path, file.bytes));
    MOEC_TRY(SafetensorsFile tensors, SafetensorsFile::open(file.path));
    MOEC_TRY(std::shared_ptr<const Mapping> mapping, Mapping::open(file.path, file.bytes));
    for (const auto &[tensor, info] : tensors.tensors()) {
      if (!weightIndex.try_emplace(tensor, weightInfos.size()).second)
        return Error{file.path + ": '" + tensor + "' is also in another file of weights"};
      weightInfos.push_back({tensor, info, mapping->base + info.begin, {}});
    }
    mappings.push_back(std::move(mapping));
    weightFileInfos.push_back(std::move(file));
    return success();
  });
}

Status Artifact::readSources(const JsonObject &manifest) {
  if (!manifest.has("sources")) // artifacts of an earlier moec
    return success();
  MOEC_TRY(JsonObject sources, manifest.object("sources"));
  for (const auto &[weight, names] : sources.json().items()) {
    auto found = weightIndex.find(weight);
    if (found == weightIndex.end())
      return Error{sources.field(weight) + " is in no file of weights"};
    MOEC_TRY(const Json *list, sources.array(weight));
    for (const Json &name : *list) {
      if (!name.is_string())
        return Error{sources.field(weight) + " has " + describe(name) + ", expected names of tensors"};
      weightInfos[found->second].sources.push_back(name.get<std::string>());
    }
  }
  return success();
}

std::string_view toString(WorkUnit unit) {
  switch (unit) {
  case WorkUnit::F32:
    return "f32";
  case WorkUnit::BF16:
    return "bf16";
  case WorkUnit::Int8:
    return "int8";
  }
  return "?";
}

static Result<WorkInfo> readWork(const JsonObject &json) {
  constexpr int64_t most = int64_t(1) << 48;
  WorkInfo work;
  MOEC_TRY(const std::string unit, json.stringOr("unit", "f32"));
  const auto *known = std::ranges::find(workUnits, unit, [](WorkUnit unit) { return toString(unit); });
  if (known == std::end(workUnits))
    return Error{at(json, "unit") + " is " + quote(unit) + ", expected one of f32, bf16, int8"};
  work.unit = *known;
  if (json.has("flops")) {
    MOEC_TRY(JsonObject flops, json.object("flops"));
    MOEC_TRY(work.perToken, flops.integerOr("token", 0, most, 0));
    MOEC_TRY(work.perRow, flops.integerOr("row", 0, most, 0));
    MOEC_TRY(work.perPair, flops.integerOr("pair", 0, most, 0));
    MOEC_TRY(work.perEntry, flops.integerOr("entry", 0, most, 0));
    MOEC_TRY(work.perChoice, flops.integerOr("choice", 0, most, 0));
  }
  if (json.has("token_bytes")) {
    MOEC_TRY(work.tokenBytes, json.integer("token_bytes", 0, most));
  }
  if (json.has("experts")) {
    MOEC_TRY(JsonObject object, json.object("experts"));
    WorkInfo::Experts experts;
    MOEC_TRY(experts.count, object.integer("count", 1, maxCount));
    MOEC_TRY(experts.offsets, object.integer("offsets", 0, maxCount));
    MOEC_TRY(experts.active, object.integer("active", 0, maxCount));
    work.experts = experts;
  } else if (work.perChoice != 0) {
    return Error{json.what() + " has operations for each 'choice', but no 'experts'"};
  }
  return work;
}

Status Artifact::readKernels(const JsonObject &manifest) {
  return forEachObject(manifest, "kernels", [&](const JsonObject &json) -> Status {
    KernelInfo kernel;
    MOEC_TRY(kernel.symbol, json.string("symbol"));
    if (kernel.symbol.empty() || kernel.symbol.find('\0') != std::string::npos)
      return Error{at(json, "symbol") + " is '" + kernel.symbol + "', which is no symbol"};
    MOEC_TRY(kernel.kind, json.string("kind"));
    MOEC_TRY(JsonObject spec, json.object("spec"));
    kernel.spec = spec.json();
    if (json.has("work")) {
      MOEC_TRY(JsonObject work, json.object("work"));
      MOEC_TRY(kernel.work, readWork(work));
      worksKnown = true;
    }
    kernelInfos.push_back(std::move(kernel));
    return success();
  });
}

Status Artifact::readBuffers(const JsonObject &program) {
  return forEachObject(program, "buffers", [&](const JsonObject &json) -> Status {
    BufferInfo buffer;
    MOEC_TRY(buffer.name, json.string("name"));
    MOEC_TRY(buffer.dtype, readDType(json));
    MOEC_TRY(buffer.offset, json.integer("offset", 0, maxBytes));
    MOEC_TRY(buffer.bytes, json.integer("bytes", 0, maxBytes));
    MOEC_TRY(const Json *shape, json.array("shape"));
    __int128 needed = byteSize(buffer.dtype);
    for (const Json &dim : *shape) {
      MOEC_TRY(GridExpr expr, GridExpr::parse(dim, stepTokens, at(json, "shape")));
      if (expr.least() < 0)
        return Error{at(json, "shape") + " has the dimension " + dim.dump() + ", which may be negative"};
      // Interval bounds are an upper bound of every step's size, not only of the largest step's.
      needed *= expr.most();
      if (needed > maxBytes)
        return Error{at(json, "shape") + " is " + shape->dump() + ", which is too large"};
      buffer.shape.push_back(std::move(expr));
    }
    if (needed > buffer.bytes)
      return Error{at(json, "bytes") + " is " + std::to_string(buffer.bytes) + ", but shape " + shape->dump() + " of " +
                   std::string(toString(buffer.dtype)) + " takes up to " +
                   std::to_string(static_cast<int64_t>(needed)) + " at " + std::to_string(stepTokens) + " tokens"};
    if (buffer.offset + buffer.bytes > arena)
      return Error{json.what() + " ends at byte " + std::to_string(buffer.offset + buffer.bytes) +
                   ", but the arena has " + std::to_string(arena)};
    bufferInfos.push_back(std::move(buffer));
    return success();
  });
}

Result<ArgInfo> Artifact::readArg(const Json &json, const std::string &what) const {
  using Kind = ArgInfo::Kind;
  MOEC_TRY(JsonObject object, JsonObject::from(json, what));
  int kinds = 0;
  for (const char *key : {"input", "output", "weight", "cache", "buffer"})
    kinds += object.has(key);
  if (kinds != 1)
    return Error{what + " has " + std::to_string(kinds) +
                 " of 'input', 'output', 'weight', 'cache' and 'buffer', expected one"};
  ArgInfo arg;
  MOEC_TRY(arg.offset, object.integerOr("offset", 0, maxBytes, 0));
  uint64_t bytes = 1; // inputs and the output take no offset
  if (object.has("input")) {
    MOEC_TRY(std::string name, object.string("input"));
    static const std::map<std::string, Kind> inputs = {{"tokens", Kind::Tokens},
                                                       {"positions", Kind::Positions},
                                                       {"slots", Kind::Slots},
                                                       {"rows", Kind::Rows},
                                                       {"page_table", Kind::PageTable}};
    auto found = inputs.find(name);
    if (found == inputs.end())
      return Error{at(object, "input") + " is '" + name +
                   "', expected one of tokens, positions, slots, rows, page_table"};
    arg.kind = found->second;
  } else if (object.has("output")) {
    MOEC_TRY(std::string name, object.string("output"));
    if (name != "logits" && name != "argmax")
      return Error{at(object, "output") + " is '" + name + "', expected logits or argmax"};
    arg.kind = name == "logits" ? Kind::Logits : Kind::Argmax;
  } else if (object.has("weight")) {
    MOEC_TRY(std::string name, object.string("weight"));
    auto found = weightIndex.find(name);
    if (found == weightIndex.end())
      return Error{at(object, "weight") + " is '" + name + "', which is in no file of weights"};
    arg.kind = Kind::Weight;
    arg.index = found->second;
    bytes = weightInfos[arg.index].tensor.bytes;
  } else if (object.has("cache")) {
    MOEC_TRY(arg.index, object.integer("cache", 0, static_cast<int64_t>(cacheInfos.size()) - 1));
    arg.kind = Kind::Cache;
    bytes = cacheInfos[arg.index].width * byteSize(cacheInfos[arg.index].dtype);
  } else {
    MOEC_TRY(arg.index, object.integer("buffer", 0, static_cast<int64_t>(bufferInfos.size()) - 1));
    arg.kind = Kind::Buffer;
    bytes = bufferInfos[arg.index].bytes;
  }
  if (arg.offset != 0 && arg.offset >= bytes)
    return Error{at(object, "offset") + " is " + std::to_string(arg.offset) + ", expected less than " +
                 std::to_string(bytes)};
  return arg;
}

/// A tool that counts the experts of a launch reads them where its kernel's `work` says.
Status Artifact::checkExperts(const LaunchInfo &launch, const std::string &what) const {
  const KernelInfo &kernel = kernelInfos[launch.kernel];
  if (!kernel.work.experts)
    return success();
  const uint64_t needed = (kernel.work.experts->count + 1) * sizeof(int32_t);
  for (size_t position : {kernel.work.experts->offsets, kernel.work.experts->active}) {
    const ArgInfo *arg = position < launch.args.size() ? &launch.args[position] : nullptr;
    if (!arg || arg->kind != ArgInfo::Kind::Buffer || arg->offset % sizeof(int32_t) != 0 ||
        bufferInfos[arg->index].offset % sizeof(int32_t) != 0 || bufferInfos[arg->index].bytes - arg->offset < needed)
      return Error{what + " has as argument " + std::to_string(position) + " no buffer of " + std::to_string(needed) +
                   " bytes, where the work of its kernel " + quote(kernel.symbol) + " counts " +
                   std::to_string(kernel.work.experts->count) + " experts"};
  }
  return success();
}

Status Artifact::readLaunch(const JsonObject &json) {
  using Kind = ArgInfo::Kind;
  LaunchInfo launch;
  MOEC_TRY(launch.kernel, json.integer("kernel", 0, static_cast<int64_t>(kernelInfos.size()) - 1));
  MOEC_TRY(launch.label, json.stringOr("label", ""));
  MOEC_TRY(const Json *grid, json.array("grid"));
  if (grid->empty())
    return Error{at(json, "grid") + " is empty"};
  int64_t most = std::numeric_limits<int64_t>::max();
  for (const Json &expr : *grid) {
    MOEC_TRY(GridExpr parsed, GridExpr::parse(expr, stepTokens, at(json, "grid")));
    most = std::min(most, parsed.most());
    launch.grid.push_back(std::move(parsed));
  }
  if (most > maxCount)
    return Error{at(json, "grid") + " is " + grid->dump() + ", which may be " + std::to_string(most) +
                 " tasks, expected at most " + std::to_string(maxCount)};
  MOEC_TRY(const Json *args, json.array("args"));
  for (size_t i = 0; i < args->size(); ++i) {
    MOEC_TRY(ArgInfo arg, readArg((*args)[i], json.what() + ": args[" + std::to_string(i) + "]"));
    argmaxGiven = argmaxGiven || arg.kind == Kind::Argmax;
    launch.args.push_back(arg);
  }
  MOEC_TRY(const Json *writes, json.array("writes"));
  for (const Json &position : *writes) {
    if (!position.is_number_integer() || position.get<int64_t>() < 0 ||
        position.get<int64_t>() >= static_cast<int64_t>(launch.args.size()))
      return Error{at(json, "writes") + " has " + position.dump() + ", expected positions of the " +
                   std::to_string(launch.args.size()) + " arguments"};
    size_t index = position.get<size_t>();
    Kind kind = launch.args[index].kind;
    if (kind != Kind::Logits && kind != Kind::Argmax && kind != Kind::Cache && kind != Kind::Buffer)
      return Error{at(json, "writes") + " has " + position.dump() + ", but argument " + position.dump() +
                   " is read-only"};
    if (!launch.writes.empty() && launch.writes.back() >= index)
      return Error{at(json, "writes") + " is " + writes->dump() + ", expected ascending positions"};
    launch.writes.push_back(index);
  }
  if (json.has("run_from") && json.has("run_below"))
    return Error{json.what() + " has both 'run_from' and 'run_below'"};
  MOEC_TRY(launch.runFrom, json.integerOr("run_from", 1, maxCount, launch.runFrom));
  MOEC_TRY(launch.runBelow, json.integerOr("run_below", 1, maxCount, launch.runBelow));
  MOEC_CHECK(checkExperts(launch, json.what()));
  launchInfos.push_back(std::move(launch));
  return success();
}

Status Artifact::readProgram(const JsonObject &program) {
  MOEC_TRY(stepTokens, program.integer("max_tokens", 1, 1 << 24));
  MOEC_TRY(arena, program.integer("arena_bytes", 0, maxBytes));
  MOEC_CHECK(forEachObject(program, "caches", [&](const JsonObject &json) -> Status {
    CacheInfo cache;
    MOEC_TRY(cache.name, json.string("name"));
    MOEC_TRY(cache.dtype, readDType(json));
    MOEC_TRY(cache.width, json.integer("width", 1, 1 << 26));
    MOEC_TRY(cache.codes, json.stringOr("codes", ""));
    if (!cache.codes.empty() && cacheCodesFromString(cache.codes) == CacheCodes::None)
      return Error{at(json, "codes") + " is " + quote(cache.codes) + ", expected int8 or fp8"};
    if (cache.codes.empty() == (cache.dtype == DType::U8))
      return Error{at(json, "dtype") + " is " + std::string(toString(cache.dtype)) +
                   ", but entries in codes, and no others, are U8"};
    cache.pageBytes = cache.width * byteSize(cache.dtype) * MOE_PAGE_TOKENS;
    cacheInfos.push_back(std::move(cache));
    return success();
  }));
  MOEC_CHECK(readBuffers(program));
  return forEachObject(program, "launches", [&](const JsonObject &json) { return readLaunch(json); });
}

Result<Artifact> Artifact::open(const std::string &directory) {
  Artifact artifact;
  artifact.dir = directory;
  const std::string path = directory + "/manifest.json";
  std::error_code error;
  if (!std::filesystem::is_directory(directory, error))
    return Error{directory + ": is not a directory, expected an artifact made by moec compile"};
  if (!std::filesystem::exists(path, error))
    return Error{directory + ": holds no manifest.json, expected an artifact made by moec compile"};
  MOEC_TRY(Json json, readJsonFile(path, 256u << 20));
  MOEC_TRY(JsonObject manifest, JsonObject::from(json, path));
  MOEC_TRY(std::string format, manifest.string("format"));
  if (format != "moec-artifact")
    return Error{at(manifest, "format") + " is '" + format + "', expected 'moec-artifact'"};
  MOEC_TRY(int64_t fileVersion, manifest.integer("version", 0, std::numeric_limits<int64_t>::max()));
  if (fileVersion != version)
    return Error{path + ": has format version " + std::to_string(fileVersion) + ", but this runtime reads version " +
                 std::to_string(version) + "; compile the model again with the moec of this runtime"};
  MOEC_TRY(int64_t abi, manifest.integer("abi", 0, std::numeric_limits<int64_t>::max()));
  if (abi != MOE_ABI_VERSION)
    return Error{path + ": has code for kernel ABI " + std::to_string(abi) + ", but this runtime has ABI " +
                 std::to_string(MOE_ABI_VERSION) + "; compile the model again with the moec of this runtime"};
  MOEC_TRY(artifact.compilerName, manifest.stringOr("compiler", "unknown"));
  MOEC_TRY(artifact.targetName, manifest.string("target"));
  MOEC_CHECK(artifact.readModel(manifest));
  MOEC_TRY(JsonObject program, manifest.object("program"));
  MOEC_CHECK(artifact.readKernels(manifest));
  MOEC_CHECK(artifact.readCode(manifest));
  MOEC_CHECK(artifact.readWeights(manifest));
  MOEC_CHECK(artifact.readSources(manifest));
  MOEC_CHECK(artifact.readProgram(program));
  return artifact;
}

Status Artifact::verifyWeights() const {
  for (const WeightFile &file : weightFileInfos) {
    MOEC_TRY(std::string hash, xxh3HexOfFile(file.path));
    if (hash != file.xxh3)
      return Error{file.path + ": has the hash " + hash + ", but the manifest says " + file.xxh3};
  }
  return success();
}

int64_t Artifact::pagesPerSlot() const { return (modelInfo.maxContext + MOE_PAGE_TOKENS - 1) / MOE_PAGE_TOKENS; }

} // namespace moec
