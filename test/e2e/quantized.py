# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Tiny checkpoints in every quantized format that moec reads, and their twins in f32.

A `Format` is the `quantization_config` that declares it and a function from a matrix `[out, in]` to the tensors
that a linear layer is stored as. What they stand for comes with them, by the definition
`(code - zero) * scale * global`, rounded once to f32. Codes, zero points and scales are held unpacked, as
`[out, in]` and `[out, groups]`, until the last line of each function lays them out as its format does.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from checkpoints import (
    bf16_to_float,
    e4m3_table,
    expand_blocks,
    quantize_blocks,
    to_bf16_bits,
    to_e4m3,
    values,
    write_safetensors,
)
from sparse_checkpoint import listing

Stored = dict[str, tuple[str, np.ndarray]]  # name or suffix -> stored type, array as stored


class Layer(NamedTuple):
    tensors: Stored
    weights: np.ndarray  # float32 [out, in]


class Format(NamedTuple):
    config: dict
    pack: Callable[[np.ndarray], Layer]


def narrow(x: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """The array as stored, and the float32 values that it then has."""
    if dtype == "BF16":
        bits = to_bf16_bits(x)
        return bits, bf16_to_float(bits)
    stored = x.astype({"F32": np.float32, "F16": np.float16}[dtype])
    return stored, stored.astype(np.float32)


# Integers


class Integers(NamedTuple):
    codes: np.ndarray  # [out, in], from 0
    zeros: np.ndarray  # [out, groups]
    scales: np.ndarray  # [out, groups], as stored
    weights: np.ndarray


def groups_of(width: int, group: int) -> np.ndarray:
    """The group of each column; -1 means that a row is one group."""
    return np.arange(width) // (width if group == -1 else group)


def integers(x: np.ndarray, index: np.ndarray, bits: int, symmetric: bool, dtype: str) -> Integers:
    """To nearest; `index` is the group of each column, `dtype` the type of the scales."""
    groups = range(index.max() + 1)
    low = np.stack([np.minimum(x[:, index == group].min(1), 0) for group in groups], 1)
    high = np.stack([np.maximum(x[:, index == group].max(1), 0) for group in groups], 1)
    if symmetric:
        stored, scales = narrow(np.maximum(-low, high) / (2 ** (bits - 1) - 1), dtype)
        zeros = np.full(scales.shape, 2 ** (bits - 1))
    else:
        stored, scales = narrow((high - low) / (2**bits - 1), dtype)
        zeros = np.clip(np.rint(-low / scales), 0, 2**bits - 1).astype(np.int64)
    codes = np.clip(np.rint(x / scales[:, index]) + zeros[:, index], 0, 2**bits - 1).astype(np.int64)
    return Integers(codes, zeros, stored, (codes - zeros[:, index]).astype(np.float32) * scales[:, index])


def words(codes: np.ndarray, bits: int, axis: int, places: list[int] | None = None) -> tuple[str, np.ndarray]:
    """Int32 words of consecutive codes along `axis`: code i of a word is the places[i]-th from its lowest bits."""
    per_word = 32 // bits
    codes = np.moveaxis(codes, axis, -1)
    codes = np.pad(codes, ((0, 0), (0, -codes.shape[1] % per_word)))
    shifts = bits * np.array(places or range(per_word), np.uint32)
    parts = codes.reshape(codes.shape[0], -1, per_word).astype(np.uint32) << shifts
    packed = np.bitwise_or.reduce(parts, axis=2).view(np.int32)
    return "I32", np.ascontiguousarray(np.moveaxis(packed, -1, axis))


def gptq(bits: int, group: int, symmetric: bool, version: int, act_order: bool = False, index: bool = True) -> Format:
    """Version 1 stores zero points less 1. With `act_order` the columns of large weights share groups."""

    def pack(x: np.ndarray) -> Layer:
        group_of = groups_of(x.shape[1], group)
        if act_order:
            group_of[np.argsort(-np.abs(x).sum(0), kind="stable")] = group_of.copy()
        q = integers(x, group_of, bits, symmetric, "F16")
        tensors = {
            "qweight": words(q.codes.T, bits, axis=0),
            "qzeros": words((q.zeros.T - (version == 1)) % 2**bits, bits, axis=1),
            "scales": ("F16", q.scales.T),
        }
        if index:
            tensors["g_idx"] = ("I32", group_of.astype(np.int32))
        return Layer(tensors, q.weights)

    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric, "desc_act": act_order}
    return Format(config | {"checkpoint_format": "gptq_v2" if version == 2 else "gptq"}, pack)


