// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Weights/Materialize.h"

#include "codegen/Weights/Block.h"
#include "codegen/Weights/Elements.h"
#include "codegen/Weights/Quantizer.h"
#include "dialects/Exec/ExecDialect.h"
#include "dialects/Formats/Int4.h"
#include "dialects/Moe/MoeDialect.h"
#include "dialects/Moe/Recipe.h"
#include "runtime/Support/Text.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/ScopeExit.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <mutex>
#include <span>
#include <thread>

using namespace moec;
namespace steps = mlir::moe;

Result<WeightJob> WeightJob::from(mlir::exec::WeightOp op) {
  WeightJob job;
  job.name = op.getSymName().str();
  for (mlir::Attribute source : op.getSources())
    job.sources.push_back(mlir::cast<mlir::StringAttr>(source).str());
  job.recipe = op.getRecipe();
  auto type = mlir::cast<mlir::MemRefType>(op.getType());
  MOEC_TRY(job.dtype, dtypeOf(type.getElementType()));
  job.shape = {type.getShape().begin(), type.getShape().end()};
  return job;
}

int64_t WeightJob::bytes() const {
  int64_t size = byteSize(dtype);
  for (int64_t dim : shape)
    size *= dim;
  return size;
}

namespace {

/// Columns handled at a time: a tile of 32 rows of f32 stays in a core's L1 and L2 caches.
constexpr int64_t tileCols = 512;
/// The same where four rows are quantized at a time.
constexpr int64_t int4TileCols = 2048;
/// Rows of an unpacked weight handled at a time.
constexpr int64_t plainRows = 32;
/// Output after which what has been made can be noted.
constexpr int64_t pieceBytes = 32 << 20;
constexpr auto progressInterval = std::chrono::milliseconds(100);

/// What a thread keeps from unit to unit.
struct Scratch {
  std::vector<std::byte> bytes; ///< the unit
  std::vector<float> lines;     ///< the values of a tile
  std::vector<uint8_t> codes;   ///< its codes and scales, where those are stored
  std::vector<uint16_t> scales;
};

/// One weight cut into units that are independent of each other: panels, or
/// groups of rows. Units are numbered in the order of the output.
class WeightWriter {
public:
  static Result<WeightWriter> open(const WeightJob &job, size_t number, const TensorSource &from,
                                   const MomentSource *moments) {
    MOEC_TRY(RecipeBlocks recipe, buildRecipe(job.sources, job.recipe, from, moments));
    WeightWriter writer(job, number, std::move(recipe));
    if (writer.recipe.quantize && !writer.recipe.hasCodes)
      for (const auto &parts : writer.recipe.parts) {
        auto &quantizers = writer.quantizers.emplace_back();
        for (const BlockPart &part : parts) {
          MOEC_TRY(auto quantizer, Quantizer::open(writer.recipe.quantize, part.name, writer.recipe.members,
                                                   part.appended, *part.block, moments));
          quantizers.push_back(std::move(quantizer));
        }
      }
    MOEC_CHECK(writer.checkShape());
    return writer;
  }

  int64_t units() const { return batch * unitsPerMatrix; }
  /// Bytes of the weight that the units before this one fill.
  int64_t begin(int64_t unit) const { return unit * unitBytes() - skipped(unit / unitsPerMatrix); }

  /// Bytes a thread holds while it makes a unit, sources included.
  int64_t memoryPerUnit() const {
    int64_t sourceRows = 0;
    for (const auto &block : recipe.blocks)
      sourceRows += unitRows * block->cols * byteSize(block->dtype);
    int64_t tile = packsInt4() ? kInt4Rows * int4TileColumns() : 2 * unitRows * (recipe.quantize ? cols : tileCols);
    int64_t shared = 0;
    for (const auto &ofBlock : quantizers)
      for (const auto &quantizer : ofBlock)
        shared += quantizer->sharedBytes();
    return unitBytes() + tile * static_cast<int64_t>(sizeof(float)) + sourceRows + shared;
  }

