# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""What every pytest file may ask for: the built programs and the models of the tree."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

TEST = Path(__file__).resolve().parent
ROOT = TEST.parent
BUILD = Path(os.environ.get("MOEC_BUILD_DIR", ROOT / "build")).resolve()

sys.path.insert(0, str(TEST / "e2e"))


def pytest_configure(config):
    config.addinivalue_line("markers", "sanitize: run again in the sanitizer build")


class Program:
    """One of our command-line programs, of this build or another, started by the words `under` if there are any."""

    def __init__(self, name: str, build: Path = BUILD, under: Sequence[str] = ()):
        self.path = build / "bin" / name
        self.words = [*under, str(self.path)]

    def run(self, *arguments, check: bool = True, **options) -> subprocess.CompletedProcess:
        done = subprocess.run([*self.words, *map(str, arguments)], capture_output=True, **{"timeout": 600, **options})
        if check:
            assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done

    def refuses(self, *arguments, **options) -> str:
        """Runs with bad input: exit code 1 and one sentence on stderr, which is returned."""
        done = self.run(*arguments, check=False, **options)
        message = done.stderr.decode(errors="replace")
        assert done.returncode == 1, f"exit code {done.returncode}: {message}"
        lines = [line for line in message.splitlines() if line.strip()]
        assert len(lines) == 1, f"expected one sentence, got: {message}"
        return lines[0]


@pytest.fixture(scope="session")
def moec() -> Program:
    return Program("moec")


@pytest.fixture(scope="session")
def moe_run() -> Program:
    return Program("moe-run")


@pytest.fixture(scope="session")
def moe_opt() -> Program:
    return Program("moe-opt")


@pytest.fixture(scope="session")
def compiled(moec, tmp_path_factory):
    """compiled(model_dir, *options) -> artifact directory; each made once a session, with code for this machine alone
    unless options say otherwise."""
    made = {}

    def compile_once(model_dir, *options):
        # A test may find its folder where that of one before it was.
        key = (str(model_dir), os.stat(model_dir).st_ctime_ns, *map(str, options))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("artifacts") / Path(model_dir).name
            cpu = [] if "--cpu" in options else ["--cpu", "native"]
            moec.run("compile", model_dir, "-o", made[key], *cpu, *options)
        return made[key]

    return compile_once
