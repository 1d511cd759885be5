# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""`moec verify`: every pass and the artifact, proved by running. What it catches is in VerifyTest.cpp."""

import json
from pathlib import Path

import checkpoints
import pytest
import quantized
import sparse_checkpoint
from safetensors.numpy import load_file

PARITY = Path(__file__).parent / "parity"
MODELS = Path(__file__).parent.parent / "models"
TINY = MODELS / "tiny-shakespeare"
BOUND = 2e-4  # kRoundingBound


def report_of(moec, *arguments) -> dict:
    return json.loads(moec.run("verify", *arguments, "--json").stdout)


def test_bundled_models(moec):
    for name in ("tiny-shakespeare", "tiny-shakespeare-fp8"):
        report = report_of(moec, MODELS / name, "--count", 16)
        steps = {step["name"]: step for step in report["steps"]}
        assert report["holds"] and report["tokens"] == 16
        exact = ["moe-fuse-gate-up", "moe-fuse-projections", "moe-fuse-residual", "moe-trim-rows"]
        # As wide as a routed one, the shared expert is the last term of the sum in either form.
        joined = steps.pop("moe-join-shared-expert")
        assert joined["proof"] == "rounded" and joined["max_abs"] == 0
        assert list(steps) == ["moe-fuse-mla", "moe-choose-mla", *exact, "artifact"]
        assert all(steps[name]["max_abs"] == 0 for name in exact)
        assert 0 < steps["moe-fuse-mla"]["max_abs"] <= BOUND and 0 < steps["artifact"]["max_abs"] <= BOUND


def test_forms_of_attention(moec):
    """70 tokens are enough for auto to take the expanded form, which the pass alone brings in."""
    for form, chosen in {"auto": True, "absorbed": False, "expanded": True}.items():
        report = report_of(moec, TINY, "--mla", form, "--count", 70)
        steps = {step["name"]: step for step in report["steps"]}
        assert report["holds"]
        if chosen:
            assert 0 < steps["moe-choose-mla"]["max_abs"] <= BOUND
        else:
            assert "moe-choose-mla" in report["unchanged"]
    assert "--mla" in moec.refuses("verify", TINY, "--mla", "both")


@pytest.mark.parametrize("name", sorted(path.name for path in PARITY.iterdir()))
def test_parity_models(name, moec, tmp_path):
    assert report_of(moec, checkpoints.build(PARITY / name, tmp_path / "model"), "--count", 8)["holds"]


def test_shared_expert_in_two_parts(moec, tmp_path):
    """Twice as wide, its sums are cut in two."""
    report = report_of(moec, checkpoints.build(PARITY / "v2-lite", tmp_path / "model"), "--count", 8)
    steps = {step["name"]: step for step in report["steps"]}
    assert 0 < steps["moe-join-shared-expert"]["max_abs"] <= BOUND
    assert steps["moe-trim-rows"]["max_abs"] == 0


@pytest.mark.parametrize("name", ["fp8-32x32", "gptq-v1-order", "pack4", "nvfp4"])
def test_quantized_checkpoints(name, moec, tmp_path):
    model, _ = quantized.build(tmp_path, name)
    assert report_of(moec, model, "--count", 8)["holds"]


@pytest.mark.parametrize("format", ["f32", "int4", "int8"])
def test_norms_fold_into_weights_before_these_are_rounded(format, moec):
    """So the fold itself is held to the bound of rounding, whatever the weights become after it."""
    formats = [word for kind in ("experts", "attention", "dense", "head") for word in (f"--{kind}", format)]
    report = report_of(moec, TINY, "--fold-norm", *formats, "--count", 16)
    steps = {step["name"]: step for step in report["steps"]}
    assert report["holds"]
    assert steps["moe-fold-norm"]["proof"] == "rounded" and 0 < steps["moe-fold-norm"]["max_abs"] <= BOUND
    assert list(steps).index("moe-fold-norm") + 1 == list(steps).index("moe-quantize")
    # What is kept in bf16 has no room for products.
    assert "moe-fold-norm" in report_of(moec, TINY, "--fold-norm", "--count", 4, "--no-artifact")["unchanged"]


