# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Checkpoints of full size with holes for data, and what the compiler makes of their headers."""

import ctypes
import json
import mmap
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sparse_checkpoint
from checkpoints import bf16_to_float, e4m3_table, expand_blocks
from safetensors import safe_open

CONFIGS = Path(__file__).parent.parent / "frontends" / "configs"
MIB = 1 << 20


def published(name: str, **changes) -> dict:
    return dict(json.loads((CONFIGS / f"{name}.json").read_text()), **changes)


@pytest.fixture(scope="module")
def sparse_dir(tmp_path_factory):
    """Where files may be large; emptied at once afterwards, because not every tool keeps holes."""
    directory = tmp_path_factory.mktemp("sparse")
    probe = directory / "probe"
    try:
        with open(probe, "wb") as file:
            file.truncate(32 << 30)
    except OSError as error:
        pytest.skip(f"the file system of {directory} takes no file of 32 GiB: {error}")
    if probe.stat().st_blocks * 512 > MIB:
        pytest.skip(f"the file system of {directory} stores holes")
    probe.unlink()
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def v3(sparse_dir) -> Path:
    """DeepSeek-V3 as published, 163 shards, by the command line."""
    out = sparse_dir / "v3"
    command = [sys.executable, sparse_checkpoint.__file__, "--config", CONFIGS / "deepseek-v3.json", "--shards", "163", out]
    subprocess.run(list(map(str, command)), check=True, timeout=300)
    return out


def compile_to_ir(moec, model: Path, out: Path, timeout: float = 300) -> tuple[float, int]:
    """Seconds and peak resident bytes of `moec compile --emit=moe`, as the kernel accounts them. The peak
    is at least that of the calling Python process, from which the program starts."""
    start = time.monotonic()
    process = subprocess.Popen([str(moec.path), "compile", str(model), "--emit=moe", "-o", str(out)], stderr=subprocess.PIPE)
    timer = threading.Timer(timeout, process.kill)
    timer.start()
    try:
        message = process.stderr.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
    finally:
        timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, message
    return time.monotonic() - start, usage.ru_maxrss * 1024


