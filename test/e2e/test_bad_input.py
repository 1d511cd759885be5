# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Broken checkpoints and artifacts: one sentence, exit code 1, nothing half-written."""

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

MODELS = Path(__file__).parent.parent / "models"
TINY = MODELS / "tiny-shakespeare"
FP8 = MODELS / "tiny-shakespeare-fp8"

pytestmark = pytest.mark.sanitize


@pytest.fixture
def model(tmp_path) -> Path:
    """A private copy of tiny-shakespeare to break."""
    return Path(shutil.copytree(TINY, tmp_path / "model"))


@pytest.fixture
def artifact(compiled, tmp_path) -> Path:
    return Path(shutil.copytree(compiled(TINY, "--cpu", "x86-64"), tmp_path / "artifact"))


def edit_config(model: Path, **changes) -> None:
    config = json.loads((model / "config.json").read_text())
    config.update(changes)
    (model / "config.json").write_text(json.dumps(config))


def header_of(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_header(path: Path, header: dict, data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1000])


def header_length_lies(path):
    data = bytearray(path.read_bytes())
    data[:8] = struct.pack("<Q", len(data) + 5)
    path.write_bytes(data)


def ten_gigabyte_header(path):
    data = bytearray(path.read_bytes())
    data[:8] = struct.pack("<Q", 10 << 30)
    path.write_bytes(data)


def only_seven_bytes(path):
    path.write_bytes(b"1234567")


def empty_file(path):
    path.write_bytes(b"")


def header_is_no_json(path):
    data = bytearray(path.read_bytes())
    data[8:12] = b"\xff{{{"
    path.write_bytes(data)


def edited_tensor(change):
    def edit(path):
        header, data = header_of(path)
        change(header, header["model.layers.1.mlp.gate.weight"])
        write_header(path, header, data)

    return edit


def overlap(header, tensor):
    tensor["data_offsets"] = [offset - 64 for offset in tensor["data_offsets"]]


def out_of_range(header, tensor):
    tensor["data_offsets"] = [2**40, 2**40 + tensor["data_offsets"][1] - tensor["data_offsets"][0]]


def hole(header, tensor):
    header["a.hole"] = header.pop("model.norm.weight")
    header["a.hole"]["shape"] = [header["a.hole"]["shape"][0] - 1]
    header["a.hole"]["data_offsets"][1] -= 2


def backwards(header, tensor):
    tensor["data_offsets"] = tensor["data_offsets"][::-1]


def offsets_are_no_integers(header, tensor):
    tensor["data_offsets"] = [0.5, "12"]


def no_shape(header, tensor):
    del tensor["shape"]


def huge_shape(header, tensor):
    tensor["shape"] = [2**40, 2**40]


def negative_shape(header, tensor):
    tensor["shape"] = [-16, -256]


def wrong_dtype(header, tensor):
    tensor["dtype"] = "I16"


def unknown_dtype(header, tensor):
    tensor["dtype"] = "Q3"


def transposed(header, tensor):
    tensor["shape"] = tensor["shape"][::-1]


def missing(header, tensor):
    header["model.layers.1.mlp.gate.wight"] = header.pop("model.layers.1.mlp.gate.weight")


def name_given_twice(path):
    header, data = header_of(path)
    first = json.dumps({"model.layers.1.mlp.gate.weight": header["model.layers.1.mlp.gate.weight"]})
    text = (first[:-1] + ", " + json.dumps(header)[1:]).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


SHARDS = {
    "truncated": truncated,
    "header length lies": header_length_lies,
    "10 GB header": ten_gigabyte_header,
    "seven bytes": only_seven_bytes,
    "empty": empty_file,
    "no JSON": header_is_no_json,
    "overlapping": edited_tensor(overlap),
    "out of range": edited_tensor(out_of_range),
    "hole": edited_tensor(hole),
    "offsets backwards": edited_tensor(backwards),
    "offsets no integers": edited_tensor(offsets_are_no_integers),
    "no shape": edited_tensor(no_shape),
    "name given twice": name_given_twice,
    "shape overflows": edited_tensor(huge_shape),
    "negative shape": edited_tensor(negative_shape),
    "wrong dtype": edited_tensor(wrong_dtype),
    "unknown dtype": edited_tensor(unknown_dtype),
    "transposed": edited_tensor(transposed),
    "missing and unexpected tensor": edited_tensor(missing),
}


