# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""The files of weights that a compile writes."""

import json
import os
from pathlib import Path

from safetensors import safe_open

TINY = Path(__file__).parent.parent / "models" / "tiny-shakespeare"


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
