# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Checkpoints of any size that take almost no disk: real headers, the real shard layout, holes for data.

    python test/e2e/sparse_checkpoint.py --config config.json --shards 163 --data-layers 3 --data-experts 16 OUT

Names, shapes and types of the tensors follow from config.json of a `deepseek_v2`, `deepseek_v3`,
`deepseek_v32`, `kimi_k2` or `deepseek_v4` model by a listing of their own, written from the public description
of the checkpoints and not from the compiler's: the tests hold the two against each other.

Norm weights are ones. Data is random for the layers of `--data-layers` (see `RandomData` for its statistics; not
for deepseek_v4), there also for the first `--data-experts` experts; the other experts of such a layer have block
scales but zero weights. All other data are holes, which read as zeros: zero weights, and in FP8 also zero scales,
which no compiler needs to accept.
"""

import argparse
import hashlib
import json
import math
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from statistics import NormalDist
from typing import BinaryIO, NamedTuple

import numpy as np
from checkpoints import to_bf16_bits, to_e4m3

BYTES = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "F8_E8M0": 1, "I8": 1, "I64": 8}
PLAIN = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


class Tensor(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return BYTES[self.dtype] * self.elements

    @property
    def layer(self) -> int | None:
        """The N of `model.layers.N.`, in V4 of `layers.N.`"""
        found = re.match(r"(?:model\.)?layers\.(\d+)\.", self.name)
        return int(found[1]) if found else None

    @property
    def expert(self) -> int | None:
        found = re.search(r"\.experts\.(\d+)\.", self.name)
        return int(found[1]) if found else None


def listing(config: dict) -> Iterator[Tensor]:
    """Every tensor of a checkpoint, in the order of its shards: the layers, what follows them, the layers
    for multi-token prediction. A weight stands before its scales."""
    kind = config["model_type"]
    if kind == "deepseek_v4":
        yield from listing_v4(config)
        return
    if kind not in ("deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2"):
        sys.exit(f"sparse_checkpoint.py: model type '{kind}' is not known")
    hidden, vocab, heads = config["hidden_size"], config["vocab_size"], config["num_attention_heads"]
    latent, rope = config["kv_lora_rank"], config["qk_rope_head_dim"]
    key, value = config["qk_nope_head_dim"], config["v_head_dim"]
    layers, experts = config["num_hidden_layers"], config.get("n_routed_experts") or 0
    plain = PLAIN[config.get("torch_dtype") or config.get("dtype") or "bfloat16"]
    quantization = config.get("quantization_config") or {}
    rows, cols = quantization.get("weight_block_size", (128, 128))
    norms = "F32" if kind == "deepseek_v32" else plain

    def vector(name: str, size: int, dtype: str = norms) -> Iterator[Tensor]:
        yield Tensor(name, dtype, (size,))

    def matrix(name: str, out: int, into: int) -> Iterator[Tensor]:
        yield Tensor(name + ".weight", plain, (out, into))

    def linear(name: str, out: int, into: int) -> Iterator[Tensor]:
        if not quantization:
            yield from matrix(name, out, into)
            return
        yield Tensor(name + ".weight", "F8_E4M3", (out, into))
        yield Tensor(name + ".weight_scale_inv", "F32", (-(-out // rows), -(-into // cols)))

    def swiglu(name: str, width: int) -> Iterator[Tensor]:
        yield from linear(name + "gate_proj", width, hidden)
        yield from linear(name + "up_proj", width, hidden)
        yield from linear(name + "down_proj", hidden, width)

    def decoder(prefix: str, mixture: bool) -> Iterator[Tensor]:
        attention, mlp = prefix + "self_attn.", prefix + "mlp."
        if config.get("q_lora_rank"):
            yield from linear(attention + "q_a_proj", config["q_lora_rank"], hidden)
            yield from vector(attention + "q_a_layernorm.weight", config["q_lora_rank"])
            yield from linear(attention + "q_b_proj", heads * (key + rope), config["q_lora_rank"])
        else:
            yield from linear(attention + "q_proj", heads * (key + rope), hidden)
        yield from linear(attention + "kv_a_proj_with_mqa", latent + rope, hidden)
        yield from vector(attention + "kv_a_layernorm.weight", latent)
        yield from linear(attention + "kv_b_proj", heads * (key + value), latent)
        yield from linear(attention + "o_proj", hidden, heads * value)
        if kind == "deepseek_v32":
            indexer, index_heads, index_key = attention + "indexer.", config["index_n_heads"], config["index_head_dim"]
            yield from linear(indexer + "wq_b", index_heads * index_key, config["q_lora_rank"])
            yield from linear(indexer + "wk", index_key, hidden)
            yield from vector(indexer + "k_norm.weight", index_key)
            yield from vector(indexer + "k_norm.bias", index_key)
            yield from matrix(indexer + "weights_proj", index_heads, hidden)
        if kind == "kimi_k2":  # a buffer of the class that saved it, of no use
            yield from vector(attention + "rotary_emb.inv_freq", 56, "F32")
        if mixture:
            yield from matrix(mlp + "gate", experts, hidden)
            if kind != "deepseek_v2":
                yield from vector(mlp + "gate.e_score_correction_bias", experts, "F32")
            for expert in range(experts):
                yield from swiglu(f"{mlp}experts.{expert}.", config["moe_intermediate_size"])
            if config.get("n_shared_experts"):
                yield from swiglu(mlp + "shared_experts.", config["n_shared_experts"] * config["moe_intermediate_size"])
        else:
            yield from swiglu(mlp, config["intermediate_size"])
        yield from vector(prefix + "input_layernorm.weight", hidden)
        yield from vector(prefix + "post_attention_layernorm.weight", hidden)

    yield from matrix("model.embed_tokens", vocab, hidden)
    dense, every = config.get("first_k_dense_replace", 0), config.get("moe_layer_freq", 1)
    for layer in range(layers):
        yield from decoder(f"model.layers.{layer}.", experts > 0 and layer >= dense and layer % every == 0)
    yield from vector("model.norm.weight", hidden)
    if not config.get("tie_word_embeddings"):
        yield from matrix("lm_head", vocab, hidden)
    for layer in range(layers, layers + (config.get("num_nextn_predict_layers") or 0)):
        prefix = f"model.layers.{layer}."
        yield from decoder(prefix, experts > 0)
        yield from matrix(prefix + "embed_tokens", vocab, hidden)
        yield from vector(prefix + "enorm.weight", hidden)
        yield from vector(prefix + "hnorm.weight", hidden)
        yield from matrix(prefix + "eh_proj", hidden, 2 * hidden)
        yield from vector(prefix + "shared_head.norm.weight", hidden)
        yield from matrix(prefix + "shared_head.head", vocab, hidden)


def listing_v4(config: dict) -> Iterator[Tensor]:
    """The same for DeepSeek-V4, whose names, attention and expert storage are others."""
    hidden, vocab, heads, width = (
        config[key] for key in ("hidden_size", "vocab_size", "num_attention_heads", "moe_intermediate_size")
    )
    head, latent, groups, streams = (config[key] for key in ("head_dim", "q_lora_rank", "o_groups", "hc_mult"))
    experts, topk = config["n_routed_experts"], config["num_experts_per_tok"]
    index_heads, index_key = config["index_n_heads"], config["index_head_dim"]
    rows, cols = config["quantization_config"]["weight_block_size"]

    def vector(name: str, size: int, dtype: str = "BF16") -> Iterator[Tensor]:
        yield Tensor(name, dtype, (size,))

    def matrix(name: str, out: int, into: int, dtype: str = "BF16") -> Iterator[Tensor]:
        yield Tensor(name, dtype, (out, into))

    def linear(name: str, out: int, into: int) -> Iterator[Tensor]:
        yield Tensor(name + ".weight", "F8_E4M3", (out, into))
        yield Tensor(name + ".scale", "F8_E8M0", (-(-out // rows), -(-into // cols)))

    def fp4(name: str, out: int, into: int) -> Iterator[Tensor]:
        yield Tensor(name + ".weight", "I8", (out, into // 2))
        yield Tensor(name + ".scale", "F8_E8M0", (out, into // 32))

    def swiglu(name: str, store) -> Iterator[Tensor]:
        yield from store(name + "w1", width, hidden)
        yield from store(name + "w3", width, hidden)
        yield from store(name + "w2", hidden, width)

    def mixer(name: str, outputs: int, scales: int) -> Iterator[Tensor]:
        yield from matrix(name + "_fn", outputs, streams * hidden, "F32")
        yield from vector(name + "_base", outputs, "F32")
        yield from vector(name + "_scale", scales, "F32")

    def compressor(name: str, ratio: int, size: int) -> Iterator[Tensor]:
        channels = 2 * size if ratio == 4 else size
        yield from matrix(name + "ape", ratio, channels, "F32")
        yield from matrix(name + "wkv.weight", channels, hidden)
        yield from matrix(name + "wgate.weight", channels, hidden)
        yield from vector(name + "norm.weight", size)

    def decoder(prefix: str, ratio: int, hashed: bool) -> Iterator[Tensor]:
        attention, ffn = prefix + "attn.", prefix + "ffn."
        for site in ("attn", "ffn"):
            yield from vector(f"{prefix}{site}_norm.weight", hidden)
            yield from mixer(f"{prefix}hc_{site}", streams * (streams + 2), 3)
        yield from linear(attention + "wq_a", latent, hidden)
        yield from vector(attention + "q_norm.weight", latent)
        yield from linear(attention + "wq_b", heads * head, latent)
        yield from linear(attention + "wkv", head, hidden)
        yield from vector(attention + "kv_norm.weight", head)
        yield from linear(attention + "wo_a", groups * config["o_lora_rank"], heads * head // groups)
        yield from linear(attention + "wo_b", hidden, groups * config["o_lora_rank"])
        yield from vector(attention + "attn_sink", heads, "F32")
        if ratio:
            yield from compressor(attention + "compressor.", ratio, head)
        if ratio == 4:
            yield from linear(attention + "indexer.wq_b", index_heads * index_key, latent)
            yield from matrix(attention + "indexer.weights_proj.weight", index_heads, hidden)
            yield from compressor(attention + "indexer.compressor.", ratio, index_key)
        yield from matrix(ffn + "gate.weight", experts, hidden)
        if hashed:
            yield from matrix(ffn + "gate.tid2eid", vocab, topk, "I64")
        else:
            yield from vector(ffn + "gate.bias", experts, "F32")
        for expert in range(experts):
            yield from swiglu(f"{ffn}experts.{expert}.", fp4 if config.get("expert_dtype") == "fp4" else linear)
        yield from swiglu(ffn + "shared_experts.", linear)

    yield from matrix("embed.weight", vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        yield from decoder(f"layers.{layer}.", config["compress_ratios"][layer], layer < config["num_hash_layers"])
    yield from vector("norm.weight", hidden)
    yield from matrix("head.weight", vocab, hidden)
    yield from mixer("hc_head", streams, 1)
    if config.get("num_nextn_predict_layers"):
        yield from decoder("mtp.0.", 0, False)
        for name in ("e_proj", "h_proj"):
            yield from linear("mtp.0." + name, hidden, hidden)
        for name in ("enorm", "hnorm", "norm"):
            yield from vector(f"mtp.0.{name}.weight", hidden)
        yield from mixer("mtp.0.hc_head", streams, 1)


def split(tensors: list[Tensor], shards: int) -> list[list[Tensor]]:
    """Cuts the list where each part first has its even share of the bytes that are left; no part is empty."""
    if not 1 <= shards <= len(tensors):
        sys.exit(f"sparse_checkpoint.py: {len(tensors)} tensors cannot be split into {shards} shards")
    left = sum(tensor.bytes for tensor in tensors)
    parts, size = [[]], 0
    for index, tensor in enumerate(tensors):
        parts[-1].append(tensor)
        size += tensor.bytes
        missing = shards - len(parts)  # parts not begun
        if missing and (size * (missing + 1) >= left or len(tensors) - index - 1 == missing):
            left -= size
            parts.append([])
            size = 0
    return parts


class RandomData:
    """Bytes of weights as trained ones look, a function of the seed and the tensor's name only.

    Normal numbers come from 16 random bits through a table: enough values for FP8 and bf16, and fast enough
    to fill gigabytes. Linear weights have deviation 0.02 times a log-normal factor for each row, or for
    each block in FP8: there the largest of a block's 16,384 codes is near the largest code, as the scale
    of a real block makes it. About one input channel in 512, at least one, is an outlier: its weights are
    four times as large, and so is the scale of an FP8 block that holds one, whose other codes are small.
    """

    TILE = 1 << 22  # elements drawn at a time
    OUTLIER = 4.0  # a power of two, so that the scales of ue8m0 stay ones

    def __init__(self, config: dict, seed: int):
        self.seed = seed
        quantization = config.get("quantization_config") or {}
        power_of_two = quantization.get("scale_fmt") == "ue8m0"
        self.block_cols = quantization.get("weight_block_size", (128, 128))[1]
        self.shapes = {tensor.name: tensor.shape for tensor in listing(config)} if quantization else {}
        # The largest of 16,384 normal numbers is near 4 deviations; a scale that is rounded up to a power of
        # two puts it between half the largest code and all of it.
        self.deviation = 80.0 if power_of_two else 112.0
        self.power_of_two = power_of_two
        normal = NormalDist()
        self.normal = np.array([normal.inv_cdf((i + 0.5) / 65536) for i in range(65536)], np.float32)
        self.codes = to_e4m3(self.deviation * self.normal)
        self.small_codes = to_e4m3(self.deviation / self.OUTLIER * self.normal)

    def generator(self, name: str) -> np.random.SFC64:
        return np.random.SFC64(int.from_bytes(hashlib.sha256(f"{self.seed}/{name}".encode()).digest()[:16], "little"))

    def indices(self, generator: np.random.SFC64, count: int) -> np.ndarray:
        return generator.random_raw(-(-count // 4)).view(np.uint16)[:count]

    def outliers(self, weight: str, cols: int) -> np.ndarray:
        """Which input channels of a weight are large."""
        drawn = self.generator(weight + "/outliers").random_raw(max(1, cols // 512))
        return np.unique(drawn % np.uint64(cols)).astype(np.int64)

    def tiles(self, tensor: Tensor) -> Iterator[np.ndarray]:
        """The tensor's bytes, in order."""
        generator = self.generator(tensor.name)
        if tensor.name.endswith("_scale_inv"):
            factor = np.exp(0.3 * self.normal[self.indices(generator, tensor.elements)])
            scale = (0.02 / self.deviation * factor.astype(np.float64)).reshape(tensor.shape)
            weight = tensor.name.removesuffix("_scale_inv")
            scale[:, np.unique(self.outliers(weight, self.shapes[weight][1]) // self.block_cols)] *= self.OUTLIER
            yield (np.exp2(np.rint(np.log2(scale))) if self.power_of_two else scale).astype(np.float32)
            return
        if len(tensor.shape) == 1:  # the router's bias, which is reported to be above 2 everywhere in V3
            yield encode(3 + 0.2 * self.normal[self.indices(generator, tensor.elements)], tensor.dtype)
            return
        rows, cols = tensor.shape
        outliers = self.outliers(tensor.name, cols)
        shares_block = np.isin(np.arange(cols) // self.block_cols, outliers // self.block_cols)
        step = max(1, self.TILE // cols)
        for begin in range(0, rows, step):
            count = min(step, rows - begin)
            if tensor.dtype == "F8_E4M3":
                drawn = self.indices(generator, count * cols).reshape(count, cols)
                codes = self.codes[drawn]
                codes[:, shares_block] = self.small_codes[drawn[:, shares_block]]
                codes[:, outliers] = self.codes[drawn[:, outliers]]
                yield codes
            else:
                factor = 0.02 * np.exp(0.3 * self.normal[self.indices(generator, count)])
                x = self.normal[self.indices(generator, count * cols)].reshape(count, cols) * factor[:, None]
                x[:, outliers] *= self.OUTLIER
                yield encode(x, tensor.dtype)


def encode(x: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return to_bf16_bits(x)
    return x.astype(np.float16 if dtype == "F16" else np.float32)


def is_norm(tensor: Tensor) -> bool:
    return tensor.name.endswith("norm.weight")


def write_shard(file: BinaryIO, tensors: list[Tensor], data: RandomData, layers: Collection[int], experts: int | None) -> None:
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for tensor in tensors:
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, at + tensor.bytes]}
        at += tensor.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    at = 8 + len(text)
    file.write(len(text).to_bytes(8, "little") + text)
    file.truncate(at + sum(tensor.bytes for tensor in tensors))
    for tensor in tensors:
        if is_norm(tensor):
            tiles = [encode(np.ones(tensor.shape, np.float32), tensor.dtype)]
        elif tensor.layer not in layers or tensor.name.endswith(("inv_freq", "norm.bias")):
            tiles = []
        elif experts is None or tensor.expert is None or tensor.expert < experts or tensor.name.endswith("_scale_inv"):
            tiles = data.tiles(tensor)
        else:
            tiles = []
        file.seek(at)
        for tile in tiles:
            file.write(tile)
        at += tensor.bytes


def write(
    config: dict, out: Path, shards: int, data_layers: Collection[int] = (), data_experts: int | None = None, seed: int = 1
) -> list[Path]:
    """Makes the checkpoint directory `out`; returns its shards. `data_experts` is None for all of them."""
    if data_layers and config["model_type"] == "deepseek_v4":
        sys.exit("sparse_checkpoint.py: random data is not made for deepseek_v4")
    tensors = list(listing(config))
    absent = set(data_layers) - {tensor.layer for tensor in tensors}
    if absent:
        sys.exit(f"sparse_checkpoint.py: the model has no layer {min(absent)}")
    parts = split(tensors, shards)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    data = RandomData(config, seed)
    paths, weight_map = [], {}
    for number, part in enumerate(parts, 1):
        paths.append(out / f"model-{number:05d}-of-{shards:06d}.safetensors")
        with open(paths[-1], "wb") as file:
            write_shard(file, part, data, data_layers, data_experts)
        weight_map.update((tensor.name, paths[-1].name) for tensor in part)
    index = {"metadata": {"total_size": sum(tensor.bytes for tensor in tensors)}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return paths


def layer_list(text: str) -> set[int]:
    """`3` or `0,3-5`."""
    result: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        result.update(range(int(first), int(last or first) + 1))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="config.json of the model")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--data-layers", type=layer_list, default=set(), help="layers that get random data, such as 0,3-5")
    parser.add_argument("--data-experts", type=int, help="how many experts of such a layer get data (default: all)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("out", type=Path, metavar="OUT")
    options = parser.parse_args()
    config = json.loads(options.config.read_text())
    paths = write(config, options.out, options.shards, options.data_layers, options.data_experts, options.seed)
    sizes = [path.stat() for path in paths]
    apparent, stored = sum(s.st_size for s in sizes), 512 * sum(s.st_blocks for s in sizes)
    print(f"{options.out}: {len(paths)} shards, {apparent / 1e9:.1f} GB, {stored / 1e6:.1f} MB on disk")


if __name__ == "__main__":
    main()
