# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""moec against the public implementation, on random tiny models (see make_parity.py)."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import checkpoints

PARITY = Path(__file__).parent / "parity"
MODELS = sorted(path.name for path in PARITY.iterdir())

# Both sides compute in float32 and differ in the order of sums alone. Logits reach 19 here, where
# one ulp is 2e-6; 2e-4 leaves room for some tens of roundings on the way through three layers.
MAX_DIFFERENCE = 2e-4


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """checkpoint(name) -> directory with the model's weights, made once a session."""
    made = {}

    def build(name: str) -> Path:
        if name not in made:
            made[name] = checkpoints.build(PARITY / name, tmp_path_factory.mktemp("checkpoints") / name)
        return made[name]

    return build


def logits(program, command, model, tokens, out, *options) -> np.ndarray:
    program.run(command, model, "--tokens", ",".join(map(str, tokens)), "-o", out, *options)
    return load_file(out)["logits"]


def test_enough_models():
    assert len(MODELS) >= 14


@pytest.mark.parametrize("name", MODELS)
def test_logits(name, checkpoint, compiled, moe_run, tmp_path):
    reference = load_file(PARITY / name / "reference.safetensors")
    ours = logits(moe_run, "logits", compiled(checkpoint(name)), reference["tokens"], tmp_path / "out.safetensors")
    assert ours.dtype == np.float32 and ours.shape == reference["logits"].shape
    assert np.abs(ours - reference["logits"]).max() <= MAX_DIFFERENCE
    assert (ours.argmax(1) == reference["logits"].argmax(1)).all()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", ["absorbed", "expanded"])
def test_each_form_of_attention(name, form, checkpoint, compiled, moe_run, tmp_path):
    """Prompt and continuation in steps of 9 tokens, which auto would take in the absorbed form."""
    reference = load_file(PARITY / name / "reference.safetensors")
    prompt, greedy = reference["tokens"], reference["greedy"]
    artifact = compiled(checkpoint(name), "--mla", form)
    ours = logits(moe_run, "logits", artifact, np.concatenate([prompt, greedy]), tmp_path / "out.safetensors", "--chunk", 9)
    assert np.abs(ours[: len(prompt)] - reference["logits"]).max() <= MAX_DIFFERENCE
    assert ours[len(prompt) - 1 : -1].argmax(1).tolist() == greedy.tolist()


@pytest.mark.parametrize("name", MODELS)
def test_greedy_continuation(name, checkpoint, compiled, moe_run, tmp_path):
    """Feeding prompt and continuation, each position's arg-max is the next token of the continuation."""
    reference = load_file(PARITY / name / "reference.safetensors")
    prompt, greedy = reference["tokens"], reference["greedy"]
    assert len(greedy) == 64
    tokens = np.concatenate([prompt, greedy])
    ours = logits(moe_run, "logits", compiled(checkpoint(name)), tokens, tmp_path / "out.safetensors", "--chunk", 5)
    assert ours[len(prompt) - 1 : -1].argmax(1).tolist() == greedy.tolist()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("stage", ["imported", "optimized"])
def test_interpreter(name, stage, checkpoint, compiled, moec, moe_run, tmp_path):
    """The reference interpreter, before and after the passes, agrees with the artifact."""
    tokens = load_file(PARITY / name / "reference.safetensors")["tokens"]
    model = checkpoint(name)
    options = ["--optimized"] if stage == "optimized" else []
    defined = logits(moec, "interpret", model, tokens, tmp_path / "interpreted.safetensors", *options)
    ours = logits(moe_run, "logits", compiled(model), tokens, tmp_path / "out.safetensors")
    assert np.abs(ours - defined).max() <= MAX_DIFFERENCE
    assert (ours.argmax(1) == defined.argmax(1)).all()
