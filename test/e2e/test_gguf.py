# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""GGUF files of llama.cpp's deepseek2 architecture become the model that their values say, and bad ones a sentence."""

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import checkpoints
import numpy as np
import pytest
from safetensors.numpy import load_file

V3 = Path(__file__).parent / "parity" / "v3"

# The parity model v3 with widths that blocks of 256 divide, so that every matrix can be stored in every type.
CONFIG = json.loads((V3 / "config.json").read_text()) | {
    "hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 256, "q_lora_rank": 256,
    "kv_lora_rank": 256, "num_attention_heads": 16, "num_key_value_heads": 16, "n_routed_experts": 8,
    "num_experts_per_tok": 2, "num_hidden_layers": 2, "num_nextn_predict_layers": 0,
}  # fmt: skip
EXPERTS = CONFIG["n_routed_experts"]
METADATA = {
    "general.architecture": "deepseek2",
    "deepseek2.block_count": CONFIG["num_hidden_layers"],
    "deepseek2.embedding_length": CONFIG["hidden_size"],
    "deepseek2.expert_count": EXPERTS,
}

TOKENS = ",".join(map(str, range(3, 27)))


# Types: an array of float32 [.., columns] becomes the bytes of its rows and the values that they stand for.


class Type(NamedTuple):
    id: int
    elements: int  # of a block
    store: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # float32 [blocks, elements] -> bytes [blocks, n], values [blocks, elements]


def as_bytes(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).view(np.uint8).reshape(len(x), -1)


