# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Makes test/e2e/parity: what the public implementation computes on random tiny models.

Run by hand when a model is added, in an environment with exactly these packages; the tests need none:

    pip install torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
    python test/e2e/make_parity.py

For each model below: transformers' own class writes config and tensors with `save_pretrained`; the
weights are replaced by those of checkpoints.py; its forward pass in float32 (eager attention) gives
the logits of a prompt and its greedy continuation of 64 tokens. FP8 and 16-bit models are computed
in float32 on the widened weights.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import torch
import transformers

import checkpoints

PINNED = {"torch": "2.13.0", "transformers": "5.23.0"}
OUT = Path(__file__).parent / "parity"
PROMPT, CONTINUATION = 40, 64

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
        "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
BASE = dict(vocab_size=160, hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=4, n_routed_experts=16, num_experts_per_tok=4,
            n_shared_experts=1, first_k_dense_replace=1, q_lora_rank=32, kv_lora_rank=32, qk_nope_head_dim=16,
            qk_rope_head_dim=16, v_head_dim=16, max_position_embeddings=128, rms_norm_eps=1e-6,
            tie_word_embeddings=False, attention_bias=False, hidden_act="silu", bos_token_id=0, eos_token_id=1)
V3 = dict(BASE, n_group=4, topk_group=2, norm_topk_prob=True, routed_scaling_factor=2.5, rope_parameters=YARN)
V2 = dict(BASE, topk_method="greedy", n_group=1, topk_group=1, norm_topk_prob=False, routed_scaling_factor=1.0,
          n_shared_experts=2, rope_parameters=dict(YARN, mscale=0.707, mscale_all_dim=0.707))

# name: (family, config, storage). Storage: f32, bf16, f16, fp8 (RxC blocks, "ue8m0" for power-of-two scales).
# `legacy` writes rope_scaling/rope_theta/torch_dtype as the published configs do; `config` overrides keys of config.json.
MODELS = {
    "v3": ("v3", V3, {}),
    "v3-legacy-config": ("v3", V3, {"legacy": True, "config": {
        "topk_method": "noaux_tc", "scoring_func": "sigmoid", "moe_layer_freq": 1}}),
    "v3-moonlight": ("v3", dict(V3, q_lora_rank=None, n_group=1, topk_group=1, n_shared_experts=2,
                                routed_scaling_factor=2.446, rope_parameters=PLAIN), {}),
    "v3-groups8-heads3": ("v3", dict(V3, n_routed_experts=32, num_experts_per_tok=8, n_group=8, topk_group=4,
                                     num_attention_heads=3, num_key_value_heads=3), {}),
    "v3-odd-dims": ("v3", dict(V3, vocab_size=101, hidden_size=60, intermediate_size=44, moe_intermediate_size=20,
                               num_attention_heads=5, num_key_value_heads=5, q_lora_rank=28, kv_lora_rank=20,
                               qk_nope_head_dim=12, qk_rope_head_dim=6, v_head_dim=10), {}),
    "v3-tied-nodense": ("v3", dict(V3, tie_word_embeddings=True, first_k_dense_replace=0), {}),
    "v3-nonorm-dense2": ("v3", dict(V3, norm_topk_prob=False, routed_scaling_factor=1.0, first_k_dense_replace=2), {}),
    "v3-noshared": ("v3", dict(V3, n_shared_experts=0), {}),
    "v3-mscale-mixed": ("v3", dict(V3, rope_parameters=dict(YARN, mscale=0.707, mscale_all_dim=1.0)), {}),
    "v3-yarn-no-mscale": ("v3", dict(V3, rope_parameters={k: v for k, v in YARN.items() if "mscale" not in k}), {}),
    "v3-bf16": ("v3", V3, {"dtype": "BF16"}),
    "v3-f16": ("v3", V3, {"dtype": "F16"}),
    "v3-fp8": ("v3", dict(V3, hidden_size=192, q_lora_rank=136, kv_lora_rank=144, moe_intermediate_size=72,
                          intermediate_size=200, num_attention_heads=5, num_key_value_heads=5),
               {"dtype": "F8_E4M3", "block": (128, 128)}),
    "v3-fp8-ue8m0": ("v3", dict(V3, hidden_size=144, n_routed_experts=8, n_group=1, topk_group=1),
                     {"dtype": "F8_E4M3", "block": (32, 32), "ue8m0": True}),
    "kimi-k2": ("v3", dict(V3, n_group=1, topk_group=1, routed_scaling_factor=2.827, rope_parameters=dict(
        YARN, rope_theta=50000.0, beta_fast=1, beta_slow=1)), {"legacy": True, "config": {"model_type": "kimi_k2"}}),
    "v2-lite": ("v2", dict(V2, q_lora_rank=None), {}),
    "v2-group-limited": ("v2", dict(V2, topk_method="group_limited_greedy", n_group=8, topk_group=3,
                                    num_experts_per_tok=6, n_routed_experts=32, routed_scaling_factor=16.0), {}),
    "v2-plain-rope-dense2": ("v2", dict(V2, first_k_dense_replace=2, n_shared_experts=1, rope_parameters=PLAIN), {}),
    "v2-legacy-bf16": ("v2", V2, {"dtype": "BF16", "legacy": True, "config": {"scoring_func": "softmax"}}),
}

