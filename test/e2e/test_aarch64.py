# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""One artifact on x86-64 and on 64-bit Arm, which qemu-user emulates: the same bits from the same weights."""

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, Program
from safetensors.numpy import load_file

MODEL = Path(__file__).parent.parent / "models" / "tiny-shakespeare"
BUILD = ROOT / "build-aarch64"
# Tiles of AMX have bits of their own where bf16 meets bf16.
BOTH = ("--cpu", "x86-64-v4-vnni,x86-64-v3,aarch64")
# What the emulated CPU has.
CPUS = {"cortex-a53": "aarch64", "neoverse-n1": "aarch64-dotprod", "max": "aarch64-i8mm"}
FORMATS = {
    "as-stored": [],
    "codes": ["--experts", "int4:a32", "--dense", "int8", "--attention", "int8:a32", "--head", "bf16:a16", "--cache", "bf16"],
    "small-floats": ["--experts", "fp8", "--attention", "mxfp4", "--dense", "nvfp4", "--cache", "int8", "--mla", "absorbed"],
    "zero-points": ["--experts", "int4:zero", "--dense", "mxfp4:a32", "--head", "f16", "--cache", "fp8", "--mla", "expanded"],
}

pytestmark = [
    pytest.mark.skipif(not (BUILD / "bin" / "moe-run").exists(), reason="no runtime for aarch64 was built"),
    pytest.mark.skipif(not shutil.which("qemu-aarch64"), reason="there is no qemu-aarch64"),
]


def emulated(cpu: str) -> Program:
    return Program("moe-run", BUILD, ["qemu-aarch64", "-cpu", cpu])


@pytest.mark.parametrize("formats", FORMATS)
def test_same_bits(formats, compiled, moe_run, tmp_path):
    artifact = compiled(MODEL, *BOTH, *FORMATS[formats])
    tokens = ",".join(str(i * 37 % 1280) for i in range(70))
    moe_run.run("logits", artifact, "--tokens", tokens, "-o", tmp_path / "here")
    here = load_file(tmp_path / "here")["logits"].tobytes()
    for cpu in CPUS:
        emulated(cpu).run("logits", artifact, "--tokens", tokens, "-t", 2, "-o", tmp_path / cpu)
        assert load_file(tmp_path / cpu)["logits"].tobytes() == here, cpu


@pytest.mark.parametrize("cpu", CPUS)
def test_best_level_is_chosen(cpu, compiled):
    """And the probes of what the machine can do run."""
    artifact = compiled(MODEL, *BOTH)
    shown = emulated(cpu).run("bench", artifact, "-p", 4, "-n", 1, "-r", 1, "-t", 1, "--json").stdout
    assert json.loads(shown)["device"] == CPUS[cpu]


def test_text(compiled, moe_run):
    artifact = compiled(MODEL, *BOTH)
    words = ("generate", artifact, "-p", "Thou art más älter 中, ", "-n", 24, "--temp", 0.8, "--seed", 7)
    assert emulated("max").run(*words).stdout == moe_run.run(*words).stdout


def test_other_machines_are_refused(compiled, moe_run):
    x86, arm = compiled(MODEL, "--cpu", "x86-64"), compiled(MODEL, "--cpu", "aarch64-i8mm")
    said = emulated("max").refuses("logits", x86, "--tokens", 1, "-o", "-")
    assert "has code for x86-64-v4-amx, x86-64-v4-vnni, x86-64-v4, x86-64-v3-vnni, x86-64-v3, but this machine supports aarch64-i8mm" in said
    said = emulated("neoverse-n1").refuses("logits", arm, "--tokens", 1, "-o", "-")
    assert "has code for aarch64-i8mm, but this machine supports aarch64-dotprod at most" in said
    environment = dict(os.environ, MOEC_CPU="i8mm")
    said = emulated("cortex-a53").refuses("logits", compiled(MODEL, *BOTH), "--tokens", 1, "-o", "-", env=environment)
    assert "MOEC_CPU asks for aarch64-i8mm, but this machine supports aarch64 at most" in said
    assert "but this machine supports x86-64" in moe_run.refuses("logits", arm, "--tokens", 1, "-o", "-")
