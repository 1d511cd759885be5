// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "frontends/HuggingFace/Import.h"
#include "dialects/Moe/MoeDialect.h"
#include "frontends/HuggingFace/Rope.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/Builders.h"
#include "mlir/IR/Diagnostics.h"
#include "mlir/IR/Verifier.h"

#include <algorithm>
#include <numeric>

using namespace mlir;
using namespace mlir::moe;
using moec::DType;
using moec::hf::ExpectedTensor;
using moec::hf::ModelConfig;

namespace {

constexpr int64_t defaultMaxContext = 32768;

/// Builds `@step`. Functions take module names as checkpoints spell them ("model.layers.3.mlp.gate_proj").
class StepBuilder {
public:
  StepBuilder(OpBuilder &builder, const ModelConfig &config, const moec::hf::Inventory &inventory,
              ArrayRef<int64_t> layers)
      : b(builder), config(config), inventory(inventory), layers(layers), expected(moec::hf::expectedTensors(config)) {
    for (const ExpectedTensor &tensor : expected)
      byName.emplace(tensor.name, &tensor);
    moec::hf::RopeTable table = moec::hf::makeRopeTable(config.rope, config.ropeDim);
    rope = RopeAttr::get(b.getContext(), b.getDenseF32ArrayAttr(table.invFreq), b.getF64FloatAttr(table.factor));
    scale = b.getF64FloatAttr(moec::hf::softmaxScale(config));
  }

  void build(ModuleOp module) {
    b.setInsertionPointToEnd(module.getBody());
    for (int64_t layer : layers)
      CacheOp::create(b, loc(layerName(layer) + "self_attn.cache"), b.getStringAttr(cacheName(layer)),
                      b.getI64IntegerAttr(config.kvLoraRank + config.ropeDim), /*format=*/Attribute());

    Type indices = index(1);
    auto step = func::FuncOp::create(b, loc("step"), "step",
                                     b.getFunctionType({indices, indices, indices, indices}, {matrix(config.vocab)}));
    Block *body = b.createBlock(&step.getBody(), step.getBody().end(), {indices, indices, indices, indices},
                                {loc("tokens"), loc("positions"), loc("slots"), loc("rows")});
    positions = body->getArgument(1);
    slots = body->getArgument(2);

    Value table = weight("model.embed_tokens.weight");
    Value x = EmbedOp::create(b, loc("model.embed_tokens"), matrix(config.hidden), table, body->getArgument(0));
    for (int64_t layer : layers)
      x = addLayer(layer, x);
    x = GatherRowsOp::create(b, loc("model.rows"), matrix(config.hidden), x, body->getArgument(3));
    x = norm(x, "model.norm", config.rmsEps);
    Value head = config.tiedEmbeddings ? table : weight("lm_head.weight");
    Value logits = LinearOp::create(b, loc("lm_head"), matrix(config.vocab), x, head, Value());
    func::ReturnOp::create(b, loc("step"), logits);
  }

private:
  //===------------------------------------------------------------------===//
  // Names and types
  //===------------------------------------------------------------------===//

  static std::string layerName(int64_t layer) { return "model.layers." + std::to_string(layer) + "."; }
  static std::string cacheName(int64_t layer) { return "kv." + std::to_string(layer); }

  Location loc(StringRef name) {
    name.consume_front("model.");
    return NameLoc::get(b.getStringAttr(name));
  }
  Type matrix(int64_t width) { return RankedTensorType::get({ShapedType::kDynamic, width}, b.getF32Type()); }
  Type perHead(int64_t width) {
    return RankedTensorType::get({ShapedType::kDynamic, config.heads, width}, b.getF32Type());
  }
  Type index(int64_t rank, int64_t width = 0) {
    SmallVector<int64_t> shape = {ShapedType::kDynamic};
    if (rank == 2)
      shape.push_back(width);
    return RankedTensorType::get(shape, b.getI32Type());
  }
  Type elementType(const moec::hf::StoredAs &stored) {
    if (stored.blocks)
      return b.getF32Type();
    if (stored.quantised) {
      const moec::hf::QuantizationConfig &quantization = *config.quantization;
      // Few significant bits times a power of two: exact in bf16.
      bool exact = quantization.powerOfTwoScales || quantization.format.valueType() == DType::BF16;
      return exact ? Type(b.getBF16Type()) : b.getF32Type();
    }
    switch (stored.dtype) {
    case DType::BF16:
      return b.getBF16Type();
    case DType::F16:
      return b.getF16Type();
    default:
      return b.getF32Type();
    }
  }