  Status make(int64_t unit, Scratch &scratch, WeightSink &out) const {
    int64_t matrix = unit / unitsPerMatrix, index = unit % unitsPerMatrix;
    std::vector<std::byte> &bytes = scratch.bytes;
    bytes.resize(unitBytes());
    if (auto pack = mlir::dyn_cast_or_null<steps::PackPanelsAttr>(recipe.pack)) {
      MOEC_CHECK(makePanel(matrix, index, /*rowsPerSource=*/1, pack.getColumns(), bytes));
    } else if (auto pack = mlir::dyn_cast_or_null<steps::PackBlockScalesAttr>(recipe.pack)) {
      MOEC_CHECK(makePanel(matrix, index, pack.getRows(), /*together=*/1, bytes));
    } else if (packsInt4()) {
      MOEC_CHECK(makeGroups(matrix, index, scratch));
    } else if (recipe.quantize) {
      MOEC_CHECK(makeCodes(matrix, index, bytes));
    } else {
      const Block &block = *recipe.blocks.front();
      int64_t row = index * plainRows, rows = std::min(plainRows, block.rows - row);
      MOEC_CHECK(makeRows(block, matrix, row, rows, bytes));
    }
    MOEC_CHECK(out.write(number, begin(unit), bytes.data(), begin(unit + 1) - begin(unit)));
    // Scales are small and shared by many panels: they are released with the whole weight.
    if (!mlir::isa_and_nonnull<steps::PackBlockScalesAttr>(recipe.pack)) {
      int64_t first = index * lanesPerBlock();
      for (const auto &block : recipe.blocks)
        block->release(matrix, first, std::min(lanesPerBlock(), block->rows - first));
      // A fault maps pages around it, which units of other threads released already.
      if (index == unitsPerMatrix - 1)
        for (const auto &block : recipe.blocks)
          for (int64_t done = std::max<int64_t>(0, matrix - 1); done <= matrix; ++done)
            block->release(done, 0, block->rows);
    }
    return success();
  }

private:
  WeightWriter(const WeightJob &job, size_t number, RecipeBlocks recipe)
      : job(job), number(number), recipe(std::move(recipe)) {}

  int64_t lanesPerBlock() const { return unitRows / static_cast<int64_t>(recipe.blocks.size()); }
  int64_t unitBytes() const {
    return recipe.quantize ? recipe.quantize.packedBytes(unitRows, cols) : unitRows * cols * byteSize(job.dtype);
  }
  /// Whether `Int4.h` makes the panels, or takes codes as they are.
  bool packsInt4() const {
    if (!recipe.quantize)
      return false;
    GroupFormat format = recipe.quantize.getFormat();
    return recipe.hasCodes || (format.codes == CodeKind::Int4 && format.scale != DType::F8E8M0 &&
                               recipe.quantize.getRounding() == steps::Rounding::Nearest);
  }
  /// Whole groups.
  int64_t int4TileColumns() const { return std::max(int4.group, int4TileCols / int4.group * int4.group); }
  /// Unpacked matrices end with a shorter unit: what those before `matrix` fell short of.
  int64_t skipped(int64_t matrix) const {
    if (recipe.pack)
      return 0;
    return matrix * (unitsPerMatrix * plainRows - recipe.blocks.front()->rows) * cols * byteSize(job.dtype);
  }

  /// The part that a row of a block is from, for messages.
  const BlockPart &partOf(size_t block, int64_t row) const {
    const std::vector<BlockPart> &parts = recipe.parts[block];
    return *std::prev(std::ranges::upper_bound(parts, row, {}, &BlockPart::row));
  }
  /// The first tensor that a row of a matrix is made from.
  std::string sourceOf(size_t block, int64_t matrix, int64_t row) const {
    const BlockPart &part = partOf(block, row);
    if (matrix >= part.appended.from)
      return part.appended.name;
    return steps::memberOf(part.name, recipe.members.empty() ? matrix : recipe.members[matrix]);
  }

  /// Scales that are packed beside their codes are used as they are: a hole in a file must not become zero weights.
  Status checkScales(size_t block, int64_t matrix, int64_t row, int64_t col, int64_t width,
                     std::span<const float> scales) const {
    for (size_t i = 0; i < scales.size(); ++i)
      if (!(scales[i] > 0) || !std::isfinite(scales[i])) {
        int64_t at = row + static_cast<int64_t>(i) / width;
        return Error{"tensor '" + sourceOf(block, matrix, at) + "' holds the scale " + numberText(scales[i]) + " at [" +
                     std::to_string(at - partOf(block, at).row) + ", " +
                     std::to_string(col + static_cast<int64_t>(i) % width) + "], expected a positive number"};
      }
    return success();
  }

  Error mismatch(const std::string &found) const {
    return Error{"weight '" + job.name + "': its recipe over '" + job.sources.front() + "' gives " + found +
                 ", but the program expects " + shapeToString(job.shape) + " " + std::string(toString(job.dtype))};
  }