CLASSES = {"v2": (transformers.DeepseekV2Config, transformers.DeepseekV2ForCausalLM),
           "v3": (transformers.DeepseekV3Config, transformers.DeepseekV3ForCausalLM)}
KEPT_WIDE = ("norm.weight", "embed_tokens.weight", "lm_head.weight", "mlp.gate.weight")


def stored_type(name: str, shape: list[int], dtype: str) -> str:
    if name.endswith("e_score_correction_bias"):
        return "F32"
    if dtype == "F8_E4M3" and (len(shape) != 2 or name.endswith(KEPT_WIDE)):
        return "BF16"
    return dtype


def describe(directory: Path, dtype: str, block: tuple[int, int]) -> dict:
    """tensors.json: what save_pretrained wrote, in the storage asked for."""
    tensors = {}
    with safetensors.safe_open(directory / "model.safetensors", "np") as file:
        for name in file.keys():
            shape = file.get_slice(name).get_shape()
            if 0 in shape:
                continue  # n_shared_experts 0: transformers keeps empty matrices
            kind = stored_type(name, shape, dtype)
            tensors[name] = [kind, *shape]
            if kind == "F8_E4M3":
                tensors[name + "_scale_inv"] = ["F32", -(-shape[0] // block[0]), -(-shape[1] // block[1])]
    return checkpoints.fold_families(tensors)


def published_config(config: dict, options: dict) -> dict:
    config = dict(config)
    if options.get("legacy"):
        rope = dict(config.pop("rope_parameters"))
        config["rope_theta"] = rope.pop("rope_theta")
        kind = rope.pop("rope_type")
        config["rope_scaling"] = None if kind == "default" else dict(rope, type=kind)
        config["torch_dtype"] = config.pop("dtype", "float32")
    if options.get("dtype") == "F8_E4M3":
        config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                                         "weight_block_size": list(options["block"])}
        if options.get("ue8m0"):
            config["quantization_config"]["scale_fmt"] = "ue8m0"
    config.update(options.get("config", {}))
    return config


def make(name: str) -> None:
    family, keys, options = MODELS[name]
    config_class, model_class = CLASSES[family]
    target = OUT / name
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temp:
        temp = Path(temp)
        torch.manual_seed(0)
        config = config_class(**keys)
        model_class(config).save_pretrained(temp)
        saved = json.loads((temp / "config.json").read_text())
        tensors = describe(temp, options.get("dtype", "F32"), options.get("block", (128, 128)))
        (target / "config.json").write_text(json.dumps(published_config(saved, options), indent=1) + "\n")
        lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(spec)}" for key, spec in tensors.items())
        (target / "tensors.json").write_text("{\n" + lines + "\n}\n")

        weights = {key: value for key, (_, _, value) in checkpoints.tensors_of(target).items()
                   if not key.endswith("_scale_inv")}
        with safetensors.safe_open(temp / "model.safetensors", "np") as file:
            for key in file.keys():
                if 0 in (shape := file.get_slice(key).get_shape()):
                    weights[key] = np.zeros(shape, np.float32)
        safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in weights.items()},
                                    temp / "model.safetensors", metadata={"format": "pt"})
        model = model_class.from_pretrained(temp, dtype=torch.float32, attn_implementation="eager").eval()

    # Of several prompts, the first whose continuation never hangs by a hair: elsewhere the
    # arg-max could change with the order of a sum, which is no error.
    for attempt in range(50):
        raw = np.random.PCG64(attempt).random_raw(PROMPT - 1)
        tokens = [config.bos_token_id] + [int(r % (config.vocab_size - 3)) + 3 for r in raw]
        gap = np.inf
        with torch.no_grad():
            for step in range(CONTINUATION):
                logits = model(torch.tensor([tokens]), use_cache=False).logits[0]
                if step == 0:
                    prompt_logits = logits.numpy().astype(np.float32)
                best = torch.topk(logits[-1], 2)
                gap = min(gap, float(best.values[0] - best.values[1]))
                tokens.append(int(best.indices[0]))
        if gap > 2e-3:
            break
    else:
        sys.exit(f"{name}: every prompt meets a near tie")
    safetensors.numpy.save_file(
        {"tokens": np.array(tokens[:PROMPT], np.int32), "logits": prompt_logits,
         "greedy": np.array(tokens[PROMPT:], np.int32)}, target / "reference.safetensors")
    print(f"{name}: prompt {attempt}, |logit| <= {np.abs(prompt_logits).max():.1f}, smallest gap {gap:.4f}")


def main() -> None:
    for package, version in PINNED.items():
        found = sys.modules[package].__version__.split("+")[0]
        if found != version:
            sys.exit(f"make_parity.py: {package} is {found}, but the stored logits are made with {version}")
    names = sys.argv[1:] or list(MODELS)
    if names == list(MODELS) and OUT.exists():
        shutil.rmtree(OUT)
    for name in names:
        make(name)


if __name__ == "__main__":
    main()