@pytest.mark.parametrize("case", SHARDS)
def test_broken_shard(case, model, moec, tmp_path):
    SHARDS[case](model / "model.safetensors")
    out = tmp_path / "out"
    message = moec.refuses("compile", model, "-o", out)
    assert "model.safetensors" in message or "model.layers.1.mlp.gate" in message
    assert os.listdir(tmp_path) == ["model"], "something half-written is left"


CONFIGS = {
    "hidden_size": [float("nan"), float("inf"), -1, 0, 1e30, "256", 2**62, None],
    "rms_norm_eps": [float("nan"), -1.0, float("inf")],
    "rope_theta": [float("nan"), 0, -5],
    "rope_scaling": [[], "yarn", {"type": "yarn", "factor": -1.0}, {"type": "dynamic", "factor": 2.0}],
    "num_experts_per_tok": [17, 0, -1],
    "n_group": [3, -4],
    "topk_group": [9, 0],
    "model_type": ["llama", 5, None],
    "scoring_func": ["tanh"],
    "topk_method": ["coin_toss"],
    "qk_rope_head_dim": [15, 0],
    "num_hidden_layers": [0, 5, 2**40],
    "hidden_act": ["gelu"],
    "attention_bias": [True],
    "quantization_config": [{"quant_method": "bogus"}, {"quant_method": "fp8", "weight_block_size": [0, 128]}],
    "vocab_size": [1279, -1],
}


@pytest.mark.parametrize("key,value", [(key, value) for key, values in CONFIGS.items() for value in values])
def test_broken_config(key, value, model, moec):
    edit_config(model, **{key: value})
    moec.refuses("compile", model, "--emit=moe")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"model_type": "deepseek_v3", "model_type": "deepseek_v2"}', "[" * 100000, "\xff\xfe", '{"a": 1} b']
)
def test_config_is_no_object(text, model, moec):
    (model / "config.json").write_bytes(text.encode("latin-1"))
    assert "config.json" in moec.refuses("compile", model, "--emit=moe")


@pytest.mark.parametrize("command", ["compile", "plan"])
def test_directory_without_config(command, model, moec, tmp_path):
    (tmp_path / "empty").mkdir()
    for directory in (tmp_path / "empty", model):
        (directory / "config.json").unlink(missing_ok=True)
        options = ["-o", tmp_path / "out"] if command == "compile" else []
        assert f"{directory}/config.json: " in moec.refuses(command, directory, *options)
    assert sorted(os.listdir(tmp_path)) == ["empty", "model"]


def test_directory_without_weights(model, moec, tmp_path):
    (model / "model.safetensors").unlink()
    message = moec.refuses("compile", model, "-o", tmp_path / "out")
    assert "holds neither model.safetensors nor model.safetensors.index.json" in message
    assert os.listdir(tmp_path) == ["model"]


def test_no_such_directory(moec, tmp_path):
    assert "nowhere" in moec.refuses("compile", tmp_path / "nowhere", "-o", tmp_path / "out")


def test_symlink_loop(model, moec):
    shard = model / "model.safetensors"
    shard.unlink()
    shard.symlink_to(shard.name)
    assert "model.safetensors" in moec.refuses("compile", model, "--emit=moe")


def test_config_is_a_directory(model, moec):
    (model / "config.json").unlink()
    (model / "config.json").mkdir()
    assert "config.json" in moec.refuses("compile", model, "--emit=moe")


@pytest.fixture
def sharded(tmp_path) -> Path:
    return Path(shutil.copytree(FP8, tmp_path / "model"))


def edit_index(model, change):
    path = model / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_absent_shard(sharded, moec):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in moec.refuses("compile", sharded, "--emit=moe")


@pytest.mark.parametrize("name", ["../model/model-00001-of-00002.safetensors", "/etc/passwd", "..", "a\x1b[31m"])
def test_index_leaves_the_directory(name, sharded, moec):
    edit_index(sharded, lambda names: names.update({"lm_head.weight": name}))
    message = moec.refuses("compile", sharded, "--emit=moe")
    assert "the file of tensor 'lm_head.weight' is not the name of a file beside the index" in message


def test_index_names_a_tensor_twice(sharded, moec):
    path = sharded / "model.safetensors.index.json"
    path.write_text(path.read_text().replace('"weight_map": {', '"weight_map": {"lm_head.weight": "x.safetensors",', 1))
    message = moec.refuses("compile", sharded, "--emit=moe")
    assert "model.safetensors.index.json: " in message and "'lm_head.weight' is given twice" in message