  /// Settles the units and checks that the recipe makes what the program was compiled for.
  Status checkShape() {
    const Block &first = *recipe.blocks.front();
    std::string found = std::to_string(recipe.blocks.size()) + " tensor(s) of " +
                        shapeToString({first.batch, first.rows, first.cols}) + " " + std::string(toString(first.dtype));
    batch = first.batch;
    cols = first.cols;
    for (const auto &block : recipe.blocks)
      if (block->batch != first.batch || block->rows != first.rows || block->cols != first.cols ||
          (block->dtype != job.dtype && !recipe.quantize &&
           !mlir::isa_and_nonnull<steps::PackBlockScalesAttr>(recipe.pack)))
        return mismatch(found);
    std::vector<int64_t> shape;
    if (auto pack = mlir::dyn_cast_or_null<steps::PackPanelsAttr>(recipe.pack)) {
      setPanels(pack.getWidth(), first.rows);
      shape = {batch, unitsPerMatrix, cols, unitRows};
    } else if (auto pack = mlir::dyn_cast_or_null<steps::PackBlockScalesAttr>(recipe.pack)) {
      if (first.rows != (pack.getN() + pack.getRows() - 1) / pack.getRows())
        return mismatch(found);
      setPanels(pack.getWidth(), pack.getN());
      shape = {batch, unitsPerMatrix, cols, unitRows};
    } else if (auto pack = mlir::dyn_cast_or_null<steps::PackGroupsAttr>(recipe.pack)) {
      MOEC_TRY(DType scale, dtypeOf(recipe.quantize.getScale()));
      setPanels(pack.getWidth(), first.rows);
      int4 = {unitRows, recipe.quantize.getGroup(), scale};
      if (packsInt4() && lanesPerBlock() % kInt4Rows != 0)
        return Error{"weight '" + job.name + "': panels of " + std::to_string(lanesPerBlock()) +
                     " lanes of a tensor are no multiple of " + std::to_string(kInt4Rows)};
      shape = {batch, unitsPerMatrix, unitBytes()};
    } else {
      if (recipe.blocks.size() != 1)
        return mismatch(found);
      unitRows = plainRows;
      unitsPerMatrix = (first.rows + plainRows - 1) / plainRows;
      shape = {cols};
      if (first.rank > 1)
        shape.insert(shape.begin(), first.rows);
      if (first.rank > 2)
        shape.insert(shape.begin(), batch);
    }
    if (shape != job.shape)
      return mismatch(found);
    return success();
  }

  void setPanels(int64_t width, int64_t rows) {
    unitRows = width;
    outputRows = rows;
    unitsPerMatrix = (rows + lanesPerBlock() - 1) / lanesPerBlock();
  }

  /// Panel `index`: lane l of column c holds row `first + l` of the block it belongs to; `together` columns of a lane
  /// lie side by side. `rowsPerSource` rows of the weight share one row of the block (block scales).
  Status makePanel(int64_t matrix, int64_t index, int64_t rowsPerSource, int64_t together,
                   std::vector<std::byte> &bytes) const {
    int64_t lanes = lanesPerBlock(), first = index * lanes, size = byteSize(job.dtype);
    int64_t present = std::min(lanes, outputRows - first);
    int64_t row = first / rowsPerSource, rows = (first + present - 1) / rowsPerSource + 1 - row;
    together = std::min(together, cols);
    const int64_t tile = std::max(together, tileCols / together * together);
    std::vector<float> lines(rows * tile), panel(unitRows * tile, 0.0f);
    for (int64_t col = 0; col < cols; col += tile) {
      int64_t width = std::min(tile, cols - col);
      // Where fewer columns than `together` are left, absent rows lie elsewhere than before.
      std::fill_n(panel.begin() + width / together * together * unitRows, width % together * unitRows, 0.0f);
      for (size_t b = 0; b < recipe.blocks.size(); ++b) {
        MOEC_CHECK(recipe.blocks[b]->read({matrix, row, rows, col, width}, lines.data()));
        if (mlir::isa<steps::PackBlockScalesAttr>(recipe.pack))
          MOEC_CHECK(checkScales(b, matrix, row, col, width, std::span(lines.data(), rows * width)));
        for (int64_t lane = 0; lane < present; ++lane) {
          const float *line = &lines[((first + lane) / rowsPerSource - row) * width];
          auto place = [&](int64_t c, int64_t count) {
            std::copy_n(line + c, count, &panel[c * unitRows + (b * lanes + lane) * count]);
          };
          int64_t c = 0;
          if (together == 1) // of the usual numbers each place is one move
            for (; c < width; ++c)
              place(c, 1);
          if (together == 2)
            for (; c + 2 <= width; c += 2)
              place(c, 2);
          for (; c < width; c += together)
            place(c, std::min(together, width - c));
        }
      }
      narrow(job.dtype, panel.data(), &bytes[col * unitRows * size], width * unitRows);
    }
    return success();
  }