def cached_bytes(path: Path) -> int:
    """How much of a file is in the page cache."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        bytes_ = np.frombuffer(mapped, np.uint8)
        pages = np.zeros(-(-len(bytes_) // mmap.PAGESIZE), np.uint8)
        result = libc.mincore(
            ctypes.c_void_p(bytes_.ctypes.data), ctypes.c_size_t(len(bytes_)), ctypes.c_void_p(pages.ctypes.data)
        )
        del bytes_  # the mapping cannot be closed before
    assert result == 0, os.strerror(ctypes.get_errno())
    return int((pages & 1).sum()) * mmap.PAGESIZE


# Config, tensors, elements and bytes as the published headers have them, where they are known (V2: to five digits).
PUBLISHED = {
    "v2-lite": (published("deepseek-v2-lite"), 5291, 15_706_484_224, 2 * 15_706_484_224),
    "v2": (published("deepseek-v2"), 29_102, pytest.approx(235.74e9, abs=5e6), pytest.approx(2 * 235.74e9, abs=1e7)),
    "v3": (published("deepseek-v3"), 91_991, 684_531_386_000, 688_574_839_360),
    "v3.1": (published("deepseek-v3-1"), 91_991, 684_531_386_000, 688_574_839_360),
    "v3.2": (published("deepseek-v3-2"), 92_425, 685_396_921_376, pytest.approx(642.12 * 2**30, abs=5e6)),
    "kimi-k2": (published("kimi-k2"), 139_644, 1_026_470_731_056, None),
    "v4-flash": (published("deepseek-v4-flash"), 69_187, None, 159_609_485_896),
    "v4-pro": (published("deepseek-v4-pro"), 145_116, None, 864_704_792_696),
}


@pytest.mark.parametrize("config, count, elements, size", PUBLISHED.values(), ids=PUBLISHED)
def test_listing_has_the_published_totals(config, count, elements, size):
    tensors = list(sparse_checkpoint.listing(config))
    assert len({tensor.name for tensor in tensors}) == len(tensors) == count
    assert elements is None or sum(tensor.elements for tensor in tensors) == elements
    assert size is None or sum(tensor.bytes for tensor in tensors) == size


def test_v3_has_the_published_elements_of_each_type():
    elements = Counter()
    for tensor in sparse_checkpoint.listing(published("deepseek-v3")):
        elements[tensor.dtype] += tensor.elements
    assert elements == {"F8_E4M3": 680_571_043_840, "BF16": 3_918_786_560, "F32": 41_555_600}


def test_layout_of_v3(v3):
    shards = sorted(v3.glob("*.safetensors"))
    assert [shard.name for shard in shards] == [f"model-{i:05d}-of-000163.safetensors" for i in range(1, 164)]
    sizes = [shard.stat().st_size for shard in shards]
    assert 688.574e9 < sum(sizes) < 688.6e9
    assert 2e9 < min(sizes) and max(sizes) < 6e9
    assert sum(shard.stat().st_blocks for shard in shards) * 512 < 64 * MIB

    index = json.loads((v3 / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 688_574_839_360
    stored = {}
    for shard in shards:  # read by the package that defines the format, which checks offsets and sizes
        with safe_open(shard, "np") as file:
            stored.update(dict.fromkeys(file.keys(), shard.name))
    assert stored == index["weight_map"]
    assert len(stored) == 91_991


def test_import_of_v3(moec, v3, tmp_path):
    """671B parameters: headers are read, data is not, and the IR grows with the layers only."""
    shards = sorted(v3.glob("*.safetensors"))
    seconds, peak = compile_to_ir(moec, v3, tmp_path / "v3.mlir")
    size = (tmp_path / "v3.mlir").stat().st_size
    print(f"DeepSeek-V3 imported in {seconds:.2f} s, {peak / MIB:.0f} MiB at most, {size / 1e3:.0f} kB of IR")
    assert peak < 1536 * MIB
    # Reading data would have brought it into the page cache. The system reads some megabytes ahead of each header.
    assert sum(map(cached_bytes, shards)) < 0.01 * sum(shard.stat().st_size for shard in shards)

    narrow = published("deepseek-v3", hidden_size=1408, intermediate_size=9216, moe_intermediate_size=960)
    parameters = [
        sum(tensor.elements for tensor in sparse_checkpoint.listing(config) if tensor.layer == 3)
        for config in (published("deepseek-v3"), narrow)
    ]
    assert parameters[0] == pytest.approx(10 * parameters[1], rel=0.05)
    sparse_checkpoint.write(narrow, v3.parent / "narrow", 163)
    compile_to_ir(moec, v3.parent / "narrow", tmp_path / "narrow.mlir")
    assert size == pytest.approx((tmp_path / "narrow.mlir").stat().st_size, rel=0.01)


@pytest.mark.parametrize(
    "name, shards",
    [
        ("deepseek-v2-lite", 4),
        ("deepseek-v2", 55),
        ("deepseek-v3-1", 163),
        ("deepseek-v3-2", 163),
        ("kimi-k2", 61),
        ("moonlight-16b", 27),
    ],
)
def test_import_of_published_models(moec, sparse_dir, tmp_path, name, shards):
    """The compiler's own list of tensors, against this one: a name, shape or type that differs is refused."""
    sparse_checkpoint.write(published(name), sparse_dir / name, shards)
    seconds, peak = compile_to_ir(moec, sparse_dir / name, tmp_path / "model.mlir")
    print(f"{name} imported in {seconds:.2f} s, {peak / MIB:.0f} MiB at most")
    assert peak < 1536 * MIB


def test_v3_2_is_dense_up_to_what_its_indexer_picks(moec, sparse_dir, tmp_path):
    sparse_checkpoint.write(published("deepseek-v3-2"), sparse_dir / "dense", 163)
    moec.run("compile", sparse_dir / "dense", "--max-context", 2048, "--emit=moe", "-o", tmp_path / "2048.mlir")
    message = moec.refuses("compile", sparse_dir / "dense", "--max-context", 2049, "--emit=moe", "-o", tmp_path / "2049.mlir")
    assert "a context of 2049 tokens is asked for" in message and "'index_topk' 2048" in message
    assert not (tmp_path / "2049.mlir").exists()


