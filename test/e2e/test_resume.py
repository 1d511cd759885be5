# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Compiles that are killed and started again: they go on, and end with the same bytes."""

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkpoints import with_vocabulary

TINY = Path(__file__).parent.parent / "models" / "tiny-shakespeare"
VOCAB = 160_000  # two matrices of 78 MiB: five notes in the journal, and a moment of work
CPU = ["--cpu", "native"]  # as the fixture `compiled` has it


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """tiny-shakespeare with a vocabulary so large that its weights take a moment."""
    return with_vocabulary(TINY, tmp_path_factory.mktemp("large") / "model", VOCAB)


@pytest.fixture(scope="module")
def whole(model, compiled) -> dict[str, str]:
    return content(compiled(model))


def content(directory: Path) -> dict[str, str]:
    """Everything in an artifact, folders too, by its hash: files differ at a length that nobody reads."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in directory.rglob("*")
    }


def part_of(out: Path) -> Path:
    return out.parent / f".{out.name}.moec-part"


def noted(out: Path) -> int:
    """Bytes of weights that the journal says are there."""
    try:
        text = (part_of(out) / "notes").read_text()
    except FileNotFoundError:
        return 0
    best: dict[str, int] = {}
    # The last line may be half written; the compiler passes it over too.
    for line in text[: text.rfind("\n") + 1].splitlines()[1:]:
        *_, size, name = line.split(" ")
        best[name] = max(best.get(name, 0), int(size))
    return sum(size for name, size in best.items() if name.startswith("weights"))


def interruptible() -> None:
    """What runs in the background of a script inherits that interrupts are ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def launch(command: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible
    )


def start(moec, model: Path, out: Path, *options) -> subprocess.Popen:
    return launch([str(moec.path), "compile", str(model), "-o", str(out), *CPU, *options])


def halt(process: subprocess.Popen, out: Path, beyond: int, how: signal.Signals) -> bool:
    """Sends the signal once more than `beyond` bytes are noted; False if the compile was over before that."""
    while noted(out) <= beyond:
        if process.poll() is not None:
            return False
        time.sleep(0.001)
    process.send_signal(how)
    return True


def kill_once(moec, model: Path, out: Path, beyond: int = 0) -> None:
    process = start(moec, model, out)
    assert halt(process, out, beyond, signal.SIGKILL), process.stderr.read()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists(), "a killed compile has no artifact"


def verified(stderr: str) -> int:
    """Bytes that a run says it found intact."""
    match = re.search(r"weights: ([\d.]+) MiB of [\d.]+ MiB were there and are intact", stderr)
    return int(float(match[1]) * 2**20) if match else 0


def finish(moec, model: Path, out: Path, *options) -> int:
    """Runs to the end; bytes that were verified rather than made."""
    done = moec.run("compile", model, "-o", out, *CPU, *options)
    assert os.listdir(out.parent) == [out.name], "something is left beside the artifact"
    return verified(done.stderr.decode())


def test_killed_again_and_again(model, moec, whole, tmp_path):
    out = tmp_path / "out"
    kills, before = 0, 0
    while kills < 3:
        process = start(moec, model, out)
        killed = halt(process, out, before, signal.SIGKILL)
        _, stderr = process.communicate()
        if not killed:
            break
        assert process.returncode == -signal.SIGKILL
        kills += 1
        # It had taken up what the one before it left, but for half a MiB of rounding and headers.
        assert verified(stderr) >= before - 2**19
        before = noted(out)
        assert os.listdir(tmp_path) == [part_of(out).name]
    assert kills >= 2
    assert finish(moec, model, out) >= before - 2**19
    assert content(out) == whole


def end_at_once(process: subprocess.Popen, out: Path, how: signal.Signals) -> str:
    """Sends the signal amid the weights, on which the process ends by it; what it said."""
    assert halt(process, out, 0, how), process.stderr.read()
    _, stderr = process.communicate()
    assert process.returncode == -how
    assert os.listdir(out.parent) == [part_of(out).name]
    return stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["interrupt", "terminate"])
def test_a_signal_ends_it_at_once_and_it_goes_on(how, model, moec, whole, tmp_path):
    """Control-C, and what a scheduler sends."""
    out = tmp_path / "out"
    assert "error" not in end_at_once(start(moec, model, out), out, how)
    assert finish(moec, model, out) > 0
    assert content(out) == whole


