# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Codes chosen by a calibration, and formats chosen by a budget: what they promise is measured."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from checkpoints import build
from safetensors.numpy import load_file

MODEL = Path(__file__).parent.parent / "models" / "tiny-shakespeare"
TEXT = MODEL / "val.txt"


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """Twelve chunks for calibration; the others measure."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT.read_text()[:9000])
    return path


@pytest.fixture(scope="module")
def held_out(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "held-out.txt"
    path.write_text(TEXT.read_text()[9000:30000])
    return path


@pytest.fixture(scope="module")
def calibration(compiled, moec, text) -> Path:
    path = text.parent / "calibration.safetensors"
    moec.run("calibrate", compiled(MODEL), "--file", text, "-o", path)
    return path


@pytest.fixture(scope="module")
def divergence(compiled, moe_run, held_out):
    def measure(artifact) -> float:
        done = moe_run.run("perplexity", artifact, "--file", held_out, "--kld", compiled(MODEL), "--json")
        return json.loads(done.stdout)["kld_mean"]

    return measure


def bytes_of(moec, artifact) -> int:
    return sum(weight["bytes"] for weight in json.loads(moec.run("inspect", artifact, "--json").stdout)["weights"])


@pytest.mark.parametrize("format", ["int4", "mxfp4"])
def test_rounding_pays(format, compiled, calibration, divergence):
    """Scales for what matters, then errors made up for: each is nearer to the model than the one before."""
    found = [divergence(compiled(MODEL, "--experts", format))]
    for rounding in ("importance", "feedback"):
        found.append(divergence(compiled(MODEL, "--experts", format, "--rounding", rounding, "--calibration", calibration)))
    assert found[2] < found[1] < found[0]
    assert found[2] < 0.75 * found[0]


@pytest.mark.sanitize
@pytest.mark.parametrize("options", [["int4", "feedback"], ["nvfp4", "importance"], ["fp8", "feedback"]], ids="-".join)
def test_artifact_is_what_the_interpreter_rounds(options, compiled, calibration, moec, moe_run, tmp_path):
    format, rounding = options
    asked = ["--experts", format + (":weights" if format == "fp8" else ""), "--rounding", rounding]
    asked += ["--calibration", calibration]
    tokens = ",".join(map(str, load_file(MODEL / "reference.safetensors")["tokens"][:8]))
    moec.run("interpret", MODEL, "--optimized", *asked, "--tokens", tokens, "-o", tmp_path / "defined.safetensors")
    moe_run.run("logits", compiled(MODEL, *asked), "--tokens", tokens, "-o", tmp_path / "ours.safetensors")
    defined, ours = (load_file(tmp_path / name)["logits"] for name in ("defined.safetensors", "ours.safetensors"))
    assert np.abs(ours - defined).max() <= 2e-4


def test_size_budget(compiled, moec, calibration, divergence, tmp_path):
    uniform = compiled(MODEL, "--experts", "int4")
    budget = bytes_of(moec, uniform)
    arguments = ("compile", MODEL, "-o", tmp_path / "mix", "--calibration", calibration, "--size-budget", budget)
    shown = moec.run(*arguments, "--base", compiled(MODEL)).stdout.decode()
    total, predicted, achieved = re.search(r"all weights (.+), predicted KLD (.+), achieved (.+)", shown).groups()
    assert 0.95 * budget < bytes_of(moec, tmp_path / "mix") <= budget
    assert divergence(tmp_path / "mix") < divergence(uniform)
    assert 0 < float(predicted) < 10 * float(achieved) < 100 * float(predicted)
    # As many experts in each row as the model has.
    rows = [line for line in shown.splitlines() if line.startswith("model.layers.")]
    assert len(rows) == 3
    for row in rows:
        assert sum(int(count) for count in re.findall(r"(\d+) (?:int|keep)", row)) == 2 * 16


@pytest.mark.parametrize("name", ["tiny-shakespeare", "tiny-shakespeare-fp8"])
def test_report(name, compiled, moec, text, tmp_path):
    """Bytes are those of the artifact, and the rules make the same one again, also where FP8 blocks are kept."""
    model = MODEL.parent / name
    moec.run("calibrate", compiled(model), "--file", text, "-o", tmp_path / "calibration")
    budget = bytes_of(moec, compiled(model)) * 97 // 100
    arguments = ("compile", model, "--calibration", tmp_path / "calibration")
    shown = moec.run(*arguments, "-o", tmp_path / "mix", "--size-budget", budget, "--json").stdout.decode()
    report = json.loads(shown[shown.index("{") :])
    assert report["bytes"] == bytes_of(moec, tmp_path / "mix") <= budget
    assert any("keep" in layer["gate_up"] or "keep" in layer["down"] for layer in report["layers"])
    rules = [word for rule in report["formats"].splitlines() for word in ("--format", rule)]
    moec.run(*arguments, "-o", tmp_path / "again", *rules)
    made, again = (json.loads((tmp_path / one / "manifest.json").read_text()) for one in ("mix", "again"))
    assert made["weights"] == again["weights"]


def test_error_budget(compiled, moec, calibration, tmp_path):
    """A stricter budget takes more bytes, and what is achieved is within it."""
    sizes = []
    for allowed in (2e-3, 5e-4):
        arguments = ("compile", MODEL, "-o", tmp_path / "mix", "--calibration", calibration, "--base", compiled(MODEL))
        shown = moec.run(*arguments, "--error-budget", f"kld={allowed}").stdout.decode()
        assert float(re.search(r"achieved (.+)", shown)[1]) <= allowed
        sizes.append(bytes_of(moec, tmp_path / "mix"))
    assert sizes[0] < sizes[1] < bytes_of(moec, compiled(MODEL))


def test_formats_by_name(compiled, moec, moe_run, tmp_path):
    """Some experts of one layer in one format, some in another; and a dense layer by itself."""
    rules = ["--format", r"layers\.1\.mlp\.experts\.(0|5|9)\.=int8:weights", "--format", r"layers\.0\.mlp\.down=int4"]
    artifact = compiled(MODEL, "--experts", "int4", *rules)
    weights = {weight["name"]: weight for weight in json.loads(moec.run("inspect", artifact, "--json").stdout)["weights"]}
    experts = sorted(weight["shape"][0] for name, weight in weights.items() if "layers.1.mlp.experts.down" in name)
    assert experts == [3, 13]
    assert weights["model.layers.0.mlp.down_proj"]["dtype"] == "U8"
    assert weights["model.layers.0.mlp.gate_proj"]["dtype"] == "BF16"
    tokens = ",".join(map(str, load_file(MODEL / "reference.safetensors")["tokens"]))
    asked = ("--experts", "int4", *rules, "--tokens", tokens, "-o", tmp_path / "defined.safetensors")
    moec.run("interpret", MODEL, "--optimized", *asked)
    moe_run.run("logits", artifact, "--tokens", tokens, "-o", tmp_path / "ours.safetensors")
    defined, ours = (load_file(tmp_path / name)["logits"] for name in ("defined.safetensors", "ours.safetensors"))
    assert np.abs(ours - defined).max() <= 2e-4


@pytest.mark.sanitize
@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--size-budget", "3MiB"], "a size budget of 3.0 MiB cannot be met: the smallest formats make"),
        (["--size-budget", "much"], "'much' is not a size"),
        (["--error-budget", "0.01"], "--error-budget is '0.01', expected kld= and a positive number of nats"),
        (["--error-budget", "kld=-1"], "--error-budget is 'kld=-1'"),
        (["--error-budget", "kld=0.1", "--size-budget", "1GiB"], "--size-budget excludes --error-budget"),
        (["--format", "experts"], "is not of the form REGEX=FORMAT"),
        (["--format", "(=int4"], "has no valid regular expression"),
        (["--format", "layers.9.=int4"], "no weight matches the regular expression 'layers.9.'"),
        (["--format", r"experts\.3\.gate=int8"], "would have gate and up of expert 3 in two formats"),
        (["--experts", "int4", "--rounding", "guess"], "--rounding: guess not in"),
    ],
)
def test_refusals(options, sentence, calibration, moec, tmp_path):
    said = moec.refuses("compile", MODEL, "-o", tmp_path / "out", "--calibration", calibration, *options)
    assert sentence in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [["--size-budget", "1GiB"], ["--experts", "int4", "--rounding", "feedback"]])
def test_needs_a_calibration(options, moec, tmp_path):
    assert "needs a calibration" in moec.refuses("compile", MODEL, "-o", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_calibration_of_another_model(calibration, moec, tmp_path):
    model = build(Path(__file__).parent / "parity" / "v3-bf16", tmp_path / "model")
    said = moec.refuses(
        "compile", model, "-o", tmp_path / "out", "--experts", "int4", "--rounding", "feedback", "--calibration", calibration
    )
    assert "has inputs of 256 columns for tensor" in said or "says nothing of tensor" in said
    assert not (tmp_path / "out").exists()