  //===------------------------------------------------------------------===//
  // Pieces
  //===------------------------------------------------------------------===//

  /// The weight called `name`, as the inventory found it. `castToF32` converts it to f32 if it is stored otherwise.
  Value weight(const std::string &name, bool castToF32 = false) {
    const ExpectedTensor &tensor = *byName.at(name);
    const moec::hf::StoredAs &stored = inventory.stored(name);
    Type element = elementType(stored);
    SmallVector<Attribute> sources, recipe;
    if (stored.quantised) {
      const moec::Format &format = config.quantization->format;
      for (const moec::RequiredTensor &required : tensor.stored) {
        if (required.suffix != format.groupIndex || stored.indexed) // which may be absent
          sources.push_back(b.getStringAttr(tensor.nameOf(required)));
      }
      recipe.push_back(DequantAttr::of(b.getContext(), format, stored.indexed, stored.scale, element));
    } else {
      sources.push_back(b.getStringAttr(name));
      if (stored.blocks)
        recipe.push_back(DequantAttr::of(b.getContext(), *stored.blocks));
    }
    if (castToF32 && !element.isF32()) {
      element = b.getF32Type();
      recipe.push_back(CastAttr::get(b.getContext(), element));
    }
    SmallVector<int64_t> shape(tensor.shape.begin(), tensor.shape.end());
    if (name.find("{e}") != std::string::npos) {
      recipe.push_back(StackAttr::get(b.getContext(), tensor.members));
      shape.insert(shape.begin(), tensor.members);
    }
    StringRef label = name;
    label.consume_back(".weight");
    return WeightOp::create(b, loc(label), RankedTensorType::get(shape, element), b.getArrayAttr(sources),
                            b.getArrayAttr(recipe));
  }

  Value linear(Value x, const std::string &name) {
    Value w = weight(name + ".weight");
    return LinearOp::create(b, loc(name), matrix(cast<ShapedType>(w.getType()).getDimSize(0)), x, w, Value());
  }

  Value norm(Value x, const std::string &name, double eps) {
    Value g = weight(name + ".weight");
    return RmsNormOp::create(b, loc(name), x.getType(), x, g, b.getF64FloatAttr(eps));
  }

  Value add(Value lhs, Value rhs, const std::string &name) {
    return AddOp::create(b, loc(name), lhs.getType(), lhs, rhs);
  }

  Value reshape(Value x, Type type, const std::string &name) { return ReshapeOp::create(b, loc(name), type, x); }

  /// The two parts of the last dimension.
  std::pair<Value, Value> split(Value x, Type first, Type second, const std::string &name) {
    auto parts = SplitOp::create(b, loc(name), TypeRange{first, second}, x);
    return {parts.getResult(0), parts.getResult(1)};
  }

  Value rotate(Value x, const std::string &name) {
    return RopeOp::create(b, loc(name), x.getType(), x, positions, rope);
  }

  /// `down(silu(gate x) * up x)`
  Value swiglu(Value x, const std::string &prefix) {
    Value gate = linear(x, prefix + "gate_proj");
    Value up = linear(x, prefix + "up_proj");
    Value activated = SwigluOp::create(b, loc(prefix + "act_fn"), gate.getType(), gate, up);
    return linear(activated, prefix + "down_proj");
  }

  //===------------------------------------------------------------------===//
  // One layer
  //===------------------------------------------------------------------===//

