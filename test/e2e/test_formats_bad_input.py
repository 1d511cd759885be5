# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""What can be wrong in a quantized checkpoint: one sentence, exit code 1, nothing left."""

import os
import re

import numpy as np
import pytest
import quantized
from quantized import FORMATS, SMALL

DENSE = "model.layers.0.mlp.up_proj"
EXPERT = "model.layers.1.mlp.experts.1.up_proj"
WIDTH = 64  # of the inputs of both

# One of every way to lay out codes, and of every type of scales.
NAMES = [
    "fp8-32x32", "fp8-tensor", "float-channel", "mxfp8", "gptq-v1", "gptq-v2-8bit-order", "awq", "pack4",
    "pack4-asymmetric", "int8", "nvfp4", "nvfp4-modelopt", "mxfp4",
]  # fmt: skip


def tensors_needed(name: str) -> dict[str, str]:
    """Suffix -> type of the tensors of a layer without which there are no weights."""
    tensors = FORMATS[name].pack(np.ones((32, 32), np.float32)).tensors
    optional = {"input_scale", "input_global_scale"} | ({"g_idx"} if not FORMATS[name].config.get("desc_act") else set())
    return {suffix: dtype for suffix, (dtype, _) in tensors.items() if suffix not in optional}


NEEDED = [(name, suffix) for name in NAMES for suffix in tensors_needed(name)]


@pytest.fixture
def refused(moec, tmp_path):
    """refused(tensors, name, quantization, command="compile") -> the sentence about a model of the widths of `name`."""

    def run(tensors, name, quantization, command="compile") -> str:
        model = quantized.write(tmp_path / "model", quantized.config_of(name, quantization), tensors)
        options = ["--tokens", "1,2"] if command == "interpret" else []
        message = moec.refuses(command, model, "-o", tmp_path / "out", *options)
        assert os.listdir(tmp_path) == ["model"], "something half-written is left"
        return message

    return run


