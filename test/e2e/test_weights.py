# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""How a compile makes weights: its files, the memory it takes, the progress it shows."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import with_vocabulary
from safetensors import safe_open

TINY = Path(__file__).parent.parent / "models" / "tiny-shakespeare"
MIB = 1 << 20


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """Two matrices of 78 MiB and little else."""
    return with_vocabulary(TINY, tmp_path_factory.mktemp("large") / "model", 160_000)


def tensors_of(artifact: Path) -> dict[str, tuple[str, bytes]]:
    """name -> (file, bytes) of every weight, as the files' own headers have them."""
    result = {}
    for path in sorted(artifact.glob("*.safetensors")):
        raw = path.read_bytes()
        begin = 8 + int.from_bytes(raw[:8], "little")
        for name, entry in json.loads(raw[8:begin]).items():
            first, last = entry["data_offsets"]
            assert name not in result, "a weight in two files"
            result[name] = (path.name, raw[begin + first : begin + last])
    return result


def test_weights_in_several_files(compiled, moe_run, moec, tmp_path):
    whole = compiled(TINY)
    cut = compiled(TINY, "--max-file-size", "1MiB")
    expected, found = tensors_of(whole), tensors_of(cut)
    assert {name: data for name, (_, data) in found.items()} == {name: data for name, (_, data) in expected.items()}
    names = sorted(path.name for path in cut.glob("*.safetensors"))
    assert names == [f"weights-{i + 1:05}.safetensors" for i in range(len(names))] and len(names) > 3
    assert [entry["file"] for entry in json.loads((cut / "manifest.json").read_text())["weights"]] == names
    # Whole tensors: a file is longer than the limit only where it holds a single tensor.
    for name in names:
        sizes = [len(data) for file, data in found.values() if file == name]
        assert sum(sizes) <= 1 << 20 or len(sizes) == 1

    index = json.loads((cut / "weights.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: file for name, (file, _) in found.items()}
    assert index["metadata"]["total_size"] == sum(len(data) for _, data in found.values())
    for name in names:  # the public reader takes them too
        with safe_open(cut / name, "np") as file:
            assert set(file.keys()) == {weight for weight, place in index["weight_map"].items() if place == name}

    moec.run("inspect", cut, "--verify")
    logits = []
    for artifact in (whole, cut):
        out = tmp_path / f"{len(logits)}.safetensors"
        moe_run.run("logits", artifact, "--tokens", "0,5,17,300", "-o", out)
        logits.append(out.read_bytes())
    assert logits[0] == logits[1]


def test_largest_tensor_decides_where_the_limit_is_small(moec, tmp_path):
    moec.run("compile", TINY, "-o", tmp_path / "out", "--max-file-size", "1")
    files = [file for file, _ in tensors_of(tmp_path / "out").values()]
    assert len(files) == len(set(files)), "each weight has a file of its own"
    assert os.listdir(tmp_path) == ["out"]


# A process's peak counts what its parent held when it was forked: one in between that holds little.
MEASURE = """
import os, sys
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
_, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet), 0)
print(status, usage.ru_maxrss * 1024)
"""


def peak_memory(moec, *arguments) -> int:
    """Most bytes that the compiler had resident at once, mapped files included."""
    command = [sys.executable, "-c", MEASURE, str(moec.path), *map(str, arguments)]
    status, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert status == "0"
    return int(peak)


@pytest.mark.parametrize("threads", [1, 4])
def test_memory_is_bounded(threads, large, moec, tmp_path):
    """Tensors of 78 MiB under --max-memory 24MiB: the peak beyond the same compile of a small model."""
    small = with_vocabulary(TINY, tmp_path / "small", 1280)
    options = ["--max-memory", "24MiB", "--threads", threads]
    base = peak_memory(moec, "compile", small, "-o", tmp_path / "base", *options)
    assert peak_memory(moec, "compile", large, "-o", tmp_path / "out", *options) <= base + 24 * MIB


def test_memory_is_bounded_where_no_code_is_made(large, moec, tmp_path):
    """Code generation takes more than the weights do and would hide them: an interrupted compile has it behind itself."""
    out, notes = tmp_path / "out", tmp_path / ".out.moec-part" / "notes"
    process = subprocess.Popen([str(moec.path), "compile", str(large), "-o", str(out)], stderr=subprocess.DEVNULL)
    while process.poll() is None and not (notes.exists() and "weights-00001" in notes.read_text()):
        pass
    process.kill()
    process.wait()
    assert not out.exists(), "the compile was over before it could be killed"
    base = peak_memory(moec, "compile", large, "--emit=exec")
    assert peak_memory(moec, "compile", large, "-o", out, "--max-memory", "24MiB") <= base + 24 * MIB


def test_progress_on_a_terminal(large, moec, tmp_path):
    """One line, written over again and again, and gone at the end."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [str(moec.path), "compile", str(large), "-o", str(tmp_path / "out")], stdout=subprocess.DEVNULL, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(ours)
    assert process.wait() == 0
    text = shown.decode()
    assert text.endswith("\r\x1b[K") and "\n" not in text
    lines = [line for line in text.split("\r\x1b[K") if line]
    assert lines, "nothing was shown"
    for line in lines:
        assert line.startswith("weights ") and " of 163.7 MiB  " in line and "/s  " in line
    done = [int(line.split()[1]) for line in lines]
    assert done == sorted(done) and done[-1] <= 100


def test_quick_compiles_say_nothing_elsewhere(moec, tmp_path):
    assert moec.run("compile", TINY, "-o", tmp_path / "out").stderr == b""
