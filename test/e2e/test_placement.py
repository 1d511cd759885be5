# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Weights in memory of the process: the same logits, as much memory as promised. hwloc is told of memory nodes that are
not there, where threads and memory are then bound to nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

moec = pytest.importorskip("moec", reason="the Python module is not built")

MODEL = Path(__file__).parent.parent / "models" / "tiny-shakespeare"
TOKENS = "1,5,9,13,17"

# What a process has resident once it has loaded a model, in bytes.
RESIDENT = """
import moec, re, sys
model = moec.load(sys.argv[1], threads=2, weights="replicated")
print(1024 * int(re.search(r"VmRSS:\\s*(\\d+)", open("/proc/self/status").read())[1]))
"""


def nodes(count: int) -> dict:
    return dict(os.environ, HWLOC_SYNTHETIC=f"numa:{count} core:1 pu:1")


def test_same_logits(compiled, moe_run, tmp_path):
    artifact = compiled(MODEL)
    found = []
    for placement, environment in [("mapped", None), ("copied", None), ("copied", nodes(2)), ("replicated", nodes(2))]:
        out = tmp_path / f"{len(found)}"
        moe_run.run("logits", artifact, "--tokens", TOKENS, "--weights", placement, "-o", out, env=environment)
        found.append(out.read_bytes())
    assert all(logits == found[0] for logits in found)


def test_a_copy_for_each_node(compiled, moec):
    # As f32 they are large beside what else the process has.
    artifact = compiled(MODEL, "--experts", "f32", "--attention", "f32", "--dense", "f32", "--head", "f32")
    size = sum(weight["bytes"] for weight in json.loads(moec.run("inspect", artifact, "--json").stdout)["weights"])
    assert size > 16e6

    def resident(count: int) -> int:
        return int(subprocess.check_output([sys.executable, "-c", RESIDENT, artifact], env=nodes(count)))

    assert 2.5 * size < resident(4) - resident(1) < 3.5 * size


def test_no_memory_for_copies(compiled, moe_run, tmp_path):
    out = tmp_path / "out"
    words = ("logits", compiled(MODEL), "--tokens", TOKENS, "--weights", "replicated", "-o", out)
    said = moe_run.refuses(*words, env=nodes(8000))
    assert "copies of the weights of" in said and "bytes on each of 8000 memory nodes, but" in said
    assert not out.exists()


def test_from_python(compiled):
    with pytest.raises(ValueError, match="weights are to be 'there', expected mapped, copied or replicated"):
        moec.load(compiled(MODEL), weights="there")