def test_v4_pro_is_planned_and_refused(moec, sparse_dir, tmp_path):
    """145,116 tensors in 163 headers; what is missing is named by both commands."""
    sparse_checkpoint.write(published("deepseek-v4-pro"), sparse_dir / "v4", 163)
    start = time.monotonic()
    found = json.loads(moec.run("plan", "--json", sparse_dir / "v4").stdout)
    seconds = time.monotonic() - start
    print(f"DeepSeek-V4-Pro planned in {seconds:.2f} s")
    assert found["from_headers"]
    assert found["checkpoint"] == {"tensors": 145_116, "bytes": 864_704_792_696}
    parts = found["weights"]["parts"]
    assert not any(part["part"] == "others" for part in parts), "the compiler's own list knows every tensor"
    bare = json.loads(moec.run("plan", "--json", CONFIGS / "deepseek-v4-pro.json").stdout)
    assert parts == bare["weights"]["parts"]

    message = moec.refuses("compile", sparse_dir / "v4", "-o", tmp_path / "artifact")
    for missing in found["unsupported"]:
        assert missing in message
    assert len(found["unsupported"]) == 4 and os.listdir(tmp_path) == []


def test_no_data_for_v4(tmp_path):
    with pytest.raises(SystemExit, match="random data is not made for deepseek_v4"):
        sparse_checkpoint.write(published("deepseek-v4-flash"), tmp_path / "model", 1, data_layers={0})
    assert not (tmp_path / "model").exists()


def small_config(**changes) -> dict:
    """Three layers, one of them dense, eight experts, one layer for multi-token prediction; sizes that no
    128 x 128 block divides."""
    sizes = {
        "num_hidden_layers": 3, "first_k_dense_replace": 1, "hidden_size": 320, "intermediate_size": 448,
        "moe_intermediate_size": 192, "n_routed_experts": 8, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 96, "vocab_size": 300,
    }  # fmt: skip
    return published("deepseek-v3", **(sizes | changes))


NUMPY_TYPES = {"F32": np.float32, "BF16": np.uint16, "F8_E4M3": np.uint8}


def read_all(directory: Path) -> dict[str, np.ndarray]:
    """Tensors as stored: bf16 and FP8 as bit patterns."""
    result = {}
    for shard in directory.glob("*.safetensors"):
        data = shard.read_bytes()
        begin = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:begin])
        del header["__metadata__"]
        for name, info in header.items():
            first, last = info["data_offsets"]
            stored = np.frombuffer(data[begin + first : begin + last], NUMPY_TYPES[info["dtype"]])
            result[name] = stored.reshape(info["shape"])
    return result


def values_of(tensors: dict[str, np.ndarray], name: str) -> np.ndarray:
    return e4m3_table()[tensors[name]] * expand_blocks(tensors[name + "_scale_inv"], tensors[name].shape, (128, 128))


def test_data_of_chosen_layers_and_experts(tmp_path):
    sparse_checkpoint.write(small_config(), tmp_path, 5, data_layers={1}, data_experts=3)
    tensors = read_all(tmp_path)
    for name, stored in tensors.items():
        if name.endswith("norm.weight"):
            assert (bf16_to_float(stored) == 1).all(), name
        elif not name.startswith("model.layers.1."):
            assert not stored.any(), name
        elif name.endswith("_scale_inv"):
            assert (stored > 0).all() and np.isfinite(stored).all(), name
        elif ".experts." in name and int(name.split(".")[5]) >= 3:
            assert not stored.any(), name
        else:
            assert np.count_nonzero(stored) > 0.9 * stored.size, name

    experts = [f"model.layers.1.mlp.experts.{e}.{part}_proj.weight" for e in range(3) for part in ("gate", "up", "down")]
    values = np.concatenate([values_of(tensors, name).ravel() for name in experts])
    assert np.isfinite(values).all()
    assert abs(values.mean()) < 0.001
    assert 0.015 < values.std() < 0.03
    # As in a block scaled by its largest element: codes come near 448, and few reach it.
    for name in experts:
        rows, cols = tensors[name].shape
        for col in range(0, cols - 127, 128):
            codes = np.abs(e4m3_table()[tensors[name][:128, col : col + 128]])
            assert 208 <= codes.max() <= 448 and (codes == 448).mean() < 0.001, (name, col)
    gate = bf16_to_float(tensors["model.layers.1.mlp.gate.weight"])
    assert 0.01 < gate.std() < 0.04 and abs(gate.mean()) < 0.005
    assert (tensors["model.layers.1.mlp.gate.e_score_correction_bias"] > 2).all()


