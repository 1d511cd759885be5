# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Checkpoints in every quantized format against their twins, which hold the same values in f32 (see quantized.py)."""

import json

import checkpoints
import numpy as np
import pytest
import quantized
from quantized import FORMATS
from safetensors.numpy import load_file

TOKENS = [3, 41, 7, 0, 95, 12, 12, 60, 33, 8, 71, 26]

# The same values enter on both sides. Where codes are kept, a scale multiplies the sum of its group and not each
# weight, so that every product is rounded elsewhere: some 2^-24 of the terms of sums of up to 144, through two layers.
# FP8 differs by up to 1.6e-6 of the largest logit. One weight of one expert that is off by one step of a 4-bit code is
# 8e-4 of it, of an 8-bit code 5e-5.
MAX_DIFFERENCE = 2e-5

SANITIZED = {"fp8-48x20", "gptq-v2-8bit-order", "awq", "pack4-asymmetric", "nvfp4", "mxfp4"}


def logits(program, command, model, out) -> np.ndarray:
    program.run(command, model, "--tokens", ",".join(map(str, TOKENS)), "-o", out / "logits.safetensors")
    result = load_file(out / "logits.safetensors")["logits"]
    assert result.shape == (len(TOKENS), 96) and np.isfinite(result).all() and result.std() > 1
    return result


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert np.abs(ours - theirs).max() <= MAX_DIFFERENCE * np.abs(theirs).max()
    assert (ours.argmax(1) == theirs.argmax(1)).all()


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """models(format) -> directories of the quantized model and its twin, made once a session."""
    made = {}

    def build(name):
        if name not in made:
            made[name] = quantized.build(tmp_path_factory.mktemp("checkpoints") / name, name)
        return made[name]

    return build


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.sanitize] * (name in SANITIZED)) for name in FORMATS]
)
def test_artifact(name, models, compiled, moec, moe_run, tmp_path):
    """The twin in the interpreter, which defines what an f32 model computes; parity tests hold artifacts to it."""
    model, twin = models(name)
    assert_close(
        logits(moe_run, "logits", compiled(model), tmp_path), logits(moec, "interpret", twin, tmp_path)
    )


@pytest.mark.parametrize("name", FORMATS)
def test_interpreter(name, models, moec, tmp_path):
    """Sums have one order here: equal weights give equal logits."""
    model, twin = models(name)
    assert np.array_equal(logits(moec, "interpret", model, tmp_path), logits(moec, "interpret", twin, tmp_path))


MIXED = {
    "only experts, as in Kimi-K2-Thinking": ("pack4", lambda layer: ".mlp.experts." in layer),
    "all but kv_b, as AWQ files often have it": ("awq", lambda layer: not layer.endswith("kv_b_proj")),
    "the dense layer plain": ("gptq-v1-order", lambda layer: not layer.startswith("model.layers.0.")),
    "only attention": ("fp8-32x32", lambda layer: ".self_attn." in layer),
}


@pytest.mark.parametrize("case", MIXED)
def test_some_layers_are_plain(case, compiled, moec, moe_run, tmp_path):
    model, twin = quantized.build(tmp_path, *MIXED[case])
    expected = logits(moe_run, "logits", compiled(twin), tmp_path)
    assert_close(logits(moe_run, "logits", compiled(model), tmp_path), expected)
    assert_close(logits(moec, "interpret", model, tmp_path), expected)


@pytest.mark.parametrize("name", ["fp8-ue8m0", "gptq-v1", "pack4-asymmetric", "nvfp4"])
def test_tensors_of_a_layer_in_two_shards(name, models, moec, tmp_path):
    _, twin = models(name)
    tensors, _ = quantized.tensors_of(name)
    model = tmp_path / "sharded"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(quantized.config_of(name, FORMATS[name].config)))
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    names = sorted(tensors)
    for shard, part in zip(shards, (names[0::2], names[1::2])):
        checkpoints.write_safetensors(model / shard, {tensor: tensors[tensor] for tensor in part})
    weight_map = {tensor: shards[number % 2] for number, tensor in enumerate(names)}
    layers = {}
    for tensor, shard in weight_map.items():
        layers.setdefault(tensor.rpartition(".")[0], set()).add(shard)
    assert any(len(used) == 2 for used in layers.values())
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert np.array_equal(logits(moec, "interpret", model, tmp_path), logits(moec, "interpret", twin, tmp_path))


@pytest.mark.parametrize("name, declared", [("gptq-v1", "gptq_v2"), ("gptq-v1-order", "gptq_v2")])
def test_symmetric_gptq_tells_its_version(name, declared, models, moec, tmp_path):
    """Tools declare one version and store zero points as in the other."""
    _, twin = models(name)
    tensors, _ = quantized.tensors_of(name)
    quantization = FORMATS[name].config | {"checkpoint_format": declared}
    model = quantized.write(tmp_path / "model", quantized.config_of(name, quantization), tensors)
    assert np.array_equal(logits(moec, "interpret", model, tmp_path), logits(moec, "interpret", twin, tmp_path))


STORED_AS = {
    "fp8-128x128": ("F8_E4M3", "kept: the target multiplies FP8 blocks"),
    "pack4": ("U8", "kept: the target multiplies int4 in groups, as pack-quantized int4 in groups of 32 is"),
    "awq": ("F32", "dequantised: the target has no kernel for awq int4 in groups of 32"),
    "mxfp4": ("BF16", "dequantised: the target has no kernel for mxfp4"),
}


@pytest.mark.parametrize("name", STORED_AS)
def test_what_is_kept_is_explained(name, models, compiled, moec):
    model, _ = models(name)
    dtype, reason = STORED_AS[name]
    weights = json.loads(moec.run("inspect", compiled(model), "--json").stdout)["weights"]
    experts = [weight for weight in weights if ".experts." in weight["name"] and not weight["name"].endswith(".scales")]
    assert experts and {weight["dtype"] for weight in experts} == {dtype}
    explained = moec.run("compile", model, "--emit=exec", "--explain").stderr.decode()
    assert reason in explained