  /// Panel `index` of codes and scales, four rows at a time, each from its beginning to its end: that is how memory
  /// likes to be read.
  Status makeGroups(int64_t matrix, int64_t index, Scratch &scratch) const {
    const int64_t lanes = lanesPerBlock(), tile = int4TileColumns();
    scratch.lines.resize(kInt4Rows * tile);
    for (size_t b = 0; b < recipe.blocks.size(); ++b)
      for (int64_t lane = 0; lane < lanes; lane += kInt4Rows) {
        int64_t row = index * lanes + lane, present = std::clamp<int64_t>(outputRows - row, 0, kInt4Rows);
        for (int64_t col = 0; col < cols; col += tile)
          MOEC_CHECK(makeTile(b, {matrix, row, present, col, std::min(tile, cols - col)}, b * lanes + lane, scratch));
      }
    return success();
  }

  /// Panel `index` of codes and scales of any format, by whole rows.
  Status makeCodes(int64_t matrix, int64_t index, std::vector<std::byte> &bytes) const {
    const int64_t lanes = lanesPerBlock();
    for (size_t b = 0; b < recipe.blocks.size(); ++b) {
      int64_t row = index * lanes, present = std::clamp<int64_t>(outputRows - row, 0, lanes);
      std::vector<RowCodes> rows(present);
      for (auto [part, quantizer] : llvm::zip_equal(recipe.parts[b], quantizers[b])) {
        int64_t first = std::max(row, part.row), end = std::min(row + present, part.row + part.block->rows);
        if (first < end)
          MOEC_CHECK(quantizer->quantize(matrix, first - part.row, end - first, &rows[first - row]));
      }
      const Quantizer &last = *quantizers[b].back();
      if (present < lanes) {
        MOEC_TRY(RowCodes zeros, last.zeros(matrix));
        rows.resize(lanes, zeros);
      }
      for (int64_t lane = 0; lane < lanes; ++lane)
        placeRow(last.format(), rows[lane], unitRows, static_cast<int64_t>(b) * lanes + lane, bytes.data());
    }
    return success();
  }

  /// Puts a tile of at most four rows into lanes `lane` .. of a panel.
  Status makeTile(size_t b, const Rect &rect, int64_t lane, Scratch &scratch) const {
    const Block &block = *recipe.blocks[b];
    if (recipe.hasCodes)
      return packCodes(block, rect, lane, scratch);
    std::byte *groups = &scratch.bytes[rect.col / int4.group * int4.groupBytes()];
    StoredRows stored;
    if (rect.rows == kInt4Rows && block.storedRows(rect, stored) && canPackInt4(int4, stored)) {
      // Next are the columns after these, or the rows after them.
      int64_t end = rect.col + rect.cols;
      bool rowsEnd = end == cols, last = rowsEnd && rect.row + 2 * kInt4Rows > outputRows;
      int64_t rowsOn = rowsEnd ? kInt4Rows : 0, colsOn = rowsEnd ? -rect.col : rect.cols;
      const std::byte *next = stored.data + rowsOn * stored.stride + colsOn * byteSize(stored.type);
      if (packInt4(int4, stored, rect.cols, lane, groups, last ? nullptr : next))
        return success();
    }
    std::vector<float> &lines = scratch.lines;
    std::fill(lines.begin() + rect.rows * rect.cols, lines.end(), 0.0f);
    for (int64_t r = 0; r < rect.rows; ++r)
      MOEC_CHECK(block.read({rect.batch, rect.row + r, 1, rect.col, rect.cols}, &lines[r * rect.cols]));
    if (!packInt4(int4, StoredRows::of(lines.data(), rect.cols), rect.cols, lane, groups))
      return scaleError(sourceOf(b, rect.batch, rect.row), int4.scale, lines.data(), kInt4Rows * rect.cols);
    return success();
  }

  /// Puts codes that are stored as such into lanes `lane` .. of a panel; those of absent rows stand for 0.
  Status packCodes(const Block &block, const Rect &rect, int64_t lane, Scratch &scratch) const {
    scratch.codes.assign(kInt4Rows * rect.cols, 8);
    scratch.scales.assign(kInt4Rows * rect.cols / int4.group, 0);
    if (rect.rows > 0)
      MOEC_CHECK(block.readCodes(rect, scratch.codes.data(), scratch.scales.data()));
    placeInt4(int4, scratch.codes.data(), scratch.scales.data(), rect.cols, lane,
              &scratch.bytes[rect.col / int4.group * int4.groupBytes()]);
    return success();
  }

