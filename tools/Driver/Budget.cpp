// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "tools/Driver/Budget.h"

#include "codegen/Weights/Block.h"
#include "codegen/Weights/Materialize.h"
#include "codegen/Weights/Quantizer.h"
#include "dialects/Exec/ExecDialect.h"
#include "dialects/Moe/Recipe.h"
#include "passes/Moe/WeightFormat.h"
#include "runtime/ChunkReader.h"
#include "runtime/Sampler.h"
#include "runtime/Support/Table.h"
#include "runtime/Support/Text.h"
#include "tools/Driver/Text.h"

#include "llvm/ADT/STLExtras.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <span>

using namespace moec;
using mlir::moe::ExpertsOp;
using mlir::moe::WeightFormat;
using mlir::moe::WeightOp;

namespace {

/// Inputs that an expert's error is measured on.
constexpr int64_t samples = 64;

/// A format that one projection of one expert could have.
struct Choice {
  size_t format = 0;
  uint64_t bytes = 0;
  double noise = 0;
};

/// One projection of one expert (gate and up count as one), and what it could be.
struct Item {
  int64_t expert = 0;
  bool isDown = false;
  std::vector<Choice> hull; ///< of the choices, by rising bytes: each step avoids less noise for a byte than the last
  size_t chosen = 0;
};

struct Layer {
  std::string name;
  std::array<std::string, 3> sources; ///< gate, up, down: families
  std::vector<std::string> tensors;   ///< these and what belongs to them: scales
  double sensitivity = 0, tipping = 0;
  std::vector<Item> items;