def awq(group: int) -> Format:
    def pack(x: np.ndarray) -> Layer:
        q = integers(x, groups_of(x.shape[1], group), 4, False, "F16")
        places = [0, 4, 1, 5, 2, 6, 3, 7]
        tensors = {
            "qweight": words(q.codes.T, 4, axis=1, places=places),
            "qzeros": words(q.zeros.T, 4, axis=1, places=places),
            "scales": ("F16", q.scales.T),
        }
        return Layer(tensors, q.weights)

    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    return Format(config, pack)


def compressed_tensors(kind: str, **weights) -> dict:
    scheme = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "quantization_status": "compressed",
        "ignore": ["lm_head", "re:.*mlp[.]gate$"],
        "config_groups": {"group_0": scheme},
    }


def grouped(group: int) -> dict:
    """How compressed-tensors declares groups of columns."""
    return {"strategy": "channel"} if group == -1 else {"strategy": "group", "group_size": group}


def pack_quantized(bits: int, group: int, symmetric: bool) -> Format:
    def pack(x: np.ndarray) -> Layer:
        q = integers(x, groups_of(x.shape[1], group), bits, symmetric, "BF16")
        tensors = {
            "weight_packed": words(q.codes, bits, axis=1),
            "weight_scale": ("BF16", q.scales),
            "weight_shape": ("I64", np.array(x.shape, np.int64)),
        }
        if not symmetric:
            tensors["weight_zero_point"] = words(q.zeros, bits, axis=0)
        return Layer(tensors, q.weights)

    config = compressed_tensors("pack-quantized", num_bits=bits, type="int", symmetric=symmetric, **grouped(group))
    return Format(config, pack)


def int_quantized() -> Format:
    """W8A8: signed bytes and a scale for each row."""

    def pack(x: np.ndarray) -> Layer:
        q = integers(x, groups_of(x.shape[1], -1), 8, True, "BF16")
        return Layer({"weight": ("I8", (q.codes - 128).astype(np.int8)), "weight_scale": ("BF16", q.scales)}, q.weights)

    return Format(compressed_tensors("int-quantized", num_bits=8, type="int", symmetric=True, strategy="channel"), pack)


# FP8


def fp8(config: dict, scale: str, dtype: str, rows: int, cols: int, power_of_two: bool = False) -> Format:
    """One scale, called `scale` and of type `dtype`, for each `rows` x `cols` weights, where 0 means all of them."""

    def pack(x: np.ndarray) -> Layer:
        block = (rows or x.shape[0], cols or x.shape[1])
        codes, scales = quantize_blocks(x, block, power_of_two)
        if dtype in ("U8", "F8_E8M0"):
            stored = (np.log2(scales) + 127).astype(np.uint8)
        else:
            stored, scales = narrow(scales, dtype)
        weights = e4m3_table()[codes] * expand_blocks(scales, x.shape, block)
        if rows == 0 and cols == 0:
            stored = stored.reshape(1)
        return Layer({"weight": ("F8_E4M3", codes), scale: (dtype, stored)}, weights)

    return Format(config, pack)


def fp8_blocks(rows: int, cols: int, power_of_two: bool = False, dtype: str = "F32") -> Format:
    """As DeepSeek publishes them: scales that are powers of two are F32 all the same. Others store exponents."""
    config = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [rows, cols]}
    if power_of_two:
        config["scale_fmt"] = "ue8m0"
    return fp8(config, "weight_scale_inv", dtype, rows, cols, power_of_two)


def fp8_tensor() -> Format:
    """One scale for a matrix, beside the scale of its inputs, which weights do not need."""
    plain = fp8({"quant_method": "fp8", "activation_scheme": "static"}, "weight_scale", "F32", 0, 0)

    def pack(x: np.ndarray) -> Layer:
        layer = plain.pack(x)
        return Layer(layer.tensors | {"input_scale": ("F32", np.array([0.5], np.float32))}, layer.weights)

    return Format(plain.config, pack)


