# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""The commands of the README work as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import BUILD, ROOT

SECTION = (ROOT / "README.md").read_text().split("## Five lines")[1].split("\n## ")[0]
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", SECTION, re.S)
ENVIRONMENT = dict(os.environ, PYTHONPATH=str(BUILD / "python"))


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder that looks like the project's, to run in and to fill."""
    (tmp_path / "build").symlink_to(BUILD)
    (tmp_path / "test").symlink_to(ROOT / "test")
    return tmp_path


def test_shell_lines(place):
    blocks = [text.strip().splitlines() for language, text in BLOCKS if language == "sh"]
    assert len(blocks[0]) == 5 and len(blocks) == 2
    for line in sum(blocks, []):
        done = subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=place, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.strip(), f"{line}\n{done.stderr}"


def test_python_lines(place):
    (text,) = (text for language, text in BLOCKS if language == "python")
    done = subprocess.run([sys.executable, "-c", text], cwd=place, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0 and len(done.stdout) > 64, done.stderr
