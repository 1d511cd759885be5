# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Checkpoints that hold one model in different ways become artifacts with the same weights and logits."""

import json
import shutil
from pathlib import Path

import numpy as np
import sparse_checkpoint
from checkpoints import read_safetensors, write_safetensors
from safetensors.numpy import load_file

TEST = Path(__file__).parent.parent
TINY = TEST / "models" / "tiny-shakespeare"


def weights(artifact: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(artifact.glob("*.safetensors"))]


def logits(moe_run, artifact: Path, tokens: int, out: Path) -> np.ndarray:
    moe_run.run("logits", artifact, "--tokens", ",".join(map(str, range(3, 3 + tokens))), "-o", out)
    return load_file(out)["logits"]


def assert_same(moe_run, ours: Path, theirs: Path, tokens: int, out: Path) -> None:
    assert weights(ours) == weights(theirs) != []
    found, expected = logits(moe_run, ours, tokens, out), logits(moe_run, theirs, tokens, out)
    assert np.isfinite(found).all() and found.std() > 0
    assert np.array_equal(found, expected)


def test_packed_experts(moec, moe_run, compiled, tmp_path):
    """As transformers 5 keeps them: one tensor for all experts of a layer, rows of gate above those of up."""
    model = tmp_path / "tiny-shakespeare"
    shutil.copytree(TINY, model, ignore=shutil.ignore_patterns("*.safetensors"))
    experts = range(json.loads((TINY / "config.json").read_text())["n_routed_experts"])
    tensors, _ = read_safetensors(TINY / "model.safetensors")
    packed = {name: tensor for name, tensor in tensors.items() if ".mlp.experts." not in name}
    prefixes = {name.split("experts.")[0] + "experts." for name in tensors if ".mlp.experts." in name}
    assert len(prefixes) == 4  # three layers and the one for multi-token prediction
    for prefix in prefixes:
        gate, up, down = (
            np.stack([tensors[f"{prefix}{e}.{part}_proj.weight"][1] for e in experts]) for part in ("gate", "up", "down")
        )
        packed[prefix + "gate_up_proj"] = ("BF16", np.concatenate([gate, up], axis=1))
        packed[prefix + "down_proj"] = ("BF16", down)
    write_safetensors(model / "model.safetensors", packed)
    moec.run("compile", model, "-o", tmp_path / "artifact")
    assert_same(moe_run, tmp_path / "artifact", compiled(TINY), 32, tmp_path / "logits.safetensors")


# Two layers whose widths no 128 x 128 block divides, and an indexer that picks 24 tokens.
SMALL_V32 = {
    "num_hidden_layers": 2, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0, "hidden_size": 320,
    "intermediate_size": 448, "moe_intermediate_size": 192, "n_routed_experts": 8, "n_group": 2, "topk_group": 1,
    "num_experts_per_tok": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 96,
    "vocab_size": 300, "index_n_heads": 4, "index_topk": 24,
}  # fmt: skip


def test_v32_is_v3_up_to_what_its_indexer_picks(moec, moe_run, tmp_path):
    config = json.loads((TEST / "frontends" / "configs" / "deepseek-v3-2.json").read_text()) | SMALL_V32
    for kind in ("deepseek_v3", "deepseek_v32"):
        sparse_checkpoint.write(config | {"model_type": kind}, tmp_path / kind, 2, data_layers={0, 1})
        embeddings(tmp_path / kind)
        moec.run("compile", tmp_path / kind, "-o", tmp_path / f"{kind}.moec")
    ours = tmp_path / "deepseek_v32.moec"
    assert json.loads((ours / "manifest.json").read_text())["model"]["max_context"] == 24
    assert_same(moe_run, ours, tmp_path / "deepseek_v3.moec", 24, tmp_path / "logits.safetensors")

    tokens = ",".join(["5"] * 25)
    assert "24" in moe_run.refuses("logits", ours, "--tokens", tokens, "-o", tmp_path / "logits.safetensors")
    message = moec.refuses("compile", tmp_path / "deepseek_v32", "--max-context", 25, "-o", tmp_path / "longer")
    assert "'index_topk' 24: beyond that many tokens attention is sparse" in message
    assert not (tmp_path / "longer").exists()


def embeddings(model: Path) -> None:
    """Fills the holes of the embeddings and the head, so that logits are not all zero."""
    for path in model.glob("*.safetensors"):
        data = bytearray(path.read_bytes())
        begin = 8 + int.from_bytes(data[:8], "little")
        for name, info in json.loads(data[8:begin]).items():
            if name in ("model.embed_tokens.weight", "lm_head.weight"):
                first, last = info["data_offsets"]
                noise = np.random.RandomState(len(name)).uniform(-0.5, 0.5, (last - first) // 2).astype(np.float32)
                data[begin + first : begin + last] = (noise.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        path.write_bytes(data)