def float_quantized(dtype: str, rows: int, cols: int) -> Format:
    fields = {"strategy": "tensor"} if rows == 0 else {"strategy": "channel"}
    if rows and cols:
        fields = {"strategy": "block", "block_structure": [rows, cols]}
    config = compressed_tensors("float-quantized", num_bits=8, type="float", symmetric=True, **fields)
    return fp8(config, "weight_scale", dtype, rows, cols)


def mxfp8() -> Format:
    config = compressed_tensors("mxfp8-quantized", num_bits=8, type="float", symmetric=True, **grouped(32))
    return fp8(config, "weight_scale", "U8", 1, 32, power_of_two=True)


# FP4

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def to_e2m1(x: np.ndarray) -> np.ndarray:
    """To nearest, saturating."""
    code = np.abs(np.abs(x)[..., None] - E2M1).argmin(-1)
    return code + 8 * np.signbit(x)


def e2m1_values(codes: np.ndarray) -> np.ndarray:
    return np.where(codes & 8, -1, 1).astype(np.float32) * E2M1[codes & 7]


def nibbles(codes: np.ndarray) -> tuple[str, np.ndarray]:
    """Two codes to a byte, the first in its low half."""
    return "U8", (codes[:, 0::2] + 16 * codes[:, 1::2]).astype(np.uint8)


def row_groups(x: np.ndarray, group: int) -> np.ndarray:
    """The largest magnitude of each group of columns."""
    return np.abs(x).reshape(x.shape[0], -1, group).max(2)