  Value addLayer(int64_t layer, Value x) {
    const std::string name = layerName(layer);
    Value normed = norm(x, name + "input_layernorm", config.rmsEps);
    x = add(x, attention(layer, normed, name + "self_attn."), name + "self_attn.add");
    normed = norm(x, name + "post_attention_layernorm", config.rmsEps);
    Value y = config.isMoe[layer] ? mixture(normed, name + "mlp.") : swiglu(normed, name + "mlp.");
    return add(x, y, name + "mlp.add");
  }

  /// Multi-head latent attention in expanded form (DeepSeek-V2, arXiv:2405.04434, section 2.1).
  Value attention(int64_t layer, Value x, const std::string &prefix) {
    Value q;
    if (config.qLoraRank == 0) {
      q = linear(x, prefix + "q_proj");
    } else {
      q = norm(linear(x, prefix + "q_a_proj"), prefix + "q_a_layernorm", ModelConfig::latentEps);
      q = linear(q, prefix + "q_b_proj");
    }
    q = reshape(q, perHead(config.queryDim()), prefix + "q_heads");
    auto [qNope, qRope] = split(q, perHead(config.nopeDim), perHead(config.ropeDim), prefix + "q_split");
    qRope = rotate(qRope, prefix + "q_rope");

    auto [latent, kRope] = split(linear(x, prefix + "kv_a_proj_with_mqa"), matrix(config.kvLoraRank),
                                 matrix(config.ropeDim), prefix + "kv_a_split");
    latent = norm(latent, prefix + "kv_a_layernorm", ModelConfig::latentEps);
    kRope = rotate(kRope, prefix + "k_rope");
    auto context =
        CacheAppendOp::create(b, loc(prefix + "cache"), TypeRange{latent.getType(), kRope.getType()}, index(1),
                              index(1), cacheName(layer), ValueRange{latent, kRope}, positions, slots);

    Value kv = linear(context.getContext()[0], prefix + "kv_b_proj");
    kv = reshape(kv, perHead(config.nopeDim + config.valueDim), prefix + "kv_heads");
    auto [key, value] = split(kv, perHead(config.nopeDim), perHead(config.valueDim), prefix + "kv_split");
    Value out = AttentionOp::create(b, loc(prefix + "attention"), perHead(config.valueDim), qNope, qRope, key,
                                    context.getContext()[1], value, positions, slots, context.getContextPositions(),
                                    context.getContextSlots(), scale);
    out = reshape(out, matrix(config.heads * config.valueDim), prefix + "o_heads");
    return linear(out, prefix + "o_proj");
  }

  /// Router, routed experts and the shared expert.
  Value mixture(Value x, const std::string &prefix) {
    bool sigmoid = config.router == ModelConfig::Router::SigmoidGrouped;
    Value logits = linear(x, prefix + "gate");
    Value bias = sigmoid ? weight(prefix + "gate.e_score_correction_bias", /*castToF32=*/true) : Value();
    // One group is no choice: how it is scored would be noise in the IR.
    bool top2 = sigmoid && config.groups > 1;
    auto route = RouteOp::create(b, loc(prefix + "route"), matrix(config.topk), index(2, config.topk), logits, bias,
                                 sigmoid ? Scoring::Sigmoid : Scoring::Softmax, config.topk, config.groups,
                                 config.topkGroups, top2 ? GroupScore::Top2Sum : GroupScore::Max, config.normalize,
                                 llvm::APFloat(config.routedScale));
    Value gate = weight(prefix + "experts.{e}.gate_proj.weight");
    Value up = weight(prefix + "experts.{e}.up_proj.weight");
    Value down = weight(prefix + "experts.{e}.down_proj.weight");
    Value y = ExpertsOp::create(b, loc(prefix + "experts"), x.getType(), x, route.getWeights(), route.getExperts(),
                                gate, up, down, /*residual=*/Value(), /*activations=*/QuantizeAttr(),
                                /*members=*/DenseI64ArrayAttr());
    if (config.sharedExperts == 0)
      return y;
    return add(y, swiglu(x, prefix + "shared_experts."), prefix + "shared_experts.add");
  }

