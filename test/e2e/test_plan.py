# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""What `moec plan` says is what `moec compile` then makes."""

import json
import shutil
from pathlib import Path

import checkpoints
import pytest
from safetensors import safe_open

TEST = Path(__file__).parent.parent
MODELS = TEST / "models"
PARITY = Path(__file__).parent / "parity"
CONFIGS = TEST / "frontends" / "configs"
TINY = MODELS / "tiny-shakespeare"
FP8 = MODELS / "tiny-shakespeare-fp8"


def plan(moec, *arguments) -> dict:
    return json.loads(moec.run("plan", "--json", *arguments).stdout)


def parts_of(found: dict) -> dict:
    return {part["part"]: part for part in found["weights"]["parts"]}


def stored_bytes(directory: Path) -> tuple[int, int]:
    """Tensors of a directory's weight files and their bytes, as a reader of its own counts them."""
    tensors = size = 0
    for path in directory.glob("*.safetensors"):
        if path.name == "reference.safetensors":
            continue
        with safe_open(path, "np") as file:
            tensors += len(file.keys())
        length = int.from_bytes(path.read_bytes()[:8], "little")
        size += path.stat().st_size - 8 - length
    return tensors, size


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """checkpoint(name) -> a trained model of the tree, or a parity model with its weights made."""
    made = {}

    def find(name: str) -> Path:
        if (MODELS / name).exists():
            return MODELS / name
        if name not in made:
            made[name] = checkpoints.build(PARITY / name, tmp_path_factory.mktemp("checkpoints") / name)
        return made[name]

    return find


@pytest.mark.parametrize(
    "name", [TINY.name, FP8.name, "v3-fp8", "v3-fp8-ue8m0", "v3-odd-dims", "v3-tied-nodense", "v2-lite"]
)
@pytest.mark.parametrize("options", [(), ("--max-tokens", "64")], ids=["", "64"])
def test_predicts_the_artifact(name, options, checkpoint, moec, compiled):
    model = checkpoint(name)
    found = plan(moec, model, *options)
    artifact = json.loads(moec.run("inspect", compiled(model, *options), "--json").stdout)
    memory = artifact["memory"]
    assert found["weights"]["exact"] and found["arena"]["exact"] and found["unsupported"] == []
    assert found["weights"]["bytes"] == sum(weight["bytes"] for weight in artifact["weights"])
    assert found["weights"]["bytes"] == sum(part["bytes"] for part in found["weights"]["parts"])
    assert found["weights"]["bytes"] == found["compile"]["write_bytes"] == found["target"]["weight_bytes"]
    assert abs(found["arena"]["bytes"] - memory["arena"]) <= 0.01 * memory["arena"]
    assert found["cache"]["bytes_per_token"] == memory["cache_per_token"]
    assert found["cache"]["context"] == artifact["model"]["max_context"]
    assert found["cache"]["bytes"] >= memory["cache_per_token"] * artifact["model"]["max_context"]
    assert (found["checkpoint"]["tensors"], found["checkpoint"]["bytes"]) == stored_bytes(model)


@pytest.mark.parametrize("model", [TINY, FP8], ids=lambda path: path.name)
def test_config_alone_says_the_same(model, moec, tmp_path):
    shutil.copy(model / "config.json", tmp_path / "config.json")
    with_headers, without = plan(moec, model), plan(moec, tmp_path / "config.json")
    assert with_headers["from_headers"] and not without["from_headers"]
    assert plan(moec, tmp_path)["weights"] == without["weights"]
    for key in ("weights", "arena", "cache", "parameters", "checkpoint", "compile"):
        assert with_headers[key] == without[key], key


def test_parts_and_active_shares(moec):
    config = json.loads((TINY / "config.json").read_text())
    found = plan(moec, TINY)
    parts = parts_of(found)
    hidden, width, experts = config["hidden_size"], config["moe_intermediate_size"], config["n_routed_experts"]
    layers = config["num_hidden_layers"] - config["first_k_dense_replace"]
    assert parts["experts"]["parameters"] == layers * experts * 3 * hidden * width
    for what in ("parameters", "bytes"):
        whole, active = parts["experts"][what], parts["experts"]["active_" + what]
        assert active * experts == whole * config["num_experts_per_tok"]
        assert parts["attention"]["active_" + what] == parts["attention"][what]
    assert parts["embeddings"]["active_parameters"] == hidden
    assert parts["head"]["parameters"] == config["vocab_size"] * hidden
    assert found["parameters"]["total"] == sum(
        part["parameters"] for name, part in parts.items() if name not in ("mtp", "buffers")
    )


# docs/deepseek-models.md, section 1: total and active parameters as published.
@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("deepseek-v2-lite", 15.7e9, 2.4e9),
        ("deepseek-v2", 236e9, 21e9),
        ("deepseek-v3", 671e9, 37e9),
        ("kimi-k2", 1.03e12, 32e9),
    ],
)
def test_published_parameters(name, total, active, moec):
    found = plan(moec, CONFIGS / f"{name}.json")
    assert found["parameters"]["total"] == pytest.approx(total, rel=0.005)
    # Publishers round, and count the embeddings or do not.
    assert found["parameters"]["active"] == pytest.approx(active, rel=0.035)
    assert found["weights"]["exact"] and not found["from_headers"]


