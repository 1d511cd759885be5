# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""`moe-run perplexity --kld`: how far one artifact's logits are from another's, against NumPy and on bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from checkpoints import with_vocabulary
from safetensors.numpy import load_file

MODELS = Path(__file__).parent.parent / "models"
MODEL = MODELS / "tiny-shakespeare"
TEXT = MODEL / "val.txt"


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


@pytest.fixture(scope="module")
def pair(compiled):
    return compiled(MODEL, "--experts", "int4"), compiled(MODEL)


def test_against_numpy(pair, moe_run, tmp_path):
    """Two chunks: 512 positions, of which five lie above the 99th percentile."""
    artifact, base = pair
    text = tmp_path / "text.txt"
    text.write_text(TEXT.read_text()[:1700])
    ids = json.loads(moe_run.run("tokenize", artifact, "--file", text, "--json").stdout)
    assert 1 + 512 <= len(ids) < 1 + 768
    found = json.loads(moe_run.run("perplexity", artifact, "--file", text, "--kld", base, "--json").stdout)

    log_p, log_q = [], []
    for chunk in range(2):
        first = 1 + 256 * chunk
        tokens = ",".join(map(str, [ids[0], *ids[first : first + 255]]))
        for one, into in ((base, log_p), (artifact, log_q)):
            moe_run.run("logits", one, "--tokens", tokens, "-o", tmp_path / "out.safetensors")
            into.append(log_softmax(load_file(tmp_path / "out.safetensors")["logits"]))
    p, q = np.concatenate(log_p), np.concatenate(log_q)
    kld = (np.exp(p) * (p - q)).sum(1)
    assert kld.mean() > 1e-4  # they do differ
    assert found["tokens"] == 512
    assert np.isclose(found["kld_mean"], kld.mean(), rtol=1e-6, atol=1e-12)
    assert np.isclose(found["kld_p99"], np.sort(kld)[506], rtol=1e-6, atol=1e-12)
    assert np.isclose(found["same_top"], (p.argmax(1) == q.argmax(1)).mean(), rtol=0, atol=1e-12)
    expected = np.take_along_axis(p, np.array(ids[1:513])[:, None], 1)
    assert np.isclose(found["base_perplexity"], np.exp(-expected.mean()), rtol=1e-6)


def test_of_itself_is_zero(pair, moe_run, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT.read_text()[:1700])
    found = json.loads(moe_run.run("perplexity", pair[1], "--file", text, "--kld", pair[1], "--json").stdout)
    assert found["kld_mean"] == 0 and found["kld_p99"] == 0 and found["same_top"] == 1
    assert found["perplexity"] == found["base_perplexity"]


def test_plain_lines(pair, moe_run, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT.read_text()[:1700])
    lines = moe_run.run("perplexity", pair[0], "--file", text, "--kld", pair[1]).stdout.decode().splitlines()
    assert lines[0].startswith("perplexity ") and lines[1].startswith("KLD mean 0.00")
    assert "same top token" in lines[1] and len(lines) == 2


def test_refuses_what_is_of_another_model(pair, compiled, moec, moe_run, tmp_path):
    artifact, base = pair
    arguments = ("perplexity", artifact, "--file", TEXT, "--kld")
    assert str(tmp_path / "absent") in moe_run.refuses(*arguments, tmp_path / "absent")

    # The same vocabulary, but two words of it have changed places.
    other = tmp_path / "other"
    shutil.copytree(base, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    first, second = [word for word in vocab if word.isascii() and word.isalpha()][:2]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    message = moe_run.refuses(*arguments, other)
    assert message == (
        f"moe-run: {other}: its tokenizer reads {TEXT} differently from that of {artifact}; "
        "--kld compares artifacts of one model"
    )

    longer = tmp_path / "longer.moec"
    moec.run("compile", with_vocabulary(MODEL, tmp_path / "longer", 1284), "-o", longer)
    assert moe_run.refuses(*arguments, longer) == (
        f"moe-run: {longer}: has a vocabulary of 1284, but {artifact} has one of 1280; "
        "--kld compares artifacts of one model"
    )
