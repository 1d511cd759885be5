#!/usr/bin/env python3
# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Makes the files in fixtures/ from the public packages that define the formats.

    pip install compressed-tensors==0.20.0 gguf==0.19.0 numpy==2.4.6 torch==2.13.0
    python make_fixtures.py

Each safetensors file holds one layer `m`, as its tool stores it, `m.expected`, the F32 weights that the package
decodes from it, and the `quantization_config` in its metadata. GPTQ and AWQ layers are packed here, by the rules of
AutoGPTQ and AutoAWQ, one integer at a time; what they decode to follows from the integers before packing.
`blocks.gguf` holds each tensor twice: stored in its type, and decoded by the gguf package as `<name>.expected`.
"""

import json
import struct
from pathlib import Path

import gguf
import numpy as np
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

FIXTURES = Path(__file__).parent / "fixtures"
DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
}


def write(name: str, tensors: dict[str, torch.Tensor], config: dict) -> None:
    """One layer as a safetensors file."""
    header: dict = {"__metadata__": {"quantization_config": json.dumps(config)}}
    data = b""
    for key, tensor in tensors.items():
        content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        header["m." + key] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (FIXTURES / f"{name}.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def groups_of(weight: torch.Tensor, args: QuantizationArgs) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest weight of each group that shares a scale."""
    out, width = weight.shape
    if args.strategy == "tensor":
        return weight.min().reshape(1), weight.max().reshape(1)
    if args.strategy == "block":
        rows, cols = args.block_structure
        padded = torch.nn.functional.pad(weight, (0, -width % cols, 0, -out % rows))
        blocks = padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // cols, cols)
        return blocks.amin((1, 3)), blocks.amax((1, 3))
    size = width if args.strategy == "channel" else args.group_size
    grouped = weight.reshape(out, width // size, size)
    return grouped.amin(-1), grouped.amax(-1)


def compressed_tensors(name: str, kind: str, out: int, width: int, scale_type=torch.float32, **fields) -> None:
    """A layer quantized, compressed and decompressed by the compressed-tensors package."""
    args = QuantizationArgs(**fields)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=kind)
    weight = torch.randn(out, width)
    low, high = groups_of(weight, args)
    global_scale = generate_gparam(low.amin(), high.amax()) if kind.startswith("nvfp4") else None
    scale, zero = calculate_qparams(low, high, args, global_scale=global_scale)
    state = {"weight": weight, "weight_scale": scale.to(scale_type), "weight_zero_point": zero.to(torch.int8)}
    if global_scale is not None:
        state["weight_global_scale"] = global_scale
    compressor = BaseCompressor.get_value_from_registry(kind)
    stored = compressor.compress(state, scheme)

    # The same in F32, where the package would round to the type of the scales.
    exact = dict(stored)
    if "fp4" in kind:
        codes = unpack_fp4_from_uint8(stored["weight_packed"], out, width, dtype=torch.float32)
        decoded = compressor._decompress_scale(stored["weight_scale"], torch.float32)
        expected = dequantize(codes, decoded, args=args, global_scale=global_scale, dtype=torch.float32)
    else:
        if stored["weight_scale"].dtype != torch.uint8:
            exact["weight_scale"] = stored["weight_scale"].to(torch.float32)
        expected = compressor.decompress(exact, scheme)["weight"].to(torch.float32)
    config = QuantizationConfig(config_groups={"group_0": scheme}, format=kind, quantization_status="compressed")
    write(name, {**stored, "expected": expected}, json.loads(config.model_dump_json()))