def test_python_is_interrupted_and_goes_on(model, whole, tmp_path):
    pytest.importorskip("moec", reason="the Python module is not built")
    out = tmp_path / "out"
    code = """if True:
        import moec, sys
        moec.compile(*sys.argv[1:], cpus=["native"], progress=lambda done, total, what: print(what))
    """
    command = [sys.executable, "-c", code, str(model), str(out)]
    process = launch(command)
    assert "KeyboardInterrupt" in end_at_once(process, out, signal.SIGINT)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("verifying weights-00001.safetensors\n")
    assert os.listdir(tmp_path) == [out.name]
    assert content(out) == whole


def test_threads_and_memory_do_not_matter(model, moec, whole, tmp_path):
    kill_once(moec, model, tmp_path / "out")
    assert finish(moec, model, tmp_path / "out", "--threads", "3", "--max-memory", "64MiB") > 0
    assert content(tmp_path / "out") == whole


def test_what_was_damaged_is_made_again(model, moec, whole, tmp_path):
    out = tmp_path / "out"
    kill_once(moec, model, out, beyond=40 << 20)
    before = noted(out)
    with open(part_of(out) / "output" / "weights-00001.safetensors", "r+b") as file:
        file.seek(before - 1000)
        byte = file.read(1)
        file.seek(before - 1000)
        file.write(bytes([byte[0] ^ 1]))
    [code] = (part_of(out) / "output" / "code").iterdir()
    code.write_bytes(code.read_bytes()[:-1])
    (part_of(out) / "output" / "stray").mkdir()
    (part_of(out) / "output" / "stray" / "file").write_text("nobody noted me")
    assert 0 < finish(moec, model, out) < before
    assert content(out) == whole


def cut_line(notes: bytes) -> bytes:
    return notes[:-7]


def broken_line(notes: bytes) -> bytes:
    at = notes.rindex(b" ", 0, notes.rindex(b"weights"))
    return notes[: at - 1] + bytes([notes[at - 1] ^ 1]) + notes[at:]


@pytest.mark.parametrize("damage", [cut_line, broken_line])
def test_damaged_journal(damage, model, moec, whole, tmp_path):
    kill_once(moec, model, tmp_path / "out", beyond=40 << 20)
    notes = part_of(tmp_path / "out") / "notes"
    notes.write_bytes(damage(notes.read_bytes()))
    resumed = finish(moec, model, tmp_path / "out")
    # A line without its end is what a kill leaves: the lines before it count.
    assert (resumed > 0) == (damage is cut_line)
    assert content(tmp_path / "out") == whole


def test_another_source_or_option_starts_afresh(model, moec, compiled, tmp_path):
    out = tmp_path / "a" / "out"
    out.parent.mkdir()
    kill_once(moec, model, out)
    assert finish(moec, model, out, "--max-file-size", "64MiB") == 0
    assert content(out) == content(compiled(model, "--max-file-size", "64MiB"))
    shutil.rmtree(out)

    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    kill_once(moec, copy, out)
    with open(copy / "model.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 0x80]))
    assert finish(moec, copy, out) == 0
    assert content(out) == content(compiled(copy))


def test_another_config_starts_afresh(model, moec, compiled, tmp_path):
    """Code that was made for another epsilon is not kept."""
    copy, out = Path(shutil.copytree(model, tmp_path / "copy")), tmp_path / "a" / "out"
    out.parent.mkdir()
    kill_once(moec, copy, out)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    assert finish(moec, copy, out) == 0
    assert content(out) == content(compiled(copy))


def test_second_process_is_refused(model, moec, whole, tmp_path):
    out = tmp_path / "out"
    first = start(moec, model, out)
    assert halt(first, out, 0, signal.SIGSTOP)
    try:
        message = moec.refuses("compile", model, "-o", out, *CPU)
        assert f"{out}: is being written by another process" in message
    finally:
        first.send_signal(signal.SIGCONT)
    _, stderr = first.communicate()
    assert first.returncode == 0, stderr
    assert os.listdir(tmp_path) == ["out"]
    assert content(out) == whole


def test_bad_input_after_a_kill_leaves_nothing(model, moec, tmp_path):
    out = tmp_path / "a" / "out"
    out.parent.mkdir()
    kill_once(moec, model, out)
    done = subprocess.run(
        ["bash", "-c", f"trap '' XFSZ; ulimit -f 4096; exec '{moec.path}' compile '{model}' -o '{out}' {shlex.join(CPU)}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "ulimit -f" in done.stderr
    assert os.listdir(out.parent) == []
