# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""`pip install .` gives a module that compiles and runs a model."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

PROGRAM = """
import moec, sys
moec.compile(sys.argv[1], sys.argv[2])
print("".join(moec.load(sys.argv[2]).generate("ROMEO:\\n", max_new_tokens=8, temperature=0)))
"""


def test_pip_install(tmp_path):
    site = tmp_path / "site"
    installed = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, ROOT],
        capture_output=True,
        text=True,
    )
    assert installed.returncode == 0, installed.stderr[-4000:]
    assert (site / "moec" / "py.typed").exists() and (site / "moec" / "_moec.pyi").exists()
    assert not list(site.rglob("*.cpp"))
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, ROOT / "test/models/tiny-shakespeare", tmp_path / "ts.moec"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()