def nvfp4(model_opt: bool) -> Format:
    """E4M3 scales for 16 codes, and one F32 for a matrix that divides, or in ModelOpt's files multiplies."""

    def pack(x: np.ndarray) -> Layer:
        largest = row_groups(x, 16)
        factor = np.float32(448 * 6) / largest.max()  # puts the largest scale at the largest E4M3 value
        stored = to_e4m3(largest * factor / 6)
        scales = np.repeat(e4m3_table()[stored], 16, axis=1)
        codes = to_e2m1(x * factor / scales)
        # Codes and their scales are short, so that their product in float32 is exact.
        product = (e2m1_values(codes) * scales).astype(np.float64)
        if model_opt:
            multiplier = np.float32(1) / factor
            tensors = {
                "weight": nibbles(codes),
                "weight_scale": ("F8_E4M3", stored),
                "weight_scale_2": ("F32", np.array(multiplier, np.float32)),
                "input_scale": ("F32", np.array(0.5, np.float32)),
            }
            return Layer(tensors, (product * multiplier).astype(np.float32))
        tensors = {
            "weight_packed": nibbles(codes),
            "weight_scale": ("F8_E4M3", stored),
            "weight_global_scale": ("F32", np.array([factor], np.float32)),
            "input_global_scale": ("F32", np.array([2], np.float32)),
        }
        return Layer(tensors, (product / factor).astype(np.float32))

    if model_opt:
        return Format({"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}, pack)
    fields = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16}
    return Format(compressed_tensors("nvfp4-pack-quantized", **fields), pack)


def mxfp4() -> Format:
    def pack(x: np.ndarray) -> Layer:
        exponents = np.floor(np.log2(row_groups(x, 32))) - 2  # the largest code is 1.5 * 2^2
        scales = np.repeat(np.exp2(exponents), 32, axis=1).astype(np.float32)
        codes = to_e2m1(x / scales)
        tensors = {"weight_packed": nibbles(codes), "weight_scale": ("U8", (exponents + 127).astype(np.uint8))}
        return Layer(tensors, e2m1_values(codes) * scales)

    return Format(compressed_tensors("mxfp4-pack-quantized", num_bits=4, type="float", symmetric=True, **grouped(32)), pack)


FORMATS = {
    "fp8-128x128": fp8_blocks(128, 128),
    "fp8-32x32": fp8_blocks(32, 32),
    "fp8-48x20": fp8_blocks(48, 20),
    "fp8-ue8m0": fp8_blocks(32, 32, power_of_two=True),
    "fp8-e8m0": fp8_blocks(32, 32, power_of_two=True, dtype="F8_E8M0"),
    "fp8-e8m0-bytes": fp8_blocks(48, 20, power_of_two=True, dtype="U8"),
    "fp8-tensor": fp8_tensor(),
    "float-block": float_quantized("BF16", 32, 32),
    "float-channel": float_quantized("BF16", 1, 0),
    "float-tensor": float_quantized("F32", 0, 0),
    "mxfp8": mxfp8(),
    "gptq-v1": gptq(4, 32, symmetric=True, version=1),
    "gptq-v1-no-index": gptq(4, -1, symmetric=False, version=1, index=False),
    "gptq-v1-order": gptq(4, 16, symmetric=True, version=1, act_order=True),
    "gptq-v1-8bit": gptq(8, 128, symmetric=False, version=1),
    "gptq-v2": gptq(4, 64, symmetric=False, version=2),
    "gptq-v2-8bit-order": gptq(8, 32, symmetric=False, version=2, act_order=True),
    "awq": awq(32),
    "awq-row": awq(-1),
    "pack4": pack_quantized(4, 32, symmetric=True),
    "pack4-channel": pack_quantized(4, -1, symmetric=True),
    "pack4-asymmetric": pack_quantized(4, 16, symmetric=False),
    "pack8": pack_quantized(8, 32, symmetric=True),
    "pack8-asymmetric": pack_quantized(8, -1, symmetric=False),
    "int8": int_quantized(),
    "nvfp4": nvfp4(model_opt=False),
    "nvfp4-modelopt": nvfp4(model_opt=True),
    "mxfp4": mxfp4(),
}

# Checkpoints

PARITY = Path(__file__).parent / "parity" / "v3" / "config.json"

# Every width of inputs is whole groups of 32; 96 is one and a half of 64, 48 outputs are one and a half blocks of 32.
SMALL = {
    "num_hidden_layers": 2, "num_nextn_predict_layers": 0, "vocab_size": 96, "n_routed_experts": 4, "n_group": 2,
    "topk_group": 1, "num_experts_per_tok": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
}  # fmt: skip
# Widths around 128: one block and a ragged one, in both directions.
WIDE = SMALL | {
    "hidden_size": 144, "intermediate_size": 136, "moe_intermediate_size": 40, "kv_lora_rank": 136, "q_lora_rank": 132,
}  # fmt: skip


def config_of(name: str, quantization: dict | None = None) -> dict:
    """config.json of the model whose layers are in the format `name`, as `quantization` declares them."""
    config = json.loads(PARITY.read_text()) | (WIDE if name == "fp8-128x128" else SMALL)
    return config | ({} if quantization is None else {"quantization_config": quantization})


def every_layer(layer: str) -> bool:
    return True


def tensors_of(name: str, quantizes: Callable[[str], bool] = every_layer) -> tuple[Stored, Stored]:
    """The model with the linear layers that `quantizes` picks by name in the format `name`, and its twin: the same
    values in F32."""
    quantized: Stored = {}
    twin: Stored = {}
    for tensor in listing(config_of(name)):
        x = values("quantized", tensor.name, tensor.shape)
        layer = tensor.name.removesuffix(".weight")
        if "_proj" in layer and quantizes(layer):
            stored, x = FORMATS[name].pack(x)
            quantized |= {f"{layer}.{suffix}": entry for suffix, entry in stored.items()}
        else:
            quantized[tensor.name] = ("F32", x)
        twin[tensor.name] = ("F32", x)
    return quantized, twin


def write(directory: Path, config: dict, tensors: Stored) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    write_safetensors(directory / "model.safetensors", tensors)
    return directory


def build(directory: Path, name: str, quantizes: Callable[[str], bool] = every_layer) -> tuple[Path, Path]:
    """Checkpoint directories of the model and of its twin."""
    quantized, twin = tensors_of(name, quantizes)
    declared = config_of(name, FORMATS[name].config)
    return write(directory / "quantized", declared, quantized), write(directory / "twin", config_of(name), twin)