@pytest.mark.parametrize(
    ("name", "tensors", "size", "word"),
    [
        ("deepseek-v4-flash", 69187, 159_609_485_896, "hyper-connections"),
        ("deepseek-v4-pro", 145116, 864_704_792_696, "hyper-connections"),
        ("deepseek-v3-2", 92425, None, "sparse"),
    ],
)
def test_what_cannot_be_compiled_is_planned(name, tensors, size, word, moec):
    found = plan(moec, CONFIGS / f"{name}.json")
    assert found["checkpoint"]["tensors"] == tensors
    assert size in (None, found["checkpoint"]["bytes"])
    assert any(word in reason for reason in found["unsupported"])
    text = moec.run("plan", CONFIGS / f"{name}.json").stdout.decode()
    assert "not supported yet: " in text and f"{found['weights']['bytes']}" in text


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.iterdir()))
@pytest.mark.parametrize("options", [(), ("--target", "h100", "--experts", "int4", "--devices", 8)], ids=["cpu", "h100"])
def test_is_read_in_a_hundred_columns(name, options, moec):
    lines = moec.run("plan", CONFIGS / f"{name}.json", *options).stdout.decode().splitlines()
    assert len(lines) > 20
    assert [line for line in lines if len(line) > 100 and not line.startswith("not supported yet: ")] == []


def test_what_a_compile_leaves_out_is_named(moec):
    parts = parts_of(plan(moec, CONFIGS / "deepseek-v3-2.json"))
    assert {name for name, part in parts.items() if part["left_out"]} == {"indexer", "mtp"}
    assert "2048 tokens" in parts["indexer"]["left_out"] and "speculative" in parts["mtp"]["left_out"]
    assert all((part["bytes"] == 0) == bool(part["left_out"]) for part in parts.values())


