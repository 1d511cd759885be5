# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""The packers of quantized.py, held against a decoder that knows none of them.

The decoder says, for every `[out, in]`, in which tensor and bits its code, zero point and scale lie. It reads the
layers that the public packages stored (Formats/fixtures) as those packages do, so what it reads in ours is right.
"""

import json
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import quantized

(FIXTURES,) = Path(__file__).parent.parent.glob("*/Formats/fixtures")
FILES = sorted(FIXTURES.glob("*.safetensors"))


def numbers(dtype: str, array: np.ndarray) -> np.ndarray:
    """Scales as float64, from their definition."""
    if dtype in ("U8", "F8_E8M0"):
        return 2.0 ** (array.astype(np.float64) - 127)
    if dtype == "F8_E4M3":
        return e4m3(array)
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float64)


def small_float(code: np.ndarray, mantissa_bits: int, exponent_bits: int, bias: int) -> np.ndarray:
    """Sign, exponent, mantissa; without infinities and NaN."""
    code = code.astype(np.int64)
    mantissa = code & (2**mantissa_bits - 1)
    exponent = code >> mantissa_bits & (2**exponent_bits - 1)
    fraction = mantissa / 2**mantissa_bits + (exponent > 0)
    sign = 1 - 2 * (code >> (mantissa_bits + exponent_bits))
    return sign * fraction * 2.0 ** (np.maximum(exponent, 1) - bias)


def e4m3(code: np.ndarray) -> np.ndarray:
    return small_float(code, mantissa_bits=3, exponent_bits=4, bias=7)


def e2m1(code: np.ndarray) -> np.ndarray:
    return small_float(code, mantissa_bits=1, exponent_bits=2, bias=1)


def part(array: np.ndarray, at: tuple[np.ndarray, np.ndarray], place: np.ndarray, bits: int) -> np.ndarray:
    """Bits `bits * place` and up of the words at `at`."""
    return array.astype(np.int64)[at] >> bits * place & (2**bits - 1)


def decode(tensors: quantized.Stored, config: dict, shape: tuple[int, int]) -> np.ndarray:
    """float64 [out, in]."""
    method = config["quant_method"]
    scheme = {}
    if method == "compressed-tensors":
        scheme = next(iter(config["config_groups"].values()))["weights"]
        method = config["format"]
    out, width = shape
    i, j = np.indices(shape)
    array = {suffix: stored for suffix, (_, stored) in tensors.items()}
    number = {suffix: numbers(*entry) for suffix, entry in tensors.items() if "scale" in suffix}

    if method in ("gptq", "awq"):
        group_size = config["group_size"]
    else:
        group_size = scheme.get("group_size") or -1
    g = j // (width if group_size == -1 else group_size)

    if method == "gptq":
        bits = config["bits"]
        n = 32 // bits
        if "g_idx" in array:
            g = array["g_idx"][j]
        code = part(array["qweight"], (j // n, i), j % n, bits)
        stored = part(array["qzeros"], (g, i // n), i % n, bits)
        less = 1 if config.get("checkpoint_format", "gptq") == "gptq" else 0
        if config["sym"]:
            less = 2 ** (bits - 1) - stored[0, 0]
        return (code - (stored + less) % 2**bits) * number["scales"][g, i]
    if method == "awq":
        place = np.array([0, 4, 1, 5, 2, 6, 3, 7])[i % 8]
        code = part(array["qweight"], (j, i // 8), place, 4)
        return (code - part(array["qzeros"], (g, i // 8), place, 4)) * number["scales"][g, i]
    if method == "pack-quantized":
        bits = scheme["num_bits"]
        n = 32 // bits
        assert array["weight_shape"].tolist() == [out, width]
        code = part(array["weight_packed"], (i, j // n), j % n, bits)
        zero = 2 ** (bits - 1)
        if not scheme["symmetric"]:
            zero = part(array["weight_zero_point"], (i // n, g), i % n, bits)
        return (code - zero) * number["weight_scale"][i, g]
    if method == "int-quantized":
        return array["weight"][i, j] * number["weight_scale"][i, g]
    if method == "nvfp4-pack-quantized":
        code = e2m1(part(array["weight_packed"], (i, j // 2), j % 2, 4))
        return code * number["weight_scale"][i, j // 16] / number["weight_global_scale"][0]
    if method == "modelopt":
        code = e2m1(part(array["weight"], (i, j // 2), j % 2, 4))
        return code * number["weight_scale"][i, j // 16] * number["weight_scale_2"].reshape(())
    if method == "mxfp4-pack-quantized":
        return e2m1(part(array["weight_packed"], (i, j // 2), j % 2, 4)) * number["weight_scale"][i, j // 32]
    assert method in ("fp8", "float-quantized", "mxfp8-quantized")
    code = e4m3(array["weight"])
    scale = number.get("weight_scale_inv", number.get("weight_scale"))
    if scale.size == 1:
        return code * scale.reshape(())
    rows, cols = config.get("weight_block_size") or scheme.get("block_structure") or (1, group_size)
    return code * scale[i // rows, j // (width if cols == -1 else cols)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_decoder_reads_what_the_packages_wrote(path):
    tensors, metadata = checkpoints.read_safetensors(path)
    tensors = {name.removeprefix("m."): entry for name, entry in tensors.items()}
    _, expected = tensors.pop("expected")
    ours = decode(tensors, json.loads(metadata["quantization_config"]), expected.shape)
    if "nvfp4" in path.stem:  # the packages round the scale of a group before the product, and that once more
        np.testing.assert_allclose(ours, expected, rtol=2**-22)
    else:
        assert (ours.astype(np.float32) == expected).all()


def test_every_method_has_a_fixture():
    assert len(FILES) == 22


# Whole groups and blocks of every size, and ragged ones: of 32 and 48 rows, of 20, 64 and 128 columns.
@pytest.mark.parametrize("shape", [(64, 96), (40, 32), (128, 160)], ids=str)
@pytest.mark.parametrize("name", quantized.FORMATS)
def test_decoder_reads_what_the_packers_wrote(name, shape):
    x = checkpoints.uniform(name, "layer", shape).astype(np.float32)
    pack = quantized.FORMATS[name]
    tensors, weights = pack.pack(x)
    assert weights.dtype == np.float32 and weights.shape == shape
    assert (decode(tensors, pack.config, shape).astype(np.float32) == weights).all()
    # No code is farther off than one step of the coarsest: of 15 over both signs, or from 6 to the 8 that saturates.
    assert 0 < np.abs(weights - x).max() <= np.abs(x).max() * (2 / 8 if "fp4" in name else 2 / 15)


@pytest.mark.parametrize("name", ["gptq-v1-order", "gptq-v2-8bit-order"])
def test_act_order_mixes_columns(name):
    """Otherwise no test that reads such a checkpoint could tell g_idx from its absence."""
    tensors, _ = quantized.FORMATS[name].pack(checkpoints.uniform(name, "layer", (64, 96)).astype(np.float32))
    _, index = tensors["g_idx"]
    group = quantized.FORMATS[name].config["group_size"]
    assert (np.diff(index) < 0).any() and np.array_equal(np.sort(index), quantized.groups_of(96, group))