  double cost(double noise) const { return sensitivity * noise + tipping * std::sqrt(noise); }
};

/// Keeps what a line over (bytes, value) may stop at: the lower convex hull. Points come by rising bytes.
template <typename Point, typename Value> std::vector<Point> lowerHull(const std::vector<Point> &points, Value value) {
  std::vector<Point> hull;
  auto slope = [&](const Point &a, const Point &b) {
    return (value(b) - value(a)) / (static_cast<double>(b.bytes) - static_cast<double>(a.bytes));
  };
  for (const Point &point : points) {
    if (!hull.empty() && (value(point) >= value(hull.back()) || point.bytes == hull.back().bytes)) {
      if (value(point) >= value(hull.back()))
        continue;
      hull.pop_back();
    }
    while (hull.size() > 1 && slope(hull[hull.size() - 2], hull.back()) >= slope(hull.back(), point))
      hull.pop_back();
    hull.push_back(point);
  }
  return hull;
}

/// y[t, :] = W x[t, :], in f32.
void multiply(const std::vector<float> &weight, const std::vector<float> &x, int64_t rows, int64_t cols,
              std::vector<float> &y) {
  int64_t count = static_cast<int64_t>(x.size()) / cols;
  y.assign(count * rows, 0.0f);
  for (int64_t t = 0; t < count; ++t)
    for (int64_t r = 0; r < rows; ++r) {
      const float *w = &weight[r * cols], *in = &x[t * cols];
      float sums[8] = {};
      int64_t c = 0;
      for (; c + 8 <= cols; c += 8)
        for (int64_t i = 0; i < 8; ++i)
          sums[i] += w[c + i] * in[c + i];
      for (; c < cols; ++c)
        sums[0] += w[c] * in[c];
      y[t * rows + r] = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
    }
}

std::vector<float> swiglu(const std::vector<float> &gate, const std::vector<float> &up) {
  std::vector<float> h(gate.size());
  for (size_t i = 0; i < h.size(); ++i)
    h[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
  return h;
}

/// One family of expert weights before it is quantized.
class Family {
public:
  static Result<Family> open(WeightOp weight, const TensorSource &from) {
    Family family;
    for (mlir::Attribute source : weight.getSources())
      family.names.push_back(mlir::cast<mlir::StringAttr>(source).str());
    if (!weight.getRecipe().empty())
      family.stored = mlir::dyn_cast<mlir::moe::DequantAttr>(weight.getRecipe()[0]);
    MOEC_TRY(family.recipe, buildRecipe(family.names, weight.getRecipe(), from, /*moments=*/nullptr));
    return family;
  }
  const Block &block() const { return *recipe.blocks.front(); }
  const std::string &name() const { return names.front(); }
  /// All that the family is made from.
  const std::vector<std::string> &sources() const { return names; }
  Result<std::vector<float>> values(int64_t expert) const {
    std::vector<float> all(block().rows * block().cols);
    MOEC_CHECK(block().read({expert, 0, block().rows, 0, block().cols}, all.data()));
    return all;
  }
  /// What codes of `step` stand for.
  Result<std::vector<float>> rounded(mlir::moe::QuantizeAttr step, int64_t expert,
                                     const Calibration &calibration) const {
    MOEC_TRY(auto quantizer, Quantizer::open(step, name(), /*members=*/{}, /*appended=*/{}, block(), &calibration));
    std::vector<float> all(block().rows * block().cols);
    constexpr int64_t height = 16;
    std::vector<RowCodes> codes(height);
    for (int64_t row = 0; row < block().rows; row += height) {
      int64_t count = std::min(height, block().rows - row);
      MOEC_CHECK(quantizer->quantize(expert, row, count, codes.data()));
      for (int64_t r = 0; r < count; ++r)
        rowValues(quantizer->format(), codes[r], std::span(&all[(row + r) * block().cols], block().cols));
    }
    return all;
  }

  /// Bytes of `rows` rows of a member in panels, quantized by `step`, or as they are kept if it is null.
  uint64_t packedBytes(int64_t rows, mlir::Attribute step) const {
    const int64_t cols = block().cols, panels = (rows + kPanelWidth - 1) / kPanelWidth;
    auto quantize = mlir::dyn_cast_or_null<mlir::moe::QuantizeAttr>(step);
    if (!quantize && stored)
      quantize = stored.getInt4Groups();
    if (quantize)
      return panels * quantize.packedBytes(kPanelWidth, cols);
    if (stored && stored.getFormat() == mlir::moe::StoredFormat::Fp8 && stored.getRows() > 0 && stored.getCols() > 0) {
      int64_t scales = (cols + stored.getCols() - 1) / stored.getCols();
      return panels * kPanelWidth * (cols + scales * static_cast<int64_t>(sizeof(float)));
    }
    return panels * kPanelWidth * cols * byteSize(block().dtype);
  }

private:
  std::vector<std::string> names;
  mlir::moe::DequantAttr stored; ///< how the checkpoint has it, if it is quantized there
  RecipeBlocks recipe;
};

/// What experts of one layer cost in each format.
class LayerMeasure {
public:
  LayerMeasure(const BudgetOptions &options, mlir::MLIRContext *context, const Calibration &calibration)
      : options(options), context(context), calibration(calibration) {}

  Result<Layer> measure(ExpertsOp op, const TensorSource &from) {
    std::vector<Family> families;
    for (mlir::Value tensor : {op.getGate(), op.getUp(), op.getDown()}) {
      MOEC_TRY(Family family, Family::open(tensor.getDefiningOp<WeightOp>(), from));
      families.push_back(std::move(family));
    }
    Layer layer;
    layer.name = families[0].name().substr(0, families[0].name().find(".{e}"));
    for (size_t i = 0; i < families.size(); ++i) {
      layer.sources[i] = families[i].name();
      llvm::append_range(layer.tensors, families[i].sources());
      MOEC_CHECK(calibration.check(families[i].name(), families[i].block().cols));
    }
    const CalibrationInput &inputs = *calibration.find(families[0].name());
    if (!inputs.routing || !inputs.routing->sensitivity || !inputs.routing->tipping)
      return Error{calibration.path() + " does not say what errors in " + layer.name +
                   " cost; make it without --no-sensitivity"};
    layer.sensitivity = *inputs.routing->sensitivity;
    layer.tipping = *inputs.routing->tipping;
    for (int64_t expert = 0; expert < families[0].block().batch; ++expert) {
      MOEC_CHECK(measureExpert(families, inputs, expert, layer));
      for (const Family &family : families)
        family.block().release(expert, 0, family.block().rows);
    }
    return layer;
  }

private:
  Status measureExpert(const std::vector<Family> &families, const CalibrationInput &inputs, int64_t expert,
                       Layer &layer) {
    std::vector<int64_t> choices, rows = inputs.rowsOf(expert, &choices);
    if (rows.empty())
      return Error{calibration.path() + " never saw expert " + std::to_string(expert) + " of " + layer.name +
                   ": it needs a longer text"};
    // Evenly spread over the text.
    auto count = std::min<int64_t>(samples, static_cast<int64_t>(rows.size()));
    std::vector<float> x(count * inputs.width), scale(count);
    for (int64_t i = 0; i < count; ++i) {
      size_t at = i * rows.size() / count;
      MOEC_CHECK(calibration.read(inputs, rows[at], 1, &x[i * inputs.width]));
      scale[i] = inputs.routing->weights[choices[at]];
    }
    double perToken =
        static_cast<double>(rows.size()) / static_cast<double>(count) / static_cast<double>(calibration.tokens());

    const Block &gate = families[0].block(), &down = families[2].block();
    std::array<std::vector<float>, 3> exact;
    for (size_t i = 0; i < 3; ++i) {
      MOEC_TRY(exact[i], families[i].values(expert));
    }
    std::vector<float> g, u, y, other;
    multiply(exact[0], x, gate.rows, gate.cols, g);
    multiply(exact[1], x, gate.rows, gate.cols, u);
    std::vector<float> hidden = swiglu(g, u);
    multiply(exact[2], hidden, down.rows, down.cols, y);
    auto noiseOf = [&](const std::vector<float> &output) {
      double sum = 0;
      for (int64_t t = 0; t < count; ++t)
        for (int64_t d = 0; d < down.rows; ++d) {
          double error = static_cast<double>(scale[t]) * (output[t * down.rows + d] - y[t * down.rows + d]);
          sum += error * error;
        }
      return sum * perToken;
    };

    std::optional<mlir::moe::Rounding> rounding = mlir::moe::symbolizeRounding(options.compile.rounding);
    std::vector<Choice> gateUp, downs;
    for (size_t f = 0; f < options.formats.size(); ++f) {
      MOEC_TRY(WeightFormat format, WeightFormat::parse(options.formats[f]));
      mlir::Attribute first = format.isKeep() ? nullptr : format.step(context, gate.cols, *rounding);
      mlir::Attribute second = format.isKeep() ? nullptr : format.step(context, down.cols, *rounding);
      auto fits = [&](mlir::Attribute step, int64_t cols) {
        auto quantize = mlir::dyn_cast_or_null<mlir::moe::QuantizeAttr>(step);
        return !step || (quantize && quantize.divides(cols));
      };
      if (fits(first, gate.cols)) {
        Choice choice{f, families[0].packedBytes(2 * gate.rows, first), 0};
        if (auto step = mlir::dyn_cast_or_null<mlir::moe::QuantizeAttr>(first)) {
          MOEC_TRY(std::vector<float> roundedGate, families[0].rounded(step, expert, calibration));
          MOEC_TRY(std::vector<float> roundedUp, families[1].rounded(step, expert, calibration));
          multiply(roundedGate, x, gate.rows, gate.cols, g);
          multiply(roundedUp, x, gate.rows, gate.cols, u);
          multiply(exact[2], swiglu(g, u), down.rows, down.cols, other);
          choice.noise = noiseOf(other);
        }
        gateUp.push_back(choice);
      }
      if (fits(second, down.cols)) {
        Choice choice{f, families[2].packedBytes(down.rows, second), 0};
        if (auto step = mlir::dyn_cast_or_null<mlir::moe::QuantizeAttr>(second)) {
          MOEC_TRY(std::vector<float> roundedDown, families[2].rounded(step, expert, calibration));
          multiply(roundedDown, hidden, down.rows, down.cols, other);
          choice.noise = noiseOf(other);
        }
        downs.push_back(choice);
      }
    }
    for (auto *choices : {&gateUp, &downs}) {
      llvm::stable_sort(*choices, [](const Choice &a, const Choice &b) { return a.bytes < b.bytes; });
      layer.items.push_back({expert, choices == &downs, lowerHull(*choices, [](const Choice &c) { return c.noise; })});
    }
    return success();
  }

  const BudgetOptions &options;
  mlir::MLIRContext *context;
  const Calibration &calibration;
};

/// A layer on its way from the smallest formats to the most exact ones: after how many steps which bytes and cost.
struct Path {
  struct Stop {
    uint64_t bytes;
    double cost;
    size_t steps; ///< taken until here
  };
  std::vector<size_t> steps; ///< items, each of which takes its next choice, the best one first
  std::vector<Stop> stops;   ///< those that a whole way may end at, and the first one
};

Path pathOf(const Layer &layer) {
  struct Move {
    size_t item, to;
    double gain;
  };
  std::vector<Move> moves;
  uint64_t bytes = 0;
  double noise = 0;
  for (size_t i = 0; i < layer.items.size(); ++i) {
    const std::vector<Choice> &hull = layer.items[i].hull;
    bytes += hull[0].bytes;
    noise += hull[0].noise;
    for (size_t to = 1; to < hull.size(); ++to)
      moves.push_back(
          {i, to, (hull[to - 1].noise - hull[to].noise) / static_cast<double>(hull[to].bytes - hull[to - 1].bytes)});
  }
  // Hulls are convex, so that the moves of an item keep their order.
  llvm::stable_sort(moves, [](const Move &a, const Move &b) { return a.gain > b.gain; });
  Path path;
  std::vector<Path::Stop> all = {{bytes, layer.cost(noise), 0}};
  for (const Move &move : moves) {
    const std::vector<Choice> &hull = layer.items[move.item].hull;
    bytes += hull[move.to].bytes - hull[move.to - 1].bytes;
    noise = std::max(0.0, noise - (hull[move.to - 1].noise - hull[move.to].noise));
    path.steps.push_back(move.item);
    all.push_back({bytes, layer.cost(noise), path.steps.size()});
  }
  path.stops = lowerHull(all, [](const Path::Stop &stop) { return stop.cost; });
  return path;
}

/// Weights that are no routed experts', shared ones included: what lowering with these options gives, less those.
Result<uint64_t> bytesBeside(const BudgetOptions &options, const std::vector<Layer> &layers) {
  CompileOptions compile = options.compile;
  compile.experts = "keep";
  MOEC_TRY(auto compilation, Compilation::open(compile));
  MOEC_CHECK(compilation->optimize());
  MOEC_CHECK(compilation->lower());
  uint64_t bytes = 0;
  for (auto weight : compilation->program().getOps<mlir::exec::WeightOp>()) {
    mlir::StringRef source = mlir::cast<mlir::StringAttr>(weight.getSources()[0]).getValue();
    MOEC_TRY(WeightJob job, WeightJob::from(weight));
    if (!llvm::any_of(layers, [&](const Layer &layer) { return llvm::is_contained(layer.tensors, source.str()); })) {
      bytes += job.bytes();
      continue;
    }
    // A shared expert may be behind the routed ones, of which it is none.
    for (mlir::Attribute step : weight.getRecipe())
      if (auto append = mlir::dyn_cast<mlir::moe::AppendAttr>(step))
        bytes += job.bytes() / job.shape.front() * append.getCount();
  }
  return bytes;
}

std::string escaped(const std::string &name) {
  std::string text;
  for (char c : name)
    text += std::string(std::string_view(".[]{}()*+?^$|\\").find(c) != std::string_view::npos ? "\\" : "") + c;
  return text;
}

/// Lines that give each projection its format.
std::string rulesOf(const std::vector<Layer> &layers, const std::vector<std::string> &formats) {
  std::string text;
  for (const Layer &layer : layers)
    for (size_t source = 0; source < 3; ++source)
      for (size_t f = 0; f < formats.size(); ++f) {
        std::string experts;
        for (const Item &item : layer.items)
          if (item.isDown == (source == 2) && item.hull[item.chosen].format == f)
            experts += (experts.empty() ? "" : "|") + std::to_string(item.expert);
        if (experts.empty())
          continue;
        size_t marker = layer.sources[source].find("{e}");
        text += "^" + escaped(layer.sources[source].substr(0, marker)) + "(" + experts + ")" +
                escaped(layer.sources[source].substr(marker + 3)) + "$=" + formats[f] + "\n";
      }
  return text;
}

} // namespace

/// Of each layer what its experts cost, and the bytes of all other weights.
struct Budget::Measured {
  std::vector<std::string> formats;
  std::vector<Layer> layers;
  uint64_t beside = 0;
};

Budget::Budget(std::unique_ptr<const Measured> measured) : measured(std::move(measured)) {}
Budget::Budget(Budget &&) noexcept = default;
Budget::~Budget() = default;

Result<Budget> Budget::measure(const BudgetOptions &options) {
  if (options.compile.calibration.empty())
    return Error{"a budget needs a calibration, a file that moec calibrate made"};
  MOEC_TRY(Calibration calibration, Calibration::open(options.compile.calibration));
  MOEC_TRY(hf::SourceModel source, hf::SourceModel::open(options.compile.model));
  MOEC_TRY(auto imported, Compilation::open(options.compile));
  std::vector<ExpertsOp> ops;
  imported->program().walk([&](ExpertsOp op) { ops.push_back(op); });
  if (ops.empty())
    return Error{options.compile.model + " has no routed experts to choose formats for"};
  auto measured = std::make_unique<Measured>();
  measured->formats = options.formats;
  LayerMeasure measure(options, imported->program().getContext(), calibration);
  for (ExpertsOp op : ops) {
    MOEC_TRY(Layer layer, measure.measure(op, source.checkpoint));
    measured->layers.push_back(std::move(layer));
  }
  MOEC_TRY(measured->beside, bytesBeside(options, measured->layers));
  return Budget(std::move(measured));
}

Result<BudgetReport> Budget::choose(std::optional<uint64_t> budgetBytes, std::optional<double> divergence) const {
  std::vector<Layer> layers = measured->layers; // what is chosen is noted in these
  const uint64_t beside = measured->beside;
  // From the least bytes up: of all layers the segment that avoids most divergence for a byte comes next.
  struct Segment {
    size_t layer;
    Path::Stop from, to;
    double gain() const { return (from.cost - to.cost) / static_cast<double>(to.bytes - from.bytes); }
  };
  std::vector<Path> paths;
  std::vector<Segment> segments;
  std::vector<size_t> taken(layers.size(), 0); // steps of each path
  std::vector<bool> ended(layers.size(), false);
  uint64_t bytes = beside;
  double cost = 0;
  for (size_t l = 0; l < layers.size(); ++l) {
    paths.push_back(pathOf(layers[l]));
    const std::vector<Path::Stop> &stops = paths[l].stops;
    bytes += stops[0].bytes;
    cost += stops[0].cost;
    for (size_t i = 1; i < stops.size(); ++i)
      segments.push_back({l, stops[i - 1], stops[i]});
  }
  llvm::stable_sort(segments, [](const Segment &a, const Segment &b) { return a.gain() > b.gain(); });
  if (budgetBytes && bytes > *budgetBytes)
    return Error{"a size budget of " + sizeText(*budgetBytes) + " cannot be met: the smallest formats make " +
                 sizeText(bytes) + ", of which " + sizeText(beside) + " are no routed experts"};
  for (const Segment &segment : segments) {
    if (divergence && cost <= *divergence)
      break;
    if (ended[segment.layer])
      continue;
    uint64_t more = segment.to.bytes - segment.from.bytes;
    if (!budgetBytes || bytes + more <= *budgetBytes) {
      taken[segment.layer] = segment.to.steps;
      bytes += more;
      cost -= segment.from.cost - segment.to.cost;
      continue;
    }
    // Part of the way, as far as the budget goes; what lies beyond is not for this layer.
    ended[segment.layer] = true;
    Layer &layer = layers[segment.layer];
    std::vector<size_t> at(layer.items.size(), 0);
    for (size_t step = 0; step < segment.to.steps; ++step) {
      size_t item = paths[segment.layer].steps[step];
      const std::vector<Choice> &hull = layer.items[item].hull;
      if (step >= segment.from.steps) {
        uint64_t one = hull[at[item] + 1].bytes - hull[at[item]].bytes;
        if (bytes + one > *budgetBytes)
          break;
        bytes += one;
        taken[segment.layer] = step + 1;
      }
      ++at[item];
    }
  }

  BudgetReport report;
  for (size_t l = 0; l < layers.size(); ++l) {
    Layer &layer = layers[l];
    for (size_t step = 0; step < taken[l]; ++step)
      ++layer.items[paths[l].steps[step]].chosen;
    LayerFormats formats{layer.name, 0, {}, {}, 0, 0, 0};
    for (const Item &item : layer.items) {
      const Choice &choice = item.hull[item.chosen];
      ++(item.isDown ? formats.down : formats.gateUp)[measured->formats[choice.format]];
      formats.experts += item.isDown;
      formats.bytes += choice.bytes;
      formats.noise += choice.noise;
    }
    formats.divergence = layer.cost(formats.noise);
    report.divergence += formats.divergence;
    report.bytes += formats.bytes;
    report.layers.push_back(std::move(formats));
  }
  report.bytes += beside;
  if (divergence && report.divergence > *divergence)
    return Error{"an error budget of " + numberText(static_cast<float>(*divergence)) +
                 " nats cannot be met: the most exact formats are predicted to make " +
                 numberText(static_cast<float>(report.divergence))};
  report.formats = rulesOf(layers, measured->formats);
  return report;
}

Result<double> moec::divergenceOf(const std::string &artifact, const std::string &base,
                                  const std::vector<int32_t> &tokens, int threads) {
  ModelOptions loading;
  loading.threads = threads;
  std::vector<ChunkReader> readers;
  for (const std::string &path : {artifact, base}) {
    MOEC_TRY(std::unique_ptr<Model> model, Model::load(path, loading));
    MOEC_TRY(ChunkReader reader, ChunkReader::open(std::move(model)));
    readers.push_back(std::move(reader));
  }
  if (readers[0].vocab() != readers[1].vocab())
    return Error{artifact + " and " + base + " are not of one model: their vocabularies differ"};
  MOEC_TRY(int64_t chunks, readers[0].chunksOf(tokens, "the calibration's text"));
  double sum = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    for (ChunkReader &reader : readers)
      MOEC_CHECK(reader.read(tokens.data() + chunk * ChunkReader::chunkTokens));
    for (int64_t t = 0; t < ChunkReader::chunkTokens; ++t)
      sum += klDivergence(readers[1].row(t), readers[0].row(t));
  }
  return sum / static_cast<double>(chunks * ChunkReader::chunkTokens);
}

