# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""A mixture-of-experts layer of DeepSeek-V3 at full width, from FP8 to int4: killed on the way, in bounded memory."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import sparse_checkpoint
from test_resume import noted, part_of
from test_weights import MEASURE

CONFIG = Path(__file__).parent.parent / "frontends" / "configs" / "deepseek-v3.json"
GIB, MIB = 1 << 30, 1 << 20
OPTIONS = ["--experts", "int4", "--max-memory", "1GiB"]
# What a process holds besides weights: its code and LLVM's, IR, the emitters' work. Measured by the same compile of a
# model without such weights: 150 MiB.
CODE = 256 * MIB


@pytest.fixture(scope="module")
def layer(tmp_path_factory) -> Path:
    """One layer, 256 experts, of which 16 have data: 11.5 GB, of which 0.9 are on disk."""
    config = json.loads(CONFIG.read_text())
    config |= {"vocab_size": 1024, "num_hidden_layers": 1, "first_k_dense_replace": 0, "num_nextn_predict_layers": 0}
    directory = tmp_path_factory.mktemp("v3") / "layer"
    sparse_checkpoint.write(config, directory, shards=2, data_layers={0}, data_experts=16)
    yield directory
    shutil.rmtree(directory.parent)


def start(moec, *arguments) -> subprocess.Popen:
    """`moec` under a process that prints its exit status and its peak of resident memory."""
    command = [sys.executable, "-c", MEASURE, str(moec.path), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def peak_of(process: subprocess.Popen) -> int:
    status, peak = process.communicate()[0].split()
    assert status == "0"
    return int(peak)


def test_killed_three_times(layer, moec, tmp_path):
    whole = tmp_path / "whole"
    peaks = [peak_of(start(moec, "compile", layer, "-o", whole, *OPTIONS))]
    manifest = json.loads((whole / "manifest.json").read_text())
    shutil.rmtree(whole)
    total = sum(entry["bytes"] for entry in manifest["weights"])
    # 3 x 2048 x 7168 weights of 256 experts at 4.5 bits, and a few projections beside them.
    assert 256 * 3 * 2048 * 7168 * 9 // 16 < total < 7 * GIB

    out = tmp_path / "out"
    before = 0
    for part in (1, 2, 3):
        process = subprocess.Popen(
            [str(moec.path), "compile", str(layer), "-o", str(out), *OPTIONS], stderr=subprocess.DEVNULL
        )
        while noted(out) < max(before + MIB, total * part // 4):
            assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert [entry.name for entry in tmp_path.iterdir()] == [part_of(out).name]
        before = noted(out)
    peaks.append(peak_of(start(moec, "compile", layer, "-o", out, *OPTIONS)))
    # Checksums of all files, code and tokenizer too, are in the manifest; --verify reads the weights again.
    assert json.loads((out / "manifest.json").read_text()) == manifest
    moec.run("inspect", out, "--verify")
    print(f"{total / GIB:.1f} GiB of weights, at most {max(peaks) / MIB:.0f} MiB resident")
    assert max(peaks) <= GIB + CODE
    shutil.rmtree(out)
