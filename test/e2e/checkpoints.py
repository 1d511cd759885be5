# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Random checkpoints that are the same everywhere: from a list of tensors, NumPy and a name.

A parity model in the tree is `config.json`, `tensors.json` (names, types and shapes as the public
implementation saved them) and `reference.safetensors` (what it computed). The weights themselves are
made again here: each tensor's values follow from the model's and the tensor's name alone, through a
bit generator whose stream NumPy guarantees.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np

BLOCK_DTYPES = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1}


def uniform(model: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float64 in [-sqrt(3), sqrt(3)): mean 0, variance 1."""
    seed = int.from_bytes(hashlib.sha256(f"{model}/{name}".encode()).digest()[:16], "little")
    raw = np.random.PCG64(seed).random_raw(int(np.prod(shape)))
    return ((raw >> np.uint64(40)).astype(np.float64) / 2**23 - 1.0).reshape(shape) * np.sqrt(3.0)


def values(model: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 weights of a size that keeps activations near 1 and logits near 10."""
    noise = uniform(model, name, shape)
    if name.endswith("e_score_correction_bias"):
        result = 0.4 * noise  # both signs: a group masked with 0 instead of -inf would show
    elif len(shape) == 1:
        result = 1.0 + 0.15 * noise
    elif name.endswith("embed_tokens.weight"):
        result = noise
    elif name.endswith("lm_head.weight"):
        result = noise * 4.0 / np.sqrt(shape[-1])
    elif name.endswith("mlp.gate.weight"):
        result = noise * 2.0 / np.sqrt(shape[-1])
    else:
        result = noise * 1.2 / np.sqrt(shape[-1])
    return result.astype(np.float32)


def to_bf16_bits(x: np.ndarray) -> np.ndarray:
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def bf16_to_float(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def e4m3_table() -> np.ndarray:
    """The 256 values of float8_e4m3fn."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    magnitude = np.where(exponent == 0, mantissa / 8.0 * 2.0**-6, (1 + mantissa / 8.0) * 2.0 ** (exponent - 7.0))
    magnitude[(code & 0x7F) == 0x7F] = np.nan
    return np.where(code & 0x80, -magnitude, magnitude).astype(np.float32)


def to_e4m3(x: np.ndarray) -> np.ndarray:
    """To nearest, ties to even codes, saturating."""
    table = e4m3_table()[:127].astype(np.float64)
    magnitude = np.minimum(np.abs(x.astype(np.float64)), 448.0)
    above = np.clip(np.searchsorted(table, magnitude), 1, 126)
    low, high = table[above - 1], table[above]
    middle = (low + high) / 2
    take_high = (magnitude > middle) | ((magnitude == middle) & (above % 2 == 0))
    code = np.where(magnitude == 0, 0, np.where(take_high, above, above - 1))
    return (code | (np.signbit(x).astype(np.int64) << 7)).astype(np.uint8)


def expand_blocks(scale: np.ndarray, shape: tuple[int, int], block: tuple[int, int]) -> np.ndarray:
    return np.repeat(np.repeat(scale, block[0], 0), block[1], 1)[: shape[0], : shape[1]]


def quantize_blocks(x: np.ndarray, block: tuple[int, int], ue8m0: bool) -> tuple[np.ndarray, np.ndarray]:
    """(codes uint8, scale float32 to multiply by), as DeepSeek's FP8 checkpoints have them."""
    rows, cols = -(-x.shape[0] // block[0]), -(-x.shape[1] // block[1])
    scale = np.empty((rows, cols), np.float32)
    for i in range(rows):
        for j in range(cols):
            part = x[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
            scale[i, j] = np.float32(max(float(np.abs(part).max()), 1e-4)) / np.float32(448.0)
    if ue8m0:
        scale = np.exp2(np.ceil(np.log2(scale.astype(np.float64)))).astype(np.float32)
    return to_e4m3(x / expand_blocks(scale, x.shape, block)), scale


def expand_families(tensors: dict) -> dict:
    """`{"a.{0..15}.b": spec}` stands for sixteen tensors."""
    result = {}
    for name, spec in tensors.items():
        family = re.search(r"\{(\d+)\.\.(\d+)\}", name)
        if not family:
            result[name] = spec
            continue
        for index in range(int(family[1]), int(family[2]) + 1):
            result[name[: family.start()] + str(index) + name[family.end() :]] = spec
    return result


def fold_families(tensors: dict) -> dict:
    """The inverse of `expand_families` for expert indices."""
    counts: dict[str, int] = {}
    specs = {}
    for name, spec in tensors.items():
        pattern = re.sub(r"\.experts\.\d+\.", ".experts.{}.", name)
        counts[pattern] = counts.get(pattern, 0) + 1
        specs[pattern] = spec
    return {p.replace("{}", "{0..%d}" % (counts[p] - 1)): specs[p] for p in specs}


def tensors_of(model_dir: Path) -> dict[str, tuple[str, np.ndarray, np.ndarray]]:
    """name -> (stored type, bytes as stored, float32 values) of a parity model."""
    config = json.loads((model_dir / "config.json").read_text())
    quantization = config.get("quantization_config") or {}
    block = tuple(quantization.get("weight_block_size", (128, 128)))
    result = {}
    for name, (dtype, *shape) in expand_families(json.loads((model_dir / "tensors.json").read_text())).items():
        if name.endswith("_scale_inv"):
            continue  # comes with its weight
        x = values(model_dir.name, name, tuple(shape))
        if dtype == "F32":
            result[name] = (dtype, x, x)
        elif dtype == "F16":
            half = x.astype(np.float16)
            result[name] = (dtype, half.view(np.uint16), half.astype(np.float32))
        elif dtype == "BF16":
            bits = to_bf16_bits(x)
            result[name] = (dtype, bits, bf16_to_float(bits))
        else:
            codes, scale = quantize_blocks(x, block, quantization.get("scale_fmt") == "ue8m0")
            result[name] = (dtype, codes, e4m3_table()[codes] * expand_blocks(scale, x.shape, block))
            result[name + "_scale_inv"] = ("F32", scale, scale)
    return result


def write_safetensors(path: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> None:
    """Stored type by name, because NumPy has neither bf16 nor fp8."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(data.shape), "data_offsets": [offset, offset + data.nbytes]}
        offset += data.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, data in tensors.values():
            file.write(np.ascontiguousarray(data).tobytes())


def read_safetensors(path: Path) -> tuple[dict[str, tuple[str, np.ndarray]], dict[str, str]]:
    """The tensors as `write_safetensors` takes them, and the metadata. Types that NumPy lacks come as their bits."""
    bits = {"BF16": "<u2", "F8_E4M3": "u1", "F8_E8M0": "u1"}
    raw = path.read_bytes()
    begin = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:begin])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        first, last = (begin + offset for offset in entry["data_offsets"])
        kind = entry["dtype"]
        own = f"<{kind[0].lower()}{int(kind[1:]) // 8}" if kind not in bits else bits[kind]
        tensors[name] = (kind, np.frombuffer(raw[first:last], own).reshape(entry["shape"]))
    return tensors, metadata


def build(model_dir: Path, out: Path) -> Path:
    """Writes the parity model as a checkpoint directory that moec compiles."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text((model_dir / "config.json").read_text())
    write_safetensors(
        out / "model.safetensors", {name: (dtype, data) for name, (dtype, data, _) in tensors_of(model_dir).items()}
    )
    return out


def with_vocabulary(model_dir: Path, out: Path, vocab: int) -> Path:
    """A copy of a bf16 checkpoint without its MTP layer, with random embeddings of another vocabulary."""
    shutil.copytree(model_dir, out)
    config = json.loads((model_dir / "config.json").read_text())
    old, layers = config["vocab_size"], config["num_hidden_layers"]
    (out / "config.json").write_text(json.dumps(config | {"vocab_size": vocab, "num_nextn_predict_layers": 0}))
    raw = (model_dir / "model.safetensors").read_bytes()
    begin = 8 + int.from_bytes(raw[:8], "little")
    tensors = {}
    for name, entry in json.loads(raw[8:begin]).items():
        if name == "__metadata__" or name.startswith(f"model.layers.{layers}."):
            continue
        first, last = entry["data_offsets"]
        bits = np.uint32 if entry["dtype"] == "F32" else np.uint16
        data = np.frombuffer(raw[begin + first : begin + last], bits).reshape(entry["shape"])
        if entry["shape"][0] == old:
            width = entry["shape"][1]
            data = np.random.PCG64(len(tensors)).random_raw(vocab * width // 4).view(np.uint16).reshape(vocab, width)
            data = (data & 0x807F) | 0x3F80  # bf16 near 1, both signs
        tensors[name] = (entry["dtype"], data)
    write_safetensors(out / "model.safetensors", tensors)
    return out


if __name__ == "__main__":
    import sys

    if len(sys.argv) != 3:
        sys.exit("usage: checkpoints.py PARITY_MODEL_DIR OUT_DIR")
    build(Path(sys.argv[1]), Path(sys.argv[2]))


def move_into_norms(model_dir: Path, out: Path) -> Path:
    """The same function, exactly: factors of 1/2, 1 and 2 are taken from the columns of bf16 matrices and put into the
    norms before them, but for those of the latents that a cache holds."""
    shutil.copytree(model_dir, out)
    tensors, _ = read_safetensors(out / "model.safetensors")
    raw = {name: (dtype, data.copy()) for name, (dtype, data) in tensors.items()}
    random = np.random.default_rng(1)
    readers = {
        "input_layernorm": r"self_attn\.(q_proj|q_a_proj|kv_a_proj_with_mqa)",
        "self_attn.q_a_layernorm": r"self_attn\.q_b_proj",
        "post_attention_layernorm": r"mlp\..*(gate|gate_proj|up_proj)",
    }
    moves = {"model.norm.weight": re.compile(r"lm_head\.weight")}
    for layer in range(json.loads((out / "config.json").read_text())["num_hidden_layers"]):
        for norm, pattern in readers.items():
            prefix = f"model.layers.{layer}."
            moves[f"{prefix}{norm}.weight"] = re.compile(re.escape(prefix) + pattern + r"\.weight")
    for norm, pattern in moves.items():
        if norm not in raw:
            continue
        factors = 2.0 ** random.integers(-1, 2, raw[norm][1].shape)
        for name in [norm, *filter(pattern.fullmatch, raw)]:
            dtype, bits = raw[name]
            assert dtype == "BF16"
            moved = bf16_to_float(bits) * (factors if name == norm else 1 / factors)
            raw[name] = (dtype, to_bf16_bits(moved))
            assert (bf16_to_float(raw[name][1]) == moved).all()
    write_safetensors(out / "model.safetensors", raw)
    return out