def test_norms_of_fp8_checkpoints_fold(moec):
    report = report_of(moec, MODELS / "tiny-shakespeare-fp8", "--fold-norm", "--experts", "int4", "--dense", "int4", "--count", 8)
    (step,) = [step for step in report["steps"] if step["name"] == "moe-fold-norm"]
    assert report["holds"] and 0 < step["max_abs"] <= BOUND


def test_formats_make_another_model(moec):
    report = report_of(moec, TINY, "--experts", "int4", "--head", "int4:g64", "--tokens", "0,5,6,7")
    (step,) = [step for step in report["steps"] if step["name"] == "moe-quantize"]
    assert step["proof"] == "formats" and step["max_abs"] > BOUND and step["kld_mean"] > 0
    assert report["holds"] and report["tokens"] == 4
    assert report["steps"][-1]["name"] == "artifact" and report["steps"][-1]["max_abs"] <= BOUND


def test_a_slice_of_the_model(moec, tmp_path):
    """A dense layer and one of experts, as of a model that is too large to be run as a whole."""
    report = report_of(moec, TINY, "--layers", "0,2", "--count", 8)
    assert report["holds"] and report["steps"][-1]["name"] == "artifact"
    logits = []
    for layers in ([], ["--layers", "0,1,2,3"], ["--layers", "0,2"]):
        moec.run("interpret", TINY, "--tokens", "0,5,6", "-o", tmp_path / "out.safetensors", *layers)
        logits.append(load_file(tmp_path / "out.safetensors")["logits"])
    assert (logits[0] == logits[1]).all() and (logits[0] != logits[2]).any()


def test_equal_seeds_draw_equal_tokens(moec):
    one, same, other = (report_of(moec, TINY, "--no-artifact", "--count", 6, "--seed", seed) for seed in (3, 3, 4))
    assert one == same != other
    assert [step["name"] for step in one["steps"]][-1] == "moe-trim-rows"


def test_table(moec):
    lines = moec.run("verify", TINY, "--no-artifact", "--count", 4).stdout.decode().splitlines()
    assert lines[0].split() == ["step", "proof", "max", "abs", "max", "rel", "KLD", "same", "top", "holds"]
    assert lines[-1] == "unchanged by canonicalize cse moe-quantize"
    assert sum(line.endswith("yes") for line in lines) == 7


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--tokens", "0,1280"], "moec: token 1280 is not in the vocabulary of 1280"),
        (["--tokens", "0,x"], "--tokens"),
        (["--tokens", "0,1", "--count", "3"], "--tokens excludes --count"),
        (["--count", "0"], "--count"),
        (["--experts", "int5"], "unknown weight format 'int5'"),
        (["--layers", "0,4"], "layer 4 is asked for after layer 0, but"),
        (["--layers", "2,2"], "layer 2 is asked for after layer 2, but"),
        (["--layers", "-1"], "--layers is '-1', expected ids"),
        (["--layers", "1,"], "--layers"),
    ],
)
def test_bad_input(arguments, sentence, moec):
    assert sentence in moec.refuses("verify", TINY, *arguments)


def test_a_model_that_says_nothing(moec, tmp_path):
    """A checkpoint whose embeddings are a hole would pass any pass."""
    config = json.loads((TINY / "config.json").read_text())
    sparse_checkpoint.write(config, tmp_path / "model", shards=1)
    assert moec.refuses("verify", tmp_path / "model") == (
        f"moec: {tmp_path / 'model'}: all logits are 0, so that equal ones would prove nothing"
    )


def test_absent_model(moec, tmp_path):
    assert str(tmp_path / "absent") in moec.refuses("verify", tmp_path / "absent")