def test_a_refused_key_is_named_and_the_bytes_are_those_of_the_headers(moec, tmp_path):
    model = Path(shutil.copytree(TINY, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (model / "config.json").write_text(json.dumps(config))
    found = plan(moec, model)
    assert len(found["unsupported"]) == 1 and "quantization_config" in found["unsupported"][0]
    assert (found["checkpoint"]["tensors"], found["checkpoint"]["bytes"]) == stored_bytes(model)
    assert not found["weights"]["exact"] and found["arena"]["bytes"] is None
    assert parts_of(found)["experts"]["checkpoint_bytes"] == parts_of(plan(moec, TINY))["experts"]["checkpoint_bytes"]


def test_sparse_context_of_v3_2(moec):
    config = CONFIGS / "deepseek-v3-2.json"
    short, far = plan(moec, config, "--context", 2048), plan(moec, config, "--context", 65536)
    assert short["weights"] == far["weights"] and short["arena"] == far["arena"]
    assert far["cache"]["context"] == 65536 and far["cache"]["bytes"] > 30 * short["cache"]["bytes"]


@pytest.mark.parametrize(
    ("name", "bits"), [("bf16", 16), ("int4", 4 + 16 / 32), ("mxfp4", 4 + 8 / 32), ("nvfp4", 4 + 8 / 16)]
)
def test_expert_formats(name, bits, moec):
    config = CONFIGS / "deepseek-v3.json"
    default, found = plan(moec, config), plan(moec, config, "--experts", name)
    experts = parts_of(found)["experts"]
    assert experts["bytes"] * 8 == experts["parameters"] * bits
    compiled = name in ("bf16", "int4")
    assert found["weights"]["exact"] == compiled
    assert any("forecast" in reason for reason in found["unsupported"]) != compiled
    assert default["weights"]["exact"] and default["weights"]["experts"] == "fp8"
    # Nothing else changes, and the format that a compile keeps is no forecast.
    for part in ("attention", "shared experts", "head"):
        assert parts_of(found)[part] == parts_of(default)[part]
    assert plan(moec, config, "--experts", "fp8")["weights"] == default["weights"]


def test_named_chip_and_roofline(moec):
    config = CONFIGS / "deepseek-v3.json"
    found = plan(moec, config, "--target", "h100", "--context", 4096)
    target = found["target"]
    assert target["name"] == "H100" and found["chips"] == []
    # Stored bytes without the multi-token-prediction layer, in 90 % of 80 GB each.
    aside = parts_of(found)["mtp"]["checkpoint_bytes"]
    assert target["weight_bytes"] == found["checkpoint"]["bytes"] - aside
    needed = target["weight_bytes"] + target["cache_bytes"] + target["arena_bytes"]
    assert target["fits"] and (target["devices"] - 1) * 72e9 < needed <= target["devices"] * 72e9
    # 576 cached numbers a layer and token.
    assert found["cache"]["bytes"] == 4096 * 61 * 576 * 2
    # One sequence is bound by memory: every active byte and the whole cache is read once a token.
    assert target["decode"]["bound_by"] == "memory"
    read = found["weights"]["active_bytes"] + found["cache"]["bytes"]
    limit = target["devices"] * target["bandwidth"]
    assert target["decode"]["tokens_per_second"] == pytest.approx(limit / read, rel=1e-6)
    assert target["prefill"]["tokens_per_second"] > target["decode"]["tokens_per_second"]

    few = plan(moec, config, "--target", "H100", "--context", 4096, "--devices", 4)["target"]
    assert few["devices"] == 4 and not few["fits"]
    assert few["decode"]["tokens_per_second"] == pytest.approx(4 * target["bandwidth"] / read, rel=1e-6)


@pytest.mark.parametrize("chip", ["A100", "H100", "910B", "EPYC-9004"])
def test_a_chip_is_the_same_alone_and_in_the_list(chip, moec):
    config = CONFIGS / "deepseek-v3.json"
    listed = {found["name"]: found for found in plan(moec, config)["chips"]}
    assert listed[chip] == plan(moec, config, "--target", chip)["target"]


def test_prefill_of_a_chip_expands_the_latents(moec):
    """Of a long prompt, attention to keys and values of 192 and 128 channels takes less than to latents of 512."""
    config = json.loads((CONFIGS / "deepseek-v2.json").read_text())
    context, chip = 131072, plan(moec, CONFIGS / "deepseek-v2.json", "--target", "A100", "--context", 131072)
    attention = context / 2 * config["num_hidden_layers"] * config["num_attention_heads"] * 2 * (192 + 128)
    weights = chip["parameters"]["active"] - sum(parts_of(chip)[p]["active_parameters"] for p in ("embeddings", "head"))
    assert chip["target"]["prefill"]["bound_by"] == "arithmetic"
    expected = chip["target"]["devices"] * 312e12 / (2 * weights + attention)
    assert chip["target"]["prefill"]["tokens_per_second"] == pytest.approx(expected, rel=1e-6)


def test_measured_rates_make_the_roofline(moec, tmp_path):
    found = json.loads(moec.run("plan", "--json", TINY, "--measure", cwd=tmp_path).stdout)
    alone = json.loads(moec.run("plan", "--json", "--measure", cwd=tmp_path).stdout)
    assert list(tmp_path.iterdir()) == [], "what was made to measure is gone"
    compile_ = found["compile"]
    assert compile_["rate_source"] == "measured" and plan(moec, TINY)["compile"]["rate_source"] == "assumed"
    assert compile_["seconds"] == pytest.approx((compile_["read_bytes"] + compile_["write_bytes"]) / compile_["rate"])
    # The slowest disk and the fastest memory that weights are made on.
    assert all(1e6 < rate < 1e12 for rate in (compile_["rate"], alone["compile"]["rate"]))
    found, alone = found["target"], alone["target"]
    for chip in (found, alone):
        # No machine that moec runs on is outside of this.
        assert 1e8 < chip["bandwidth"] < 1e14 and 1e8 < chip["arithmetic"] < 1e16
    assert found["decode"]["tokens_per_second"] > 0
    assert plan(moec, TINY)["target"]["decode"] is None


def test_a_given_rate_is_not_measured(moec, tmp_path):
    found = plan(moec, CONFIGS / "deepseek-v3.json", "--measure", "--disk-rate", "100MiB")["compile"]
    assert found["rate_source"] == "given" and found["rate"] == 100 << 20
    assert found["seconds"] == pytest.approx((found["read_bytes"] + found["write_bytes"]) / (100 << 20))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no directory here that root cannot write to")
def test_measuring_where_nothing_can_be_written(moec):
    assert "--measure makes some weights there" in moec.refuses("plan", TINY, "--measure", cwd="/proc")


@pytest.mark.sanitize
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--measure"]),
        (["absent"], ["absent"]),
        ([TINY, "--target", "H9000"], ["H9000", "H100"]),
        ([TINY, "--target", "H100", "--measure"], ["this machine", "H100"]),
        ([TINY, "--experts", "int3"], ["int3", "int4"]),
        ([TINY, "--context", "99999999"], ["99999999", "max_position_embeddings"]),
        ([TINY, "--context", "0"], ["--context"]),
        ([TINY, "--devices", "-1"], ["--devices"]),
        ([TINY, "--disk-rate", "fast"], ["fast"]),
        ([TINY, "--disk-rate", "0"], ["--disk-rate"]),
    ],
    ids=lambda value: "",
)
def test_bad_arguments(arguments, words, moec):
    message = moec.refuses("plan", *arguments)
    assert all(word in message for word in words), message


@pytest.mark.sanitize
@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": -1},
        {"hidden_size": 10**30},
        {"num_hidden_layers": "four"},
        {"model_type": "llama"},
        {"n_routed_experts": None, "num_experts_per_tok": 0, "num_attention_heads": 0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_bad_configs(change, moec, tmp_path):
    config = json.loads((TINY / "config.json").read_text())
    config.update(change)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert "config.json" in moec.refuses("plan", path)


@pytest.mark.sanitize
def test_headers_that_contradict_the_config(moec, tmp_path):
    model = Path(shutil.copytree(TINY, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    config["moe_intermediate_size"] *= 2
    (model / "config.json").write_text(json.dumps(config))
    assert "model.safetensors" in moec.refuses("plan", model)
