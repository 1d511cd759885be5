# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""The trained model of the tree: its published figures, its reference logits, its text."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

MODELS = Path(__file__).parent.parent / "models"
# From test/models/README.md; both were made by an independent float32 forward pass.
PERPLEXITY = {"tiny-shakespeare": 65.1520, "tiny-shakespeare-fp8": 65.1462}


@pytest.mark.parametrize("name", PERPLEXITY)
def test_perplexity(name, compiled, moe_run):
    done = moe_run.run("perplexity", compiled(MODELS / name), "--file", MODELS / name / "val.txt", "--json")
    found = json.loads(done.stdout)
    assert found["chunks"] == 82 and found["tokens"] == 20992
    # Four digits are asked for; float32 sums in another order move the sixth.
    assert abs(found["perplexity"] - PERPLEXITY[name]) < 5e-4


@pytest.mark.parametrize("name", PERPLEXITY)
@pytest.mark.parametrize("form", ["auto", "absorbed", "expanded"])
def test_reference_logits(name, form, compiled, moe_run, tmp_path):
    reference = load_file(MODELS / name / "reference.safetensors")
    tokens = ",".join(map(str, reference["tokens"]))
    artifact = compiled(MODELS / name, "--mla", form)
    moe_run.run("logits", artifact, "--tokens", tokens, "-o", tmp_path / "out.safetensors")
    ours = load_file(tmp_path / "out.safetensors")["logits"]
    assert np.abs(ours - reference["logits"]).max() <= 2e-4
    assert (ours.argmax(1) == reference["logits"].argmax(1)).all()


@pytest.mark.parametrize("name", PERPLEXITY)
@pytest.mark.parametrize("options", [[], ["--optimized"]], ids=["imported", "optimized"])
def test_interpreter(name, options, compiled, moec, moe_run, tmp_path):
    """The reference interpreter, before and after the passes, agrees with the artifact over 96 tokens of the text."""
    artifact = compiled(MODELS / name)
    text = (MODELS / name / "val.txt").read_text()[:400]
    tokens = json.loads(moe_run.run("tokenize", artifact, "--text", text, "--json").stdout)
    ids = ",".join(map(str, tokens[:96]))
    moec.run("interpret", MODELS / name, "--tokens", ids, "-o", tmp_path / "defined.safetensors", *options)
    moe_run.run("logits", artifact, "--tokens", ids, "-o", tmp_path / "ours.safetensors")
    defined = load_file(tmp_path / "defined.safetensors")["logits"]
    ours = load_file(tmp_path / "ours.safetensors")["logits"]
    assert ours.shape == (96, 1280) and np.abs(ours - defined).max() <= 2e-4


def test_greedy_continuation(compiled, moe_run, tmp_path):
    model = MODELS / "tiny-shakespeare"
    reference = load_file(model / "reference.safetensors")
    prompt, whole = reference["tokens"], reference["greedy"]  # the latter begins with the prompt
    assert len(whole) == len(prompt) + 64 and (whole[: len(prompt)] == prompt).all()
    tokens = ",".join(map(str, whole))
    moe_run.run("logits", compiled(model), "--tokens", tokens, "-o", tmp_path / "out.safetensors")
    ours = load_file(tmp_path / "out.safetensors")["logits"]
    assert ours[len(prompt) - 1 : -1].argmax(1).tolist() == whole[len(prompt) :].tolist()


def test_greedy_text(compiled, moe_run):
    """`generate` at temperature 0 prints the text of those tokens, and the same whatever the threads."""
    artifact = compiled(MODELS / "tiny-shakespeare")
    texts = {
        moe_run.run("generate", artifact, "--prompt", "ROMEO:\nWhat light", "-n", 64, "--temperature", 0, "--threads", threads)
        .stdout.decode()
        for threads in (1, 2, 5)
    }
    assert len(texts) == 1
    assert len(texts.pop()) > 64


def test_seed_decides(compiled, moe_run):
    artifact = compiled(MODELS / "tiny-shakespeare")

    def text(seed):
        return moe_run.run("generate", artifact, "--prompt", "KING RICHARD:\n", "-n", 48, "--temperature", 1, "--seed", seed).stdout

    assert text(1) == text(1)
    assert text(1) != text(2)