def test_two_shards_hold_one_tensor(sharded, moec):
    shard, name = sharded / "model-00003-of-00003.safetensors", "model.norm.weight"
    again = {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}
    own = {"dtype": "U8", "shape": [0], "data_offsets": [2, 2]}
    write_header(shard, {name: again, "x": own}, b"12")
    edit_index(sharded, lambda names: names.update({"x": shard.name}))
    message = moec.refuses("compile", sharded, "--emit=moe")
    assert f"tensor '{name}' is also in " in message and message.count("safetensors") == 2


def test_index_names_the_wrong_shard(sharded, moec):
    def swap(names):
        first = "model-00001-of-00002.safetensors"
        name = next(name for name, shard in names.items() if shard != first)
        names[name] = first

    edit_index(sharded, swap)
    moec.refuses("compile", sharded, "--emit=moe")


def test_missing_scale(sharded, moec):
    path = sharded / "model-00001-of-00002.safetensors"
    header, data = header_of(path)
    name = next(name for name in header if name.endswith("_scale_inv"))
    header[name + "_lost"] = header.pop(name)
    write_header(path, header, data)
    edit_index(sharded, lambda names: names.update({name + "_lost": names.pop(name)}))
    assert "_scale_inv" in moec.refuses("compile", sharded, "--emit=moe")


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800000], ids=["nan", "inf"])
def test_scale_is_no_number(bits, sharded, moec, tmp_path):
    path = sharded / "model-00001-of-00002.safetensors"
    header, data = header_of(path)
    name = next(name for name in header if name.endswith("_scale_inv") and "layers.4" not in name)
    data = bytearray(data)
    begin = header[name]["data_offsets"][0]
    data[begin : begin + 4] = struct.pack("<I", bits)
    write_header(path, header, bytes(data))
    message = moec.refuses("compile", sharded, "-o", tmp_path / "out")
    assert name.removesuffix("_scale_inv").removesuffix(".weight") in message
    assert sorted(os.listdir(tmp_path)) == ["model"]


def test_fp8_nan(sharded, moec, tmp_path):
    path = sharded / "model-00001-of-00002.safetensors"
    header, data = header_of(path)
    name = next(n for n, t in header.items() if n != "__metadata__" and t["dtype"] == "F8_E4M3" and "layers.4" not in n)
    data = bytearray(data)
    data[header[name]["data_offsets"][0]] = 0x7F
    write_header(path, header, bytes(data))
    message = moec.refuses("compile", sharded, "-o", tmp_path / "out")
    assert name in message and "NaN" in message


def test_corrupt_tokenizer(model, moec, moe_run, tmp_path):
    (model / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}')
    moec.run("compile", model, "-o", tmp_path / "out")
    assert "tokenizer.json" in moe_run.refuses("generate", tmp_path / "out", "--prompt", "a")