def text_of(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


@pytest.mark.parametrize("layer", [DENSE, EXPERT], ids=["dense", "expert"])
@pytest.mark.parametrize("name, suffix", NEEDED)
def test_missing_tensor(name, suffix, layer, refused):
    tensors, _ = quantized.tensors_of(name)
    del tensors[f"{layer}.{suffix}"]
    message = refused(tensors, name, FORMATS[name].config)
    # Without its codes a layer is a plain one without its weight.
    missing = "weight" if suffix == next(iter(tensors_needed(name))) else suffix
    assert f"'{layer}.{missing}' is missing, expected " in message


@pytest.mark.parametrize("name, suffix", NEEDED)
def test_other_shape(name, suffix, refused):
    tensors, _ = quantized.tensors_of(name)
    dtype, array = tensors[f"{DENSE}.{suffix}"]
    shape = (array.shape[0] + 1, *array.shape[1:]) if array.ndim else (2,)
    tensors[f"{DENSE}.{suffix}"] = (dtype, np.zeros(shape, array.dtype))
    message = refused(tensors, name, FORMATS[name].config)
    assert re.search(rf"'{DENSE}\.{suffix}' is {re.escape(text_of(shape))}, but \S+config\.json asks for \[", message)


@pytest.mark.parametrize("name, suffix", NEEDED)
def test_other_type(name, suffix, refused):
    tensors, _ = quantized.tensors_of(name)
    tensors[f"{DENSE}.{suffix}"] = ("F64", np.zeros(tensors[f"{DENSE}.{suffix}"][1].shape, np.float64))
    message = refused(tensors, name, FORMATS[name].config)
    assert re.search(rf"'{DENSE}\.(weight|{suffix})' is (F64, |missing, )expected ", message)


def test_index_that_is_not_needed_is_checked_all_the_same(refused):
    tensors, _ = quantized.tensors_of("gptq-v1")
    tensors[f"{DENSE}.g_idx"] = ("I64", np.zeros(WIDTH, np.int64))
    assert f"'{DENSE}.g_idx' is I64, expected I32" in refused(tensors, "gptq-v1", FORMATS["gptq-v1"].config)


@pytest.mark.parametrize("name", NAMES)
def test_plain_weight_beside_what_belongs_to_codes(name, refused):
    tensors, twin = quantized.tensors_of(name)
    codes, *others = tensors_needed(name)
    del tensors[f"{DENSE}.{codes}"]
    tensors[f"{DENSE}.weight"] = twin[f"{DENSE}.weight"]
    message = refused(tensors, name, FORMATS[name].config)
    assert any(f"'{DENSE}.{suffix}'" in message for suffix in [*others, "g_idx"])


@pytest.mark.parametrize("plain", [EXPERT, EXPERT.replace("experts.1", "experts.0")], ids=["second", "first"])
@pytest.mark.parametrize("name", NAMES)
def test_experts_stored_unlike_each_other(name, plain, refused):
    tensors, _ = quantized.tensors_of(name, lambda layer: layer != plain)
    message = refused(tensors, name, FORMATS[name].config)
    assert re.search(r"experts\.1\.up_proj.*experts\.0\.up_proj", message)
    assert "the experts of a layer must be stored alike" in message


# Values, found while they are read

SCALES = {
    "zero": {"F32": 0.0, "F16": 0.0, "BF16": 0x0000, "F8_E4M3": 0x00},
    "negative": {"F32": -0.5, "F16": -0.5, "BF16": 0xBF00, "F8_E4M3": 0xB0},
    "nan": {"F32": np.nan, "F16": np.nan, "BF16": 0x7FC0, "F8_E4M3": 0x7F, "U8": 0xFF, "F8_E8M0": 0xFF},
    "inf": {"F32": np.inf, "F16": np.inf, "BF16": 0x7F80},
}
WORDS = {"zero": "the scale 0", "negative": "the scale -0.5", "nan": "the scale nan", "inf": "the scale inf"}


def scale_name(name: str) -> str:
    return next(s for s in ("weight_scale_inv", "weight_scale", "scales") if s in tensors_needed(name))


def with_scale(name: str, layer: str, kind: str) -> quantized.Stored:
    tensors, _ = quantized.tensors_of(name)
    dtype, array = tensors[f"{layer}.{scale_name(name)}"]
    array = array.copy()
    array.flat[0] = SCALES[kind][dtype]
    tensors[f"{layer}.{scale_name(name)}"] = (dtype, array)
    return tensors


BAD_SCALES = [
    (name, kind) for name in NAMES for kind, values in SCALES.items() if tensors_needed(name)[scale_name(name)] in values
]


@pytest.mark.parametrize("name, kind", BAD_SCALES)
def test_interpreter_refuses_scale(name, kind, refused):
    message = refused(with_scale(name, DENSE, kind), name, FORMATS[name].config, "interpret")
    assert f"'{DENSE}.{next(iter(tensors_needed(name)))}'" in message and WORDS[kind] in message


# A compile takes a second each, so that these are few: each type of scales, each way that scales lie.
@pytest.mark.parametrize(
    "name, kind, layer",
    [
        ("float-channel", "negative", DENSE),
        pytest.param("gptq-v1", "zero", EXPERT, marks=pytest.mark.sanitize),
        ("awq", "inf", DENSE),
        ("pack4", "zero", EXPERT),
        ("nvfp4", "nan", DENSE),
        ("mxfp4", "nan", EXPERT),
    ],
)
def test_scale(name, kind, layer, refused):
    message = refused(with_scale(name, layer, kind), name, FORMATS[name].config)
    assert f"'{layer}.{scale_name(name)}' holds {WORDS[kind]}" in message


# FP8 blocks go into the artifact as they are: nothing is multiplied on the way.
@pytest.mark.parametrize("kind", SCALES)
@pytest.mark.parametrize("name, layer", [("fp8-32x32", DENSE), ("float-block", EXPERT)])
def test_scale_beside_codes_that_are_kept(name, layer, kind, refused):
    message = refused(with_scale(name, layer, kind), name, FORMATS[name].config)
    assert f"'{layer}.{scale_name(name)}'" in message
    assert WORDS[kind] in message or (kind in ("nan", "inf") and "is not finite" in message)


def changed(name: str, layer: str, suffix: str, at: int, value) -> quantized.Stored:
    tensors, _ = quantized.tensors_of(name)
    dtype, array = tensors[f"{layer}.{suffix}"]
    array = array.copy()
    array.flat[at] = value
    tensors[f"{layer}.{suffix}"] = (dtype, array)
    return tensors


VALUES = {
    "NaN code": ("fp8-32x32", "weight", 3 * WIDTH + 5, 0x7F, "holds a NaN at [3, 5]"),
    "negative NaN code": ("float-channel", "weight", 0, 0xFF, "holds a NaN at [0, 0]"),
    "group beyond the last": ("gptq-v2-8bit-order", "g_idx", 7, 2, "holds the group 2 at [7], but there are 2 groups"),
    "negative group": ("gptq-v1", "g_idx", 0, -1, "holds the group -1 at [0], but there are 2 groups"),
    "another zero point": ("gptq-v1", "qzeros", -1, 0x77777577, "holds differing zero points, but the layer is declared"),
    "no zero point of v1 or v2": ("gptq-v1", "qzeros", 0, 0x77777771, "begins with the zero point 1, but the zero points"),
    "stored rows": ("pack4", "weight_shape", 0, 1, f"holds [1, {WIDTH}], expected [96, {WIDTH}]"),
    "stored columns": ("pack4-asymmetric", "weight_shape", 1, -WIDTH, f"holds [96, -{WIDTH}], expected [96, {WIDTH}]"),
    "zero global scale": ("nvfp4", "weight_global_scale", 0, 0, "holds 0, expected a positive number"),
    "negative global scale": ("nvfp4-modelopt", "weight_scale_2", 0, -2, "holds -2, expected a positive number"),
    "global scale NaN": ("nvfp4", "weight_global_scale", 0, np.nan, "holds nan, expected a positive number"),
    "infinite global scale": ("nvfp4-modelopt", "weight_scale_2", 0, np.inf, "holds inf, expected a positive number"),
}

@pytest.mark.sanitize
@pytest.mark.parametrize("case", VALUES)
def test_value(case, refused):
    name, suffix, at, value, sentence = VALUES[case]
    message = refused(changed(name, DENSE, suffix, at, value), name, FORMATS[name].config)
    assert f"'{DENSE}.{suffix}' {sentence}" in message


@pytest.mark.parametrize("case", VALUES)
def test_interpreter_refuses_value(case, refused):
    name, suffix, at, value, _ = VALUES[case]
    message = refused(changed(name, DENSE, suffix, at, value), name, FORMATS[name].config, "interpret")
    assert DENSE in message


# What config.json says of it


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_stored_as_declared(name, refused):
    _, twin = quantized.tensors_of(name)
    message = refused(twin, name, FORMATS[name].config)
    assert "config.json: 'quantization_config' declares " in message and "no layer is stored so: 'model.layers.0." in message


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_declared(name, refused):
    tensors, _ = quantized.tensors_of(name)
    assert re.search(r"tensor 'model\.layers\.0\.self_attn\.\w+\.weight' is ", refused(tensors, name, None))


# Stored, declared. Each pair is alike enough to be taken for one another.
OTHERS = [
    ("gptq-v1", "awq"), ("awq", "gptq-v1"), ("gptq-v1", "gptq-v1-order"), ("gptq-v1", "gptq-v1-8bit"),
    ("gptq-v1-no-index", "gptq-v2-8bit-order"), ("gptq-v1", "pack4"), ("pack4", "awq"), ("pack4", "pack4-asymmetric"),
    ("pack4-asymmetric", "pack4"), ("pack4", "pack4-channel"), ("pack4", "pack8"), ("fp8-32x32", "fp8-48x20"),
    ("fp8-32x32", "float-block"), ("float-channel", "float-tensor"), ("float-channel", "int8"), ("int8", "fp8-32x32"),
    ("nvfp4", "mxfp4"), ("mxfp4", "nvfp4"), ("nvfp4", "nvfp4-modelopt"), ("nvfp4-modelopt", "nvfp4"),
    ("mxfp8", "float-channel"), ("mxfp4", "pack4"),
]  # fmt: skip


@pytest.mark.parametrize("stored, declared", OTHERS)
def test_another_format_is_declared(stored, declared, refused):
    tensors, _ = quantized.tensors_of(stored)
    message = refused(tensors, stored, FORMATS[declared].config)
    assert re.search(r"'model\.layers\.\d\.\S+_proj\w*\.\w+' is (missing|[A-Z]\w+|\[[\d, ]+\])|unexpected tensor ", message)


def edited(name: str, **changes) -> dict:
    return FORMATS[name].config | changes


def edited_weights(name: str, **changes) -> dict:
    config = FORMATS[name].config
    scheme = config["config_groups"]["group_0"]
    return config | {"config_groups": {"group_0": scheme | {"weights": scheme["weights"] | changes}}}


TWO_GROUPS = FORMATS["pack4"].config["config_groups"] | {
    "group_1": FORMATS["pack8"].config["config_groups"]["group_0"]
}

# key -> configs in which it is the wrong one
CONFIGS = {
    "quant_method": [{"quant_method": "bogus"}, {}, {"quant_method": None}, {"quant_method": 4}],
    "fmt": [edited("fp8-32x32", fmt="e5m2")],
    "scale_fmt": [edited("fp8-32x32", scale_fmt="e3m0")],
    "weight_block_size": [edited("fp8-32x32", weight_block_size=size) for size in ([0, 32], [32], [1.5, 2], "32x32")],
    "bits": [edited("gptq-v1", bits=bits) for bits in (2, 3, 0, -4, "4")] + [edited("awq", bits=8)],
    "group_size": [edited(name, group_size=size) for name in ("gptq-v1", "awq") for size in (0, -2, 2**40, None)]
    + [edited("nvfp4-modelopt", group_size=32), edited_weights("pack4", group_size=0)]
    + [edited_weights("nvfp4", group_size=32), edited_weights("mxfp4", group_size=16)],
    "sym": [edited("gptq-v1", sym="yes")],
    "desc_act": [edited("gptq-v1", desc_act=1)],
    "checkpoint_format": [edited("gptq-v1", checkpoint_format="marlin")],
    "dynamic": [edited("gptq-v1", dynamic={"+:.*experts.*": {"bits": 8}})],
    "version": [edited("awq", version="gemv")],
    "zero_point": [edited("awq", zero_point=False)],
    "format": [edited("pack4", format="marlin-24")],
    "config_groups": [edited("pack4", config_groups={}), edited("pack4", config_groups=TWO_GROUPS)],
    "transform_config": [edited("pack4", transform_config={"config_groups": {}})],
    "num_bits": [edited_weights("pack4", num_bits=3), edited_weights("int8", num_bits=4)],
    "type": [edited_weights("pack4", type="float"), edited_weights("mxfp4", type="int")],
    "symmetric": [edited_weights("int8", symmetric=False)],
    "strategy": [edited_weights("pack4", strategy="tensor"), edited_weights("pack4", strategy="token")],
    "block_structure": [edited_weights("float-block", block_structure=[0, 32])],
    "actorder": [edited_weights("int8", actorder="group")],
    "quant_algo": [edited("nvfp4-modelopt", quant_algo="W4A8_AWQ")],
}


@pytest.mark.parametrize("key, quantization", [(key, config) for key, configs in CONFIGS.items() for config in configs])
def test_config(key, quantization, refused):
    message = refused({"lm_head.weight": ("F32", np.zeros((SMALL["vocab_size"], 64), np.float32))}, "gptq-v1", quantization)
    assert re.search(rf"config\.json: 'quantization_config\.([\w.]+\.)?{key}'", message)