std::string BudgetReport::text() const {
  auto counts = [](const std::map<std::string, int64_t> &formats) {
    std::string text;
    for (const auto &[format, count] : formats)
      text += (text.empty() ? "" : ", ") + std::to_string(count) + " " + format;
    return text;
  };
  auto number = [](double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.3g", value);
    return std::string(text);
  };
  Table table({"experts of", "gate and up", "down", "bytes", "noise", "KLD"});
  for (const LayerFormats &layer : layers)
    table.add({layer.name, counts(layer.gateUp), counts(layer.down), sizeText(layer.bytes), number(layer.noise),
               number(layer.divergence)});
  return table.text() + "all weights " + sizeText(bytes) + ", predicted KLD " + number(divergence) +
         (achieved ? ", achieved " + number(*achieved) : "") + "\n";
}

Json BudgetReport::json() const {
  Json list = Json::array();
  for (const LayerFormats &layer : layers)
    list.push_back({{"name", layer.name},
                    {"experts", layer.experts},
                    {"gate_up", layer.gateUp},
                    {"down", layer.down},
                    {"bytes", layer.bytes},
                    {"noise", layer.noise},
                    {"kld", layer.divergence}});
  Json json = {{"layers", std::move(list)}, {"formats", formats}, {"bytes", bytes}, {"kld_predicted", divergence}};
  if (achieved)
    json["kld_achieved"] = *achieved;
  return json;
}