  OpBuilder &b;
  const ModelConfig &config;
  const moec::hf::Inventory &inventory;
  ArrayRef<int64_t> layers;
  std::vector<ExpectedTensor> expected;
  std::map<std::string, const ExpectedTensor *> byName;
  RopeAttr rope;
  FloatAttr scale;
  Value positions, slots;
};

} // namespace

moec::Result<moec::hf::SourceModel> moec::hf::SourceModel::open(const std::string &directory) {
  MOEC_TRY(ModelConfig config, ModelConfig::load(directory));
  MOEC_CHECK(config.importable());
  MOEC_TRY(Checkpoint checkpoint, Checkpoint::open(directory));
  MOEC_CHECK(checkpoint.reconcile(config));
  MOEC_TRY(Inventory inventory, Inventory::check(config, checkpoint.tensors(), directory));
  return SourceModel{std::move(config), std::move(checkpoint), std::move(inventory)};
}

FailureOr<OwningOpRef<ModuleOp>> moec::hf::importModel(MLIRContext &context, const ModelConfig &config,
                                                       const Inventory &inventory, const ImportOptions &options) {
  context.loadDialect<MoeDialect, func::FuncDialect>();
  OpBuilder b(&context);
  if (moec::Status importable = config.importable(); !importable.ok())
    return emitError(b.getUnknownLoc()) << importable.message(), failure();
  if (options.maxContext < 0 || options.maxContext > config.maxPositions)
    return emitError(b.getUnknownLoc()) << "a context of " << options.maxContext << " tokens is asked for, but "
                                        << config.path << " has 'max_position_embeddings' " << config.maxPositions,
           failure();
  if (options.maxContext > config.longestContext())
    return emitError(b.getUnknownLoc()) << "a context of " << options.maxContext << " tokens is asked for, but "
                                        << config.path << " has 'index_topk' " << config.indexer->topk
                                        << ": beyond that many tokens attention is sparse, which is not built yet",
           failure();
  int64_t maxContext = options.maxContext ? options.maxContext : std::min(config.longestContext(), defaultMaxContext);

  std::vector<int64_t> layers = options.layers;
  if (layers.empty()) {
    layers.resize(config.layers);
    std::iota(layers.begin(), layers.end(), 0);
  }
  for (size_t i = 0; i < layers.size(); ++i)
    if (layers[i] < (i ? layers[i - 1] + 1 : 0) || layers[i] >= config.layers)
      return emitError(b.getUnknownLoc())
                 << "layer " << layers[i] << " is asked for"
                 << (i ? " after layer " + std::to_string(layers[i - 1]) : "") << ", but " << config.path
                 << " has layers 0 to " << config.layers - 1 << ", and a slice names them in rising order",
             failure();

  OwningOpRef<ModuleOp> module = ModuleOp::create(b, NameLoc::get(b.getStringAttr(config.name)));
  SmallVector<NamedAttribute> facts = {
      b.getNamedAttr("type", b.getStringAttr(config.type)),
      b.getNamedAttr("name", b.getStringAttr(config.name)),
      b.getNamedAttr("vocab", b.getI64IntegerAttr(config.vocab)),
      b.getNamedAttr("hidden", b.getI64IntegerAttr(config.hidden)),
      b.getNamedAttr("layers", b.getI64IntegerAttr(static_cast<int64_t>(layers.size()))),
      b.getNamedAttr("max_context", b.getI64IntegerAttr(maxContext)),
      b.getNamedAttr("eos", b.getI64ArrayAttr(config.eos)),
  };
  if (config.bos)
    facts.push_back(b.getNamedAttr("bos", b.getI64IntegerAttr(*config.bos)));
  (*module)->setAttr("moe.model", b.getDictionaryAttr(facts));

  StepBuilder(b, config, inventory, layers).build(*module);
  if (failed(verify(*module)))
    return failure();
  return module;
}