@pytest.mark.parametrize("name", ["mlp.gate", "mlp.experts.0.up_proj", "self_attn.o_proj"])
def test_some_input_channels_are_outliers(tmp_path, name):
    """Four times as large as the others, in bf16 as in FP8, where they share a scale with smaller ones."""
    sparse_checkpoint.write(small_config(hidden_size=1536, n_routed_experts=64), tmp_path, 1, data_layers={1})
    tensors, weight = read_all(tmp_path), f"model.layers.1.{name}.weight"
    values = values_of(tensors, weight) if weight + "_scale_inv" in tensors else bf16_to_float(tensors[weight])
    size = np.sqrt((values.astype(np.float64) ** 2).mean(axis=0))
    # Of the 64 rows of the router a deviation is known to a fifth.
    large = size > 2.2 * np.median(size)
    assert 1 <= large.sum() <= max(1, values.shape[1] // 512)
    assert 2.5 < size[large].mean() / size[~large].mean() < 5.5
    assert size[~large].max() < 2.2 * np.median(size)


def test_scales_of_a_ue8m0_checkpoint_are_powers_of_two(tmp_path):
    quantization = dict(small_config()["quantization_config"], scale_fmt="ue8m0")
    sparse_checkpoint.write(small_config(quantization_config=quantization), tmp_path, 1, data_layers={2})
    scales = [x for name, x in read_all(tmp_path).items() if name.endswith("_scale_inv") and ".layers.2." in name]
    assert all((np.frexp(scale)[0] == 0.5).all() for scale in scales)
    assert len(np.unique(np.concatenate([scale.ravel() for scale in scales]))) > 1


def test_data_follows_from_seed_and_name(tmp_path):
    """Not from the shards, nor from what else has data."""
    made = {}
    for label, shards, layers, seed in (("a", 3, {1}, 1), ("b", 7, {1, 2}, 1), ("c", 3, {1}, 2)):
        sparse_checkpoint.write(small_config(), tmp_path / label, shards, layers, seed=seed)
        made[label] = read_all(tmp_path / label)
    random = [n for n in made["a"] if n.startswith("model.layers.1.") and not n.endswith("norm.weight")]
    assert len(random) == 2 * 5 + 2 + 2 * 3 * 9  # attention, router, eight experts and the shared one
    for name in random:
        assert np.array_equal(made["a"][name], made["b"][name]), name
        assert not np.array_equal(made["a"][name], made["c"][name]), name


@pytest.mark.parametrize("quantized", [True, False])
def test_a_checkpoint_with_all_data_compiles(moec, tmp_path, quantized):
    config = small_config() if quantized else small_config(quantization_config=None)
    sparse_checkpoint.write(config, tmp_path / "model", 4, data_layers=range(4))
    moec.run("compile", tmp_path / "model", "-o", tmp_path / "artifact")


def test_shards_share_the_bytes():
    tensors = [sparse_checkpoint.Tensor(f"t{i}", "F32", (size,)) for i, size in enumerate((100, 1, 1, 1, 1, 100))]
    for shards, expected in ((1, [6]), (2, [3, 3]), (3, [1, 4, 1]), (6, [1] * 6)):
        parts = sparse_checkpoint.split(tensors, shards)
        assert [len(part) for part in parts] == expected
        assert [tensor for part in parts for tensor in part] == tensors
    for shards in (0, 7):
        with pytest.raises(SystemExit, match=f"6 tensors cannot be split into {shards} shards"):
            sparse_checkpoint.split(tensors, shards)


def test_layers_that_the_model_lacks_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="the model has no layer 4"):
        sparse_checkpoint.write(small_config(), tmp_path / "model", 1, data_layers={3, 4, 5})
    assert not (tmp_path / "model").exists()