def half(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As stored, and in float32."""
    stored = x.astype(np.float16)
    return as_bytes(stored), stored.astype(np.float32)


def divided(x: np.ndarray, step: np.ndarray) -> np.ndarray:
    """To the nearest integer, of which 0 has no sign."""
    return np.rint(np.divide(x, step, out=np.zeros_like(x), where=step != 0)) + np.float32(0)


def store_f32(x):
    return as_bytes(x), x


def store_bf16(x):
    bits = checkpoints.to_bf16_bits(x)
    return as_bytes(bits), checkpoints.bf16_to_float(bits)


def store_q8_0(x):
    """One scale, then 32 signed bytes."""
    scale, step = half(np.abs(x).max(1, keepdims=True) / 127)
    codes = np.clip(divided(x, step), -128, 127)
    return np.hstack([scale, codes.astype(np.int8).view(np.uint8)]), codes * step


def store_q4_0(x):
    """One scale, then 16 bytes: element i below element i + 16."""
    largest = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)
    scale, step = half(largest / -8)
    codes = np.clip(divided(x, step), -8, 7)
    nibbles = (codes + 8).astype(np.uint8)
    return np.hstack([scale, nibbles[:, :16] | nibbles[:, 16:] << 4]), codes * step


def store_q4_k(x):
    """Scales of scales and of minima, twelve bytes with both for each 32 elements, nibbles."""
    groups = x.reshape(-1, 8, 32)
    low = np.minimum(groups.min(2), 0)
    steps, minima = (groups.max(2) - low) / 15, -low
    d, unit = half(steps.max(1, keepdims=True) / 63)
    dmin, unit_min = half(minima.max(1, keepdims=True) / 63)
    scales = np.clip(divided(steps, unit), 0, 63).astype(np.uint8)
    mins = np.clip(divided(minima, unit_min), 0, 63).astype(np.uint8)
    step, offset = (unit * scales)[:, :, None], (unit_min * mins)[:, :, None]
    codes = np.clip(divided(groups + offset, step), 0, 15).astype(np.uint8)
    packed = np.hstack([
        scales[:, :4] | scales[:, 4:] >> 4 << 6,
        mins[:, :4] | mins[:, 4:] >> 4 << 6,
        scales[:, 4:] & 15 | (mins[:, 4:] & 15) << 4,
    ])  # fmt: skip
    nibbles = (codes[:, 0::2] | codes[:, 1::2] << 4).reshape(-1, 128)
    values = step * codes.astype(np.float32) - offset
    return np.hstack([d, dmin, packed, nibbles]), values.reshape(-1, 256)


def store_q6_k(x):
    """Four bits of each element, the two above them, sixteen scales, the scale of scales."""
    groups = x.reshape(-1, 16, 16)
    steps = np.abs(groups).max(2) / 31
    d, unit = half(steps.max(1, keepdims=True) / 127)
    scales = divided(steps, unit).astype(np.int8)
    step = (unit * scales.astype(np.float32))[:, :, None]
    codes = np.clip(divided(groups, step), -32, 31)
    # [block, half, quarter, 32]: the nibbles of quarters 0 and 1 lie below those of 2 and 3.
    bits = (codes + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low = (bits[:, :, :2] & 15 | (bits[:, :, 2:] & 15) << 4).reshape(-1, 128)
    high = np.bitwise_or.reduce([bits[:, :, q] >> 4 << 2 * q for q in range(4)]).reshape(-1, 64)
    return np.hstack([low, high, scales.view(np.uint8), d]), (step * codes).reshape(-1, 256)


TYPES = {
    "F32": Type(0, 1, store_f32),
    "F16": Type(1, 1, half),
    "BF16": Type(30, 1, store_bf16),
    "Q8_0": Type(8, 32, store_q8_0),
    "Q4_0": Type(2, 32, store_q4_0),
    "Q4_K": Type(12, 256, store_q4_k),
    "Q6_K": Type(14, 256, store_q6_k),
}


# Models


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Of every tensor, in the checkpoint's names."""
    c = CONFIG
    heads, hidden, queries, latent = (c[k] for k in ("num_attention_heads", "hidden_size", "q_lora_rank", "kv_lora_rank"))
    nope, rope, value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    shapes = {
        "model.embed_tokens.weight": (c["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (c["vocab_size"], hidden),
    }

    def swiglu(prefix: str, width: int) -> None:
        shapes[prefix + "gate_proj.weight"] = shapes[prefix + "up_proj.weight"] = (width, hidden)
        shapes[prefix + "down_proj.weight"] = (hidden, width)

    for layer in range(c["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "self_attn.q_a_proj.weight": (queries, hidden),
            prefix + "self_attn.q_a_layernorm.weight": (queries,),
            prefix + "self_attn.q_b_proj.weight": (heads * (nope + rope), queries),
            prefix + "self_attn.kv_a_proj_with_mqa.weight": (latent + rope, hidden),
            prefix + "self_attn.kv_a_layernorm.weight": (latent,),
            prefix + "self_attn.kv_b_proj.weight": (heads * (nope + value), latent),
            prefix + "self_attn.o_proj.weight": (hidden, heads * value),
            prefix + "post_attention_layernorm.weight": (hidden,),
        }
        if layer < c["first_k_dense_replace"]:
            swiglu(prefix + "mlp.", c["intermediate_size"])
            continue
        shapes[prefix + "mlp.gate.weight"] = (EXPERTS, hidden)
        shapes[prefix + "mlp.gate.e_score_correction_bias"] = (EXPERTS,)
        for expert in range(EXPERTS):
            swiglu(f"{prefix}mlp.experts.{expert}.", c["moe_intermediate_size"])
        swiglu(prefix + "mlp.shared_experts.", c["moe_intermediate_size"])
    return shapes


GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_a_proj.weight": "attn_q_a.weight",
    "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
    "self_attn.q_b_proj.weight": "attn_q_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
    "self_attn.kv_b_proj.weight": "attn_kv_b.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.experts.gate_proj.weight": "ffn_gate_exps.weight",
    "mlp.experts.up_proj.weight": "ffn_up_exps.weight",
    "mlp.experts.down_proj.weight": "ffn_down_exps.weight",
    "mlp.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
}


class Tensor(NamedTuple):
    type: int
    shape: tuple[int, ...]  # outermost first
    data: bytes


def gguf_name(name: str) -> str:
    layer = re.match(r"model\.layers\.(\d+)\.(.*)", re.sub(r"experts\.\d+\.", "experts.", name))
    return f"blk.{layer[1]}.{GGUF_NAMES[layer[2]]}" if layer else GGUF_NAMES[name]


def build(type_of) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    """Tensors of a GGUF file whose matrices have the types `type_of(gguf name)`, and what they stand for."""
    parts: dict[str, list[Tensor]] = {}
    values = {}
    for name, shape in expected_shapes().items():
        theirs = gguf_name(name)
        stored_type = TYPES[type_of(theirs) if len(shape) == 2 else "F32"]
        blocks = checkpoints.values("gguf", name, shape).reshape(-1, stored_type.elements)
        data, decoded = stored_type.store(blocks)
        values[name] = decoded.reshape(shape).astype(np.float32)
        parts.setdefault(theirs, []).append(Tensor(stored_type.id, shape, np.ascontiguousarray(data).tobytes()))
    tensors = {}
    for name, members in parts.items():
        kind, shape, _ = members[0]
        stacked = (len(members), *shape) if name.endswith("_exps.weight") else shape
        tensors[name] = Tensor(kind, stacked, b"".join(member.data for member in members))
    return tensors, values


def write_gguf(path: Path, tensors: dict[str, Tensor], metadata: dict) -> None:
    """Version 3, aligned to 32 bytes."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        header += text(key)
        header += struct.pack("<I", 8) + text(value) if isinstance(value, str) else struct.pack("<II", 4, value)
    data = b""
    for name, tensor in tensors.items():
        dims = tensor.shape[::-1]
        header += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, tensor.type, len(data))
        data += tensor.data + b"\0" * (-len(tensor.data) % 32)
    path.write_bytes(header + b"\0" * (-len(header) % 32) + data)


def write_model(directory: Path, tensors: dict[str, Tensor], metadata: dict = METADATA, config: dict = CONFIG) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    write_gguf(directory / "model.gguf", tensors, metadata)
    return directory


def mixed(name: str) -> str:
    """Like the files that llama.cpp makes, with a gate that is stored otherwise than its up projection."""
    if name in ("output.weight", "blk.0.ffn_gate.weight") or "ffn_down" in name:
        return "Q6_K"
    if "shexp" in name or "kv_b" in name:
        return "Q8_0"
    return "F32" if "ffn_gate_inp" in name else "Q4_0" if name == "token_embd.weight" else "Q4_K"


KINDS = {kind: lambda name, kind=kind: kind for kind in TYPES} | {"mixed": mixed}


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return build(mixed)[0]


def weights(artifact: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(artifact.glob("*.safetensors"))]


def logits(program, command: str, model: Path, out: Path) -> np.ndarray:
    program.run(command, model, "--tokens", TOKENS, "-o", out)
    return load_file(out)["logits"]


@pytest.mark.sanitize
@pytest.mark.parametrize("kind", KINDS)
def test_is_the_checkpoint_of_its_values(kind, moec, moe_run, tmp_path):
    tensors, values = build(KINDS[kind])
    model = write_model(tmp_path / "model", tensors)
    twin = tmp_path / "twin"
    twin.mkdir()
    (twin / "config.json").write_text(json.dumps(CONFIG))
    checkpoints.write_safetensors(twin / "model.safetensors", {name: ("F32", x) for name, x in values.items()})
    for directory in (model, twin):
        moec.run("compile", directory, "-o", f"{directory}.moec")
    ours = logits(moe_run, "logits", tmp_path / "model.moec", tmp_path / "ours.safetensors")
    theirs = logits(moe_run, "logits", tmp_path / "twin.moec", tmp_path / "theirs.safetensors")
    assert np.isfinite(theirs).all() and theirs.std() > 0.1
    # Sums have one order; only the width of what is stored may differ.
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    if kind not in ("F16", "BF16", "mixed"):
        assert weights(tmp_path / "model.moec") == weights(tmp_path / "twin.moec")
    # 2e-4 as for the parity models: the interpreter sums in another order.
    defined = logits(moec, "interpret", model, tmp_path / "defined.safetensors")
    assert np.abs(ours - defined).max() <= 2e-4


def test_values_are_rounded_as_far_as_the_type_says():
    """The quantizers above are no strawmen: each type keeps the weights that went in, up to its step."""
    x = checkpoints.uniform("gguf", "x", (64, 256)).astype(np.float32)
    for kind, bound in {"F16": 1e-3, "BF16": 8e-3, "Q8_0": 8e-3, "Q4_0": 0.23, "Q4_K": 0.14, "Q6_K": 0.04}.items():
        values = TYPES[kind].store(x.reshape(-1, TYPES[kind].elements))[1]
        error = np.abs(values.reshape(x.shape) - x).max()
        assert bound / 8 < error < bound, kind


def test_parts_are_one_model(tensors, moec, tmp_path):
    """Metadata is in the first part; a quantization_config of the original checkpoint says nothing about the file."""
    whole = write_model(tmp_path / "whole", tensors)
    moec.run("compile", whole, "-o", tmp_path / "whole.moec")
    fp8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    parts = write_model(tmp_path / "parts", {}, config=CONFIG | {"quantization_config": fp8})
    (parts / "model.gguf").unlink()
    names = list(tensors)
    for number, chosen in enumerate((names[::2], names[1::2]), start=1):
        metadata = METADATA if number == 1 else {"split.no": 1}
        write_gguf(parts / f"m-0000{number}-of-00002.gguf", {name: tensors[name] for name in chosen}, metadata)
    moec.run("compile", parts, "-o", tmp_path / "parts.moec")
    assert weights(tmp_path / "parts.moec") == weights(tmp_path / "whole.moec") != []


def test_plan(tensors, moec, tmp_path):
    model = write_model(tmp_path / "model", tensors)
    plan = json.loads(moec.run("plan", "--json", model).stdout)
    moec.run("compile", model, "-o", tmp_path / "artifact")
    inspected = json.loads(moec.run("inspect", "--json", tmp_path / "artifact").stdout)
    parts = plan["weights"]["parts"]
    assert sum(part["checkpoint_bytes"] for part in parts) == sum(len(tensor.data) for tensor in tensors.values())
    assert sum(part["bytes"] for part in parts) == sum(weight["bytes"] for weight in inspected["weights"])


# Bad input


def edited(name, **changes):
    return lambda tensors: {**tensors, name: tensors[name]._replace(**changes)}


def without(name):
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def renamed(old, new):
    return lambda tensors: {new if key == old else key: tensor for key, tensor in tensors.items()}


Q8_NORM = Tensor(8, (256,), bytes(8 * 34))


BAD_TENSORS = {
    "unknown type": (
        edited("blk.0.attn_output.weight", type=19),
        "model.gguf: tensor 'blk.0.attn_output.weight' has the ggml type 19, but only F32, F16, Q4_0,",
    ),
    "missing": (
        without("blk.1.attn_kv_b.weight"),
        "'model.layers.1.self_attn.kv_b_proj.weight' is missing, expected BF16, F16 or F32 [512, 256] from "
        "{config}; a GGUF file calls it 'blk.1.attn_kv_b.weight'",
    ),
    "missing experts": (
        without("blk.1.ffn_up_exps.weight"),
        "'model.layers.1.mlp.experts.0.up_proj.weight' is missing, expected BF16, F16 or F32 [256, 256] from "
        "{config}; a GGUF file calls it 'blk.1.ffn_up_exps.weight'",
    ),
    "halves": (
        renamed("blk.1.attn_kv_b.weight", "blk.1.attn_k_b.weight"),
        "model.gguf: tensor 'blk.1.attn_k_b.weight' is one half of 'attn_kv_b', and halves are not read; a file "
        "with 'attn_kv_b' is needed",
    ),
    "unknown name": (
        renamed("output.weight", "outputs.weight"),
        "model.gguf: unexpected tensor 'outputs.weight', which deepseek2 models do not have",
    ),
    "second spelling": (
        renamed("blk.1.attn_norm.weight", "blk.01.attn_norm.weight"),
        "model.gguf: unexpected tensor 'blk.01.attn_norm.weight'",
    ),
    "shape": (
        edited("blk.0.attn_q_a.weight", shape=(255, 256)),
        "model.gguf: tensor 'model.layers.0.self_attn.q_a_proj.weight' in 'blk.0.attn_q_a.weight' is [255, 256], "
        "but {config} asks for [256, 256]",
    ),
    "experts in a matrix": (
        edited("blk.1.ffn_up_exps.weight", shape=(2048, 256)),
        "model.gguf: tensor 'blk.1.ffn_up_exps.weight' is [2048, 256], expected [experts, rows, columns]",
    ),
    "more experts than anyone has": (
        edited("blk.1.ffn_up_exps.weight", type=0, shape=(1 << 21, 1, 1), data=bytes(1 << 23)),
        "but more than 1048576 packed experts are not supported",
    ),
    "vector in blocks": (
        lambda tensors: {**tensors, "output_norm.weight": Q8_NORM},
        "model.gguf: tensor 'model.norm.weight' in 'output_norm.weight' is Q8_0, expected BF16, F16 or F32",
    ),
    "gate unlike up": (
        edited("blk.1.ffn_gate_exps.weight", type=0, data=bytes(8 * 256 * 256 * 4)),
        "model.gguf: tensor 'model.layers.1.mlp.experts.0.up_proj.weight' in 'blk.1.ffn_up_exps.weight' is Q4_K, "
        "but 'model.layers.1.mlp.experts.0.gate_proj.weight' is F32; gate and up of a layer's experts must be "
        "stored alike",
    ),
    "not finite": (
        edited("blk.0.attn_q_a.weight", data=b"\x00\x7e" * (256 * 72)),
        "tensor 'model.layers.0.self_attn.q_a_proj.weight' holds a value that is not finite at [0, 0]",
    ),
}


def refused(moec, model: Path) -> str:
    message = moec.refuses("compile", model, "-o", model.parent / "artifact")
    assert not (model.parent / "artifact").exists()
    return message


@pytest.mark.sanitize
@pytest.mark.parametrize("case", BAD_TENSORS)
def test_bad_tensors(case, tensors, moec, tmp_path):
    edit, sentence = BAD_TENSORS[case]
    model = write_model(tmp_path / "model", edit(tensors))
    assert sentence.format(config=model / "config.json") in refused(moec, model)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"deepseek2.block_count": 3}, "'deepseek2.block_count' is 3, but {config} has 'num_hidden_layers' 2"),
        ({"deepseek2.embedding_length": 64}, "'deepseek2.embedding_length' is 64, but {config} has 'hidden_size' 256"),
        ({"deepseek2.expert_count": 9}, "'deepseek2.expert_count' is 9, but {config} has 'n_routed_experts' 8"),
        ({"deepseek2.expert_count": "8"}, "'deepseek2.expert_count' is no unsigned integer, but {config} has"),
        ({"general.architecture": "llama"}, "'general.architecture' is 'llama', but only the tensors of deepseek2"),
        ({"general.architecture": 2}, "'general.architecture' is no text, but only the tensors of deepseek2"),
    ],
)
@pytest.mark.parametrize("command", ["compile", "plan"])
def test_metadata_that_contradicts(command, changes, sentence, tensors, moec, tmp_path):
    model = write_model(tmp_path / "model", tensors, METADATA | changes)
    message = moec.refuses("plan", model) if command == "plan" else refused(moec, model)
    assert f"{model}/model.gguf: " in message and sentence.format(config=model / "config.json") in message


@pytest.mark.sanitize
def test_truncated(tensors, moec, tmp_path):
    model = write_model(tmp_path / "model", tensors)
    data = (model / "model.gguf").read_bytes()
    for end, sentence in (
        (3, "model.gguf: ends within its first four bytes"),
        (60, f"model.gguf: says that it holds {len(tensors)} tensors and 4 metadata, more than its size allows"),
        (1500, "model.gguf: gives the tensor 'token_embd.weight' a dimension of 160, which its size does not allow"),
        (len(data) - 64, "model.gguf: ends before the tensor "),
    ):
        (model / "model.gguf").write_bytes(data[:end])
        assert sentence in refused(moec, model)


def test_files(tensors, moec, tmp_path):
    model = write_model(tmp_path / "model", tensors)
    shutil.move(model / "model.gguf", model / "a.gguf")
    shutil.copy(model / "a.gguf", model / "b.gguf")
    assert "holds a.gguf and b.gguf, which are no parts of one model" in refused(moec, model)
    shutil.move(model / "b.gguf", model / "m-00002-of-00003.gguf")
    assert "holds a.gguf and m-00002-of-00003.gguf, which are no parts of one model" in refused(moec, model)
    shutil.move(model / "a.gguf", model / "m-00001-of-00003.gguf")
    assert "m-00003-of-00003.gguf: part is absent, but m-00001-of-00003.gguf is one of 3" in refused(moec, model)
    shutil.move(model / "m-00002-of-00003.gguf", model / "m-00002-of-00002.gguf")
    assert "holds m-00001-of-00003.gguf and m-00002-of-00002.gguf, which are no parts" in refused(moec, model)
    shutil.move(model / "m-00001-of-00003.gguf", model / "m-00001-of-00002.gguf")
    message = refused(moec, model)
    assert re.search(r"m-00002-of-00002.gguf: tensor '.*' in '.*' is also in .*m-00001-of-00002.gguf", message)
    for file in model.glob("*.gguf"):
        file.unlink()
    assert "holds neither model.safetensors nor model.safetensors.index.json nor a .gguf file" in refused(moec, model)