def pack_words(codes: np.ndarray, bits: int, axis: int, order: list[int]) -> torch.Tensor:
    """Integers along `axis` to int32 words: place p of a word takes its integer `order[p]`."""
    codes = np.moveaxis(codes, axis, 0).astype(np.int64)
    per_word = 32 // bits
    codes = np.pad(codes, ((0, -codes.shape[0] % per_word), (0, 0)))
    words = np.zeros((codes.shape[0] // per_word, codes.shape[1]), np.int64)
    for place, which in enumerate(order):
        words |= codes[which::per_word] << (bits * place)
    return torch.from_numpy(np.moveaxis(words, 0, axis).astype(np.uint32).view(np.int32).copy())


def int_layer(out: int, width: int, bits: int, group: int, index: np.ndarray, symmetric: bool):
    """Random codes [in, out], zero points and scales [groups, out], and the weights [out, in] that they stand for."""
    groups = 1 if group == -1 else -(-width // group)
    codes = np.random.randint(0, 2**bits, (width, out))
    zeros = np.random.randint(0, 2**bits, (groups, out))
    if symmetric:
        zeros[:] = 2 ** (bits - 1)
    scales = np.random.uniform(0.001, 0.1, (groups, out)).astype(np.float16)
    weights = (codes - zeros[index]).astype(np.float32) * scales[index].astype(np.float32)
    return codes, zeros, scales, weights.T


def gptq(name: str, out: int, width: int, group: int, symmetric: bool, version: int, declared: str, bits: int = 4,
         act_order: bool = False, with_index: bool = True) -> None:
    """A GPTQ layer; version 1 stores each zero point less 1, and 15 for 0."""
    index = np.arange(width) // (width if group == -1 else group)
    if act_order:
        np.random.shuffle(index)
    codes, zeros, scales, weights = int_layer(out, width, bits, group, index, symmetric)
    natural = list(range(32 // bits))
    tensors = {
        "qweight": pack_words(codes, bits, 0, natural),
        "qzeros": pack_words((zeros - (version == 1)) % 2**bits, bits, 1, natural),
        "scales": torch.from_numpy(scales),
    }
    if with_index:
        tensors["g_idx"] = torch.from_numpy(index.astype(np.int32))
    tensors["expected"] = torch.from_numpy(weights.copy())
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric, "desc_act": act_order}
    if declared:
        config["checkpoint_format"] = declared
    write(name, tensors, config)


def awq(name: str, out: int, width: int, group: int) -> None:
    """An AWQ layer of the gemm version."""
    index = np.arange(width) // (width if group == -1 else group)
    codes, zeros, scales, weights = int_layer(out, width, 4, group, index, False)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    tensors = {
        "qweight": pack_words(codes, 4, 1, order),
        "qzeros": pack_words(zeros, 4, 1, order),
        "scales": torch.from_numpy(scales),
        "expected": torch.from_numpy(weights.copy()),
    }
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    write(name, tensors, config)


def modelopt() -> None:
    """ModelOpt's NVFP4: the compressed-tensors layer under its own names, with the reciprocal global scale."""
    out, width = 6, 48
    packed = torch.randint(0, 256, (out, width // 2), dtype=torch.uint8)
    scale = (torch.rand(out, width // 16) * 400 + 1).to(torch.float8_e4m3fn)
    second = torch.tensor(0.00123)
    codes = unpack_fp4_from_uint8(packed, out, width, dtype=torch.float32)
    expected = codes * scale.to(torch.float32).repeat_interleave(16, 1) * second
    tensors = {"weight": packed, "weight_scale": scale, "weight_scale_2": second,
               "input_scale": torch.tensor(0.5), "expected": expected}
    write("modelopt-nvfp4", tensors, {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16})


def deepseek_fp8() -> None:
    """DeepSeek's blocks with ragged edges; torch decodes the codes."""
    out, width = 11, 21
    codes = (torch.randn(out, width) * 100).to(torch.float8_e4m3fn)
    scale = torch.rand(3, 3) * 0.01 + 1e-4
    spread = scale.repeat_interleave(4, 0).repeat_interleave(8, 1)[:out, :width]
    tensors = {"weight": codes, "weight_scale_inv": scale, "expected": codes.to(torch.float32) * spread}
    write("fp8-block", tensors,
          {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [4, 8]})


def gguf_blocks() -> None:
    """Every block type; the K types from random bytes with finite scales, as the package does not encode them."""
    types = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(FIXTURES / "blocks.gguf", "test")
    writer.add_string("general.name", "blocks")
    writer.add_array("test.numbers", [1, 2, 3])
    writer.add_array("test.words", ["one", "two"])
    writer.add_bool("test.yes", True)
    writer.add_int8("test.negative", -5)
    writer.add_float32("test.float", 0.25)
    for kind in (types.F32, types.F16, types.BF16, types.Q8_0, types.Q4_0, types.Q4_K, types.Q6_K):
        block, size = gguf.GGML_QUANT_SIZES[kind]
        shape = (2, 3, 64) if kind is types.Q8_0 else (2, max(block, 64))
        if kind in (types.Q4_K, types.Q6_K):
            stored = np.random.randint(0, 256, (shape[0], size), dtype=np.uint8)
            halves = np.random.uniform(-0.01, 0.01, (shape[0], 2)).astype(np.float16).view(np.uint8)
            if kind is types.Q4_K:
                stored[:, :4] = halves
            else:
                stored[:, -2:] = halves[:, :2]
        else:
            stored = gguf.quants.quantize(np.random.randn(*shape).astype(np.float32), kind)
        decoded = gguf.quants.dequantize(stored, kind).reshape(shape).astype(np.float32)
        writer.add_tensor(kind.name, stored, raw_dtype=kind)
        writer.add_tensor(kind.name + ".expected", decoded)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    np.random.seed(7)
    torch.manual_seed(7)
    FIXTURES.mkdir(exist_ok=True)
    integer = dict(type="int", symmetric=True)
    floating = dict(type="float", symmetric=True)
    bf16 = torch.bfloat16
    pack = "pack-quantized"
    compressed_tensors("ct-pack4-group", pack, 10, 64, bf16, num_bits=4, strategy="group", group_size=32, **integer)
    compressed_tensors("ct-pack4-channel", pack, 7, 45, num_bits=4, strategy="channel", **integer)
    compressed_tensors("ct-pack4-asymmetric", pack, 13, 48, num_bits=4, strategy="group", group_size=16, type="int",
                       symmetric=False)
    compressed_tensors("ct-pack8-asymmetric", pack, 6, 30, num_bits=8, strategy="channel", type="int",
                       symmetric=False)
    compressed_tensors("ct-pack8-group", pack, 5, 32, bf16, num_bits=8, strategy="group", group_size=16, **integer)
    compressed_tensors("ct-int8-channel", "int-quantized", 9, 40, bf16, num_bits=8, strategy="channel", **integer)
    compressed_tensors("ct-float-channel", "float-quantized", 9, 40, bf16, num_bits=8, strategy="channel", **floating)
    compressed_tensors("ct-float-tensor", "float-quantized", 9, 40, num_bits=8, strategy="tensor", **floating)
    compressed_tensors("ct-float-block", "float-quantized", 10, 21, num_bits=8, strategy="block",
                       block_structure=[4, 8], **floating)
    compressed_tensors("ct-nvfp4", "nvfp4-pack-quantized", 6, 48, num_bits=4, strategy="tensor_group", group_size=16,
                       scale_dtype=torch.float8_e4m3fn, zp_dtype=torch.float8_e4m3fn, **floating)
    compressed_tensors("ct-mxfp4", "mxfp4-pack-quantized", 6, 64, num_bits=4, strategy="group", group_size=32,
                       scale_dtype=torch.uint8, zp_dtype=torch.uint8, **floating)
    compressed_tensors("ct-mxfp8", "mxfp8-quantized", 6, 64, num_bits=8, strategy="group", group_size=32,
                       scale_dtype=torch.uint8, zp_dtype=torch.uint8, **floating)
    gptq("gptq-v1", 16, 48, 16, symmetric=False, version=1, declared="", with_index=False)
    gptq("gptq-v1-symmetric", 16, 40, 16, symmetric=True, version=1, declared="gptq")
    gptq("gptq-v1-row", 24, 32, -1, symmetric=False, version=1, declared="gptq")
    gptq("gptq-v2-undeclared", 16, 32, 16, symmetric=True, version=2, declared="gptq")
    gptq("gptq-v2-order", 16, 48, 16, symmetric=False, version=2, declared="gptq_v2", act_order=True)
    gptq("gptq-8bit", 12, 32, 16, symmetric=False, version=1, declared="gptq", bits=8)
    awq("awq", 24, 48, 16)
    awq("awq-row", 16, 40, -1)
    modelopt()
    deepseek_fp8()
    gguf_blocks()


if __name__ == "__main__":
    main()
