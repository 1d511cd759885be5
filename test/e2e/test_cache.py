# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Caches of bf16 and of codes: the artifact against the interpreter of the same model, and what they cost."""

import json
from pathlib import Path

import checkpoints
import numpy as np
import pytest
from safetensors.numpy import load_file

PARITY = Path(__file__).parent / "parity"
TINY = Path(__file__).parent.parent / "models" / "tiny-shakespeare"


def logits(program, command, model, tokens, out, *options) -> np.ndarray:
    program.run(command, model, "--tokens", ",".join(map(str, tokens)), "-o", out, *options)
    return load_file(out)["logits"]


@pytest.mark.parametrize("cache", ["bf16", "int8", "fp8"])
@pytest.mark.parametrize("form", ["absorbed", "expanded"])
@pytest.mark.parametrize("name", [TINY.name, *sorted(path.name for path in PARITY.iterdir())[:2]])
def test_against_the_interpreter(name, form, cache, compiled, moec, moe_run, tmp_path):
    """An entry that f32 rounding leaves near the middle of two bf16 numbers may become either, a 256th apart in one of
    its channels, and one between two codes likewise; kernels may round queries and probabilities to bf16 too, by a 512th
    each. What f32 entries would give differs as much: errors must be of one size, and small."""
    model = TINY if name == TINY.name else checkpoints.build(PARITY / name, tmp_path / "model")
    vocab = json.loads((model / "config.json").read_text())["vocab_size"]
    tokens = np.random.default_rng(5).integers(3, vocab, 100)
    options = ("--mla", form, "--cache", cache)
    defined = logits(moec, "interpret", model, tokens, tmp_path / "interpreted.safetensors", "--optimized", *options)
    exact = logits(moec, "interpret", model, tokens, tmp_path / "f32.safetensors", "--optimized", "--mla", form)
    ours = logits(moe_run, "logits", compiled(model, *options), tokens, tmp_path / "out.safetensors", "--chunk", 40)
    scale = np.sqrt((defined**2).mean())
    rounding, error = (np.sqrt(((logits - defined) ** 2).mean()) / scale for logits in (exact, ours))
    # Codes of 4 or 8 bits are up to 16 times as coarse as bf16, and models of random weights tip over easily.
    assert 0 < rounding < {"bf16": 0.1, "int8": 0.2, "fp8": 0.25}[cache]
    assert error < min(4 * rounding, 0.15), (error, rounding)


@pytest.mark.parametrize(("cache", "bound"), [("bf16", 1e-3), ("int8", 2e-3), ("fp8", 8e-3)])
def test_divergence_is_small(cache, bound, compiled, moe_run, tmp_path):
    """Of a trained model on its own kind of text, in nats a token."""
    text = tmp_path / "text.txt"
    text.write_text((TINY / "val.txt").read_text()[:4000])
    artifact, base = compiled(TINY, "--cache", cache), compiled(TINY)
    found = json.loads(moe_run.run("perplexity", artifact, "--file", text, "--kld", base, "--json").stdout)
    assert 0 < found["kld_mean"] < bound
    assert found["same_top"] > 0.95


@pytest.mark.parametrize("cache", ["bf16", "int8", "fp8"])
def test_verify_shows_what_it_costs(cache, moec):
    report = json.loads(moec.run("verify", TINY, "--cache", cache, "--count", 24, "--json").stdout)
    steps = {step["name"]: step for step in report["steps"]}
    assert report["holds"]
    assert steps["moe-store-cache"]["proof"] == "formats" and 0 < steps["moe-store-cache"]["max_abs"] < 1
    assert steps["artifact"]["proof"] == "formats" and steps["artifact"]["max_abs"] < 1


@pytest.mark.parametrize("cache", ["bf16", "int8", "fp8"])
def test_python(cache, moec, moe_run, compiled, tmp_path):
    module = pytest.importorskip("moec", reason="the Python module is not built")
    module.compile(TINY, tmp_path / "artifact", cache=cache)
    tokens = [0, 5, 6, 7]
    found, expected = (logits(moe_run, "logits", artifact, tokens, tmp_path / f"{index}.safetensors")
                       for index, artifact in enumerate((tmp_path / "artifact", compiled(TINY, "--cache", cache))))  # fmt: skip
    assert found.tobytes() == expected.tobytes()


def test_python_refuses_others(tmp_path):
    module = pytest.importorskip("moec", reason="the Python module is not built")
    with pytest.raises(ValueError, match="format of caches is 'fp4', expected one of f32, bf16, int8, fp8"):
        module.compile(TINY, tmp_path / "bad", cache="fp4")
