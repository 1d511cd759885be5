# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Weights in other formats: the artifact says what the interpreter says of the same quantized model."""

import json
from pathlib import Path

import checkpoints
import numpy as np
import pytest
from safetensors.numpy import load_file

MODELS = Path(__file__).parent.parent / "models"

FORMATS = {
    "experts": ["--experts", "int4"],
    "all": ["--experts", "int4:g64", "--attention", "int4", "--dense", "int4:g64:bf16", "--head", "int4:bf16"],
    "zero": ["--experts", "int4:zero", "--attention", "int4:e8m0", "--dense", "int4:zero:bf16", "--head", "int4:g128"],
    "e2m1": ["--experts", "nvfp4", "--attention", "mxfp4", "--dense", "nvfp4", "--head", "mxfp4"],
    "bytes": ["--experts", "int8:weights", "--attention", "fp8:weights", "--dense", "fp8:weights", "--head", "int8:weights"],
    "folded": ["--fold-norm", "--experts", "int4", "--attention", "int4:g64", "--dense", "int4:zero", "--head", "int4"],
    "narrower": ["--experts", "f16", "--dense", "bf16", "--head", "f16"],
}


@pytest.mark.sanitize
@pytest.mark.parametrize("formats", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("name", ["tiny-shakespeare", "tiny-shakespeare-fp8"])
def test_artifact_is_the_quantized_model(name, formats, compiled, moec, moe_run, tmp_path):
    model = MODELS / name
    artifact = compiled(model, *formats)
    tokens = ",".join(map(str, load_file(model / "reference.safetensors")["tokens"][:24]))
    moec.run("interpret", model, "--optimized", *formats, "--tokens", tokens, "-o", tmp_path / "defined.safetensors")
    moe_run.run("logits", artifact, "--tokens", tokens, "-o", tmp_path / "ours.safetensors")
    defined = load_file(tmp_path / "defined.safetensors")["logits"]
    ours = load_file(tmp_path / "ours.safetensors")["logits"]
    # Sums in another order; the weights are the same to the last bit.
    assert np.abs(ours - defined).max() <= 2e-4
    if formats[1] not in ("f16", "bf16"):  # it is another model then
        original = load_file(model / "reference.safetensors")["logits"]
        assert np.abs(ours - original[: len(ours)]).max() > 1e-3


def test_folded_norms_make_scales_of_the_checkpoint_irrelevant(moec, moe_run, tmp_path):
    """Factors that lie in the norms of one checkpoint and in the matrices of another meet before they are rounded."""
    models = {"plain": MODELS / "tiny-shakespeare", "moved": checkpoints.move_into_norms(MODELS / "tiny-shakespeare", tmp_path / "model")}
    tokens = ",".join(map(str, load_file(models["plain"] / "reference.safetensors")["tokens"][:24]))
    formats = [word for kind in ("experts", "attention", "dense", "head") for word in (f"--{kind}", "int4")]

    def logits(model: str, *options: str) -> np.ndarray:
        moec.run("compile", models[model], "-o", tmp_path / "artifact", *options)
        moe_run.run("logits", tmp_path / "artifact", "--tokens", tokens, "-o", tmp_path / "logits.safetensors")
        return load_file(tmp_path / "logits.safetensors")["logits"]

    assert np.abs(logits("plain") - logits("moved")).max() < 2e-4  # the same model, but for the order of factors
    folded = logits("plain", *formats, "--fold-norm")
    assert (folded == logits("moved", *formats, "--fold-norm")).all()
    assert (folded == logits("moved", *formats, "-O3")).all()
    assert np.abs(logits("plain", *formats) - logits("moved", *formats)).max() > 0.1


@pytest.mark.parametrize("format", ["int8", "int8:a32", "int4:a32", "int4:zero:a32", "mxfp4:a32", "fp8", "bf16:a16"])
def test_rounded_activations(format, compiled, moec, moe_run, tmp_path):
    """In the last layer, whose roundings tip no router over. An activation that lies between two codes may take either
    where sums differ in their last bits."""
    model = MODELS / "tiny-shakespeare"
    formats = ["--head", format, "--format", r"layers\.3\.mlp\.(experts|shared)=" + format]
    tokens = ",".join(map(str, load_file(model / "reference.safetensors")["tokens"]))
    moec.run("interpret", model, "--optimized", *formats, "--tokens", tokens, "-o", tmp_path / "defined.safetensors")
    moe_run.run("logits", compiled(model, *formats), "--tokens", tokens, "-o", tmp_path / "ours.safetensors")
    defined, ours = (load_file(tmp_path / name)["logits"] for name in ("defined.safetensors", "ours.safetensors"))
    original = load_file(model / "reference.safetensors")["logits"]
    ours_off, rounding = np.abs(ours - defined).max(), np.abs(defined - original).max()
    assert ours_off < 0.2 * rounding, (ours_off, rounding)


def test_experts_in_int4_cost_little(compiled, moe_run):
    model = MODELS / "tiny-shakespeare"
    artifact = compiled(model, "--experts", "int4")
    done = moe_run.run("perplexity", artifact, "--file", model / "val.txt", "--json")
    # 65.1520 in bf16, from test/models/README.md.
    assert abs(json.loads(done.stdout)["perplexity"] - 65.1520) < 0.65


def test_bytes_are_four_and_a_half_bits(compiled, moec):
    """Three MoE layers of 16 experts, each 3 x 64 x 256 weights: codes of half a byte, two bytes of scale for 32."""
    artifact = compiled(MODELS / "tiny-shakespeare", "--experts", "int4")
    weights = json.loads(moec.run("inspect", artifact, "--json").stdout)["weights"]
    experts = {weight["name"]: weight for weight in weights if ".experts." in weight["name"]}
    assert len(experts) == 6
    assert sum(np.prod(weight["shape"]) for weight in experts.values()) == 3 * 16 * 3 * 64 * 256 * 9 // 16
    assert all(weight["dtype"] == "U8" for weight in experts.values())


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--experts", "int5"], "unknown weight format 'int5', expected keep, f32, bf16, f16, int8, fp8, int4, mxfp4 or nvfp4"),
        (["--experts", "int4:g128"], "has rows of 64, which are no whole groups of 128"),
    ],
)
def test_refusals(options, sentence, moec, tmp_path):
    assert sentence in moec.refuses("compile", MODELS / "tiny-shakespeare", "-o", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()