  Status makeRows(const Block &block, int64_t matrix, int64_t row, int64_t rows, std::vector<std::byte> &bytes) const {
    std::vector<float> line(tileCols);
    int64_t size = byteSize(job.dtype);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t col = 0; col < cols; col += tileCols) {
        int64_t width = std::min(tileCols, cols - col);
        MOEC_CHECK(block.read({matrix, row + r, 1, col, width}, line.data()));
        narrow(job.dtype, line.data(), &bytes[(r * cols + col) * size], width);
      }
    return success();
  }

  const WeightJob &job;
  size_t number; ///< of the job, and of the weight in the files
  RecipeBlocks recipe;
  int64_t batch = 1, cols = 1;
  int64_t unitRows = plainRows; ///< output rows (lanes) of a unit
  int64_t unitsPerMatrix = 1;
  int64_t outputRows = 0; ///< rows of each packed matrix before padding to whole panels
  Int4Panel int4;         ///< where `packsInt4`
  /// Of the parts of each block, where values are quantized.
  std::vector<std::vector<std::unique_ptr<Quantizer>>> quantizers;
};

/// What the threads share.
struct Work {
  std::mutex mutex;
  std::atomic<bool> failed = false;
  Error error;
  std::atomic<uint64_t> done = 0;
  uint64_t total = 0;

  void fail(Error reason) {
    std::lock_guard lock(mutex);
    if (!failed.exchange(true))
      error = std::move(reason);
  }
};

} // namespace

Status moec::materialize(const std::vector<WeightJob> &jobs, const TensorSource &from, WeightSink &out,
                         const MaterializeOptions &options) {
  Work work;
  for (size_t number = 0; number < jobs.size(); ++number) {
    work.total += jobs[number].bytes();
    work.done += out.present(number);
  }
  auto shown = std::chrono::steady_clock::now();
  for (size_t number = 0; number < jobs.size(); ++number) {
    const WeightJob &job = jobs[number];
    auto present = static_cast<int64_t>(out.present(number));
    if (job.bytes() == present)
      continue; // empty ones too, which have no units
    MOEC_TRY(WeightWriter writer, WeightWriter::open(job, number, from, options.moments));
    uint64_t perThread = std::max<int64_t>(1, writer.memoryPerUnit());
    if (perThread > options.maxMemory)
      return Error{"weight '" + job.name + "' needs tiles of " + std::to_string(perThread >> 20) +
                   " MiB, but --max-memory allows " + std::to_string(options.maxMemory >> 20) + " MiB"};
    int64_t made = 0; // units from the first one on
    while (made < writer.units() && writer.begin(made + 1) <= present)
      ++made;
    work.done -= present - writer.begin(made); // half a unit is made again
    std::vector<bool> isMade(writer.units());
    int64_t noted = writer.begin(made);
    auto note = [&](int64_t unit) -> Status {
      std::lock_guard lock(work.mutex);
      isMade[unit] = true;
      while (made < writer.units() && isMade[made])
        ++made;
      if (made < writer.units() && writer.begin(made) - noted < pieceBytes)
        return success();
      noted = writer.begin(made);
      return out.advance(number, noted);
    };
    std::atomic<int64_t> next = made;
    auto run = [&](bool shows) {
      Scratch scratch;
      for (int64_t unit; !work.failed && (unit = next++) < writer.units();) {
        Status status = writer.make(unit, scratch, out);
        if (status.ok())
          status = note(unit);
        if (!status.ok())
          work.fail(status.takeError());
        work.done += writer.begin(unit + 1) - writer.begin(unit);
        auto now = std::chrono::steady_clock::now();
        if (shows && options.progress && now - shown >= progressInterval) {
          shown = now;
          options.progress(work.done, work.total, job.name);
        }
      }
    };
    uint64_t fitting = options.maxMemory / perThread;
    auto count = static_cast<unsigned>(
        std::min<uint64_t>({std::max(1u, options.threads), fitting, static_cast<uint64_t>(writer.units())}));
    {
      std::vector<std::jthread> threads;
      // When `progress` throws, the others end with what they are at.
      llvm::scope_exit stop([&] { next = writer.units(); });
      for (unsigned i = 1; i < count; ++i)
        threads.emplace_back(run, /*shows=*/false);
      run(/*shows=*/true);
    }
    if (work.failed)
      return std::move(work.error);
    // Sources that no unit could release alone (transposed ones, scales).
    for (const std::string &source : job.sources)
      if (!steps::isFamily(source))
        if (auto view = from.tensor(source); view.ok())
          from.release(*view);
    if (options.progress)
      options.progress(work.done, work.total, job.name);
  }
  return success();
}