def test_output_exists_and_is_no_artifact(moec, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("keep me")
    moec.refuses("compile", TINY, "-o", tmp_path / "out")
    assert (tmp_path / "out" / "precious.txt").read_text() == "keep me"


@pytest.mark.parametrize("out", ["file", "file/out", "absent/out", "/proc/out"])
def test_output_cannot_be_made(out, moec, tmp_path):
    (tmp_path / "file").write_text("keep me")
    message = moec.refuses("compile", TINY, "-o", out, cwd=tmp_path)
    assert message.startswith(f"moec: {out}: ")
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "keep me"


def test_output_replaces_an_artifact(moec, moe_run, tmp_path):
    for _ in range(2):
        moec.run("compile", TINY, "-o", tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]
    moe_run.run("logits", tmp_path / "out", "--tokens", "0,5", "-o", tmp_path / "logits.safetensors")


@pytest.mark.parametrize("name", ["manifest.json", "weights-00001.safetensors"])
@pytest.mark.parametrize("cut", [0, 100, -100])
def test_truncated_artifact(name, cut, artifact, moe_run, tmp_path):
    path = artifact / name
    path.write_bytes(path.read_bytes()[:cut])
    assert name in moe_run.refuses("logits", artifact, "--tokens", "0", "-o", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def edit_manifest(artifact, change):
    path = artifact / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


MANIFESTS = {
    "version": lambda m: m.update(version=99),
    "abi": lambda m: m.update(abi=99),
    "format": lambda m: m.update(format="zip"),
    "another target": lambda m: m.update(target="cuda"),
    "another CPU": lambda m: m.update(code=[dict(m["code"][0], level="armv9-a")]),
    "no code": lambda m: m.update(code=[]),
    "code hash": lambda m: m["code"][0].update(xxh3="0" * 16) or m["code"][1].update(xxh3="0" * 16),
    "kernel index": lambda m: m["program"]["launches"][0].update(kernel=10**6),
    "buffer offset": lambda m: m["program"]["buffers"][0].update(offset=2**62),
    "arena": lambda m: m["program"].update(arena_bytes=1),
    "huge arena": lambda m: m["program"].update(arena_bytes=2**62),
    "grid": lambda m: m["program"]["launches"][0].update(grid=[["/", "T", 0]]),
    "weight name": lambda m: [a.update(weight="nope") for l in m["program"]["launches"] for a in l["args"] if "weight" in a],
    "file outside": lambda m: m["weights"][0].update(file="../" * 8 + "etc/passwd"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_broken_manifest(case, artifact, moe_run, tmp_path):
    edit_manifest(artifact, MANIFESTS[case])
    moe_run.refuses("logits", artifact, "--tokens", "0", "-o", tmp_path / "x")


def test_unknown_cpu_level(artifact, moe_run, tmp_path):
    env = dict(os.environ, MOEC_CPU="v9")
    assert "v9" in moe_run.refuses("logits", artifact, "--tokens", "0", "-o", tmp_path / "x", env=env)


@pytest.mark.parametrize("tokens", ["", "a", "-1", "1280", "0,,1", "99999999999999999999"])
def test_bad_tokens(tokens, compiled, moe_run, tmp_path):
    moe_run.refuses("logits", compiled(TINY), f"--tokens={tokens}", "-o", tmp_path / "x")


def test_context_is_too_long(compiled, moe_run, tmp_path):
    artifact = compiled(TINY, "--max-context", 16)
    message = moe_run.refuses("logits", artifact, "--tokens", ",".join(["5"] * 17), "-o", tmp_path / "x")
    assert "16" in message


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_logits_to_a_full_device(compiled, moe_run):
    moe_run.refuses("logits", compiled(TINY), "--tokens", "0", "-o", "/dev/full/x")


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(megabytes) -> a directory on a file system of that size; mounted again, it grows."""
    path = tmp_path / "disk"
    path.mkdir()

    def mount(megabytes: int) -> Path:
        options = f"size={megabytes}m" + (",remount" if os.path.ismount(path) else "")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        return path

    yield mount
    if os.path.ismount(path):
        subprocess.run(["umount", path], check=True)


def test_full_disk(small_disk, moec, compiled):
    """The file and the room that it needs are named, nothing is left, and with that room it works."""
    disk = small_disk(6)
    message = moec.refuses("compile", TINY, "-o", disk / "out")
    needed = (compiled(TINY) / "weights-00001.safetensors").stat().st_size
    assert "weights-00001.safetensors: needs" in message and f"needs {needed} bytes" in message
    assert os.listdir(disk) == []
    small_disk(needed // 2**20 + 4)
    moec.run("compile", TINY, "-o", disk / "out")
    assert os.listdir(disk) == ["out"]


def test_disk_without_room_for_code(small_disk, moec):
    """Kilobytes: the code is what finds it full, after notes and tokenizer were written."""
    disk = small_disk(1)
    (disk / "ballast").write_bytes(bytes(900 << 10))
    message = moec.refuses("compile", TINY, "-o", disk / "out")
    assert str(disk) in message
    assert os.listdir(disk) == ["ballast"]


def test_file_size_limit(moec, tmp_path):
    """As a full disk, but found while a file is written."""
    done = subprocess.run(
        ["bash", "-c", f"trap '' XFSZ; ulimit -f 4096; exec '{moec.path}' compile '{TINY}' -o '{tmp_path}/out'"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert os.listdir(tmp_path) == []


def test_killed_compile_leaves_no_artifact(moec, tmp_path):
    """Killed at any moment, the final name is whole or absent, and the next run works."""
    for delay in (0.05, 0.3, 0.8):
        process = subprocess.Popen([moec.path, "compile", TINY, "-o", tmp_path / "out"], stdout=subprocess.DEVNULL)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert not (tmp_path / "out").exists() or (tmp_path / "out" / "manifest.json").exists()
    moec.run("compile", TINY, "-o", tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]
