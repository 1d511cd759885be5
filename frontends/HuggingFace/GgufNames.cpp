// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "frontends/HuggingFace/GgufNames.h"

#include <algorithm>

using namespace moec;

namespace {

struct NamePair {
  std::string_view gguf, checkpoint;
};

constexpr NamePair wholeModel[] = {
    {"token_embd.weight", "model.embed_tokens.weight"},
    {"output_norm.weight", "model.norm.weight"},
    {"output.weight", "lm_head.weight"},
};

/// Behind the number of the layer.
constexpr NamePair ofLayer[] = {
    {"attn_norm.weight", "input_layernorm.weight"},
    {"attn_q.weight", "self_attn.q_proj.weight"},
    {"attn_q_a.weight", "self_attn.q_a_proj.weight"},
    {"attn_q_a_norm.weight", "self_attn.q_a_layernorm.weight"},
    {"attn_q_b.weight", "self_attn.q_b_proj.weight"},
    {"attn_kv_a_mqa.weight", "self_attn.kv_a_proj_with_mqa.weight"},
    {"attn_kv_a_norm.weight", "self_attn.kv_a_layernorm.weight"},
    {"attn_kv_b.weight", "self_attn.kv_b_proj.weight"},
    {"attn_output.weight", "self_attn.o_proj.weight"},
    {"ffn_norm.weight", "post_attention_layernorm.weight"},
    {"ffn_gate.weight", "mlp.gate_proj.weight"},
    {"ffn_up.weight", "mlp.up_proj.weight"},
    {"ffn_down.weight", "mlp.down_proj.weight"},
    {"ffn_gate_inp.weight", "mlp.gate.weight"},
    {"exp_probs_b.bias", "mlp.gate.e_score_correction_bias"},
    {"ffn_gate_exps.weight", "mlp.experts.{e}.gate_proj.weight"},
    {"ffn_up_exps.weight", "mlp.experts.{e}.up_proj.weight"},
    {"ffn_down_exps.weight", "mlp.experts.{e}.down_proj.weight"},
    {"ffn_gate_shexp.weight", "mlp.shared_experts.gate_proj.weight"},
    {"ffn_up_shexp.weight", "mlp.shared_experts.up_proj.weight"},
    {"ffn_down_shexp.weight", "mlp.shared_experts.down_proj.weight"},
};

constexpr NamePair layerPrefix = {"blk.", "model.layers."};

/// From one column of the tables to the other.
std::optional<std::string> translate(std::string_view name, std::string_view NamePair::*from,
                                     std::string_view NamePair::*to) {
  if (auto found = std::ranges::find(wholeModel, name, from); found != std::end(wholeModel))
    return std::string((*found).*to);
  if (!name.starts_with(layerPrefix.*from))
    return std::nullopt;
  name.remove_prefix((layerPrefix.*from).size());
  // No second spelling of a number, so that different names stay different.
  std::string_view layer = name.substr(0, name.find_first_not_of("0123456789"));
  if (layer.empty() || (layer.size() > 1 && layer.front() == '0') || !name.substr(layer.size()).starts_with('.'))
    return std::nullopt;
  auto found = std::ranges::find(ofLayer, name.substr(layer.size() + 1), from);
  if (found == std::end(ofLayer))
    return std::nullopt;
  return std::string(layerPrefix.*to).append(layer).append(".").append((*found).*to);
}

} // namespace

std::optional<std::string> hf::fromGgufName(std::string_view name) {
  return translate(name, &NamePair::gguf, &NamePair::checkpoint);
}

std::optional<std::string> hf::toGgufName(std::string_view name) {
  return translate(name, &NamePair::checkpoint, &NamePair::gguf);
}
