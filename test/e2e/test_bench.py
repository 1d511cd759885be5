# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""`moe-run bench`: what it prints, and what it says a token costs. How long anything takes is nobody's promise."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

MODEL = Path(__file__).parent.parent / "models" / "tiny-shakespeare"
FORMATS = {"bf16": (), "int4": ("--experts", "int4"), "fp8": ("--experts", "fp8")}


@pytest.fixture(scope="module", params=FORMATS)
def artifact(request, compiled):
    return compiled(MODEL, *FORMATS[request.param])


def bench(moe_run, artifact, *options):
    return json.loads(moe_run.run("bench", artifact, "--json", *options).stdout)


class Program:
    """What a decoded token reads and computes, from the specs of kernels rather than from their `work`."""

    def __init__(self, artifact):
        self.manifest = json.loads((artifact / "manifest.json").read_text())
        self.bytes = {}
        for file in self.manifest["weights"]:
            with open(artifact / file["file"], "rb") as weights:
                header = json.loads(weights.read(int.from_bytes(weights.read(8), "little")))
            for name, tensor in header.items():
                if name != "__metadata__":
                    begin, end = tensor["data_offsets"]
                    self.bytes[name] = end - begin

    def launches(self, tokens_of_a_run):
        for launch in self.manifest["program"]["launches"]:
            if launch.get("run_from", 1) <= tokens_of_a_run < launch.get("run_below", 1 << 60):
                kernel = self.manifest["kernels"][launch["kernel"]]
                # Kernels made of others are counted by their parts.
                yield kernel["spec"].get("parts", [kernel]), launch["args"]

    def decode_weight_bytes(self, of_rows_alone=False):
        total = 0
        for parts, args in self.launches(1):
            spec = parts[0]["spec"]
            if of_rows_alone and spec.get("rows") != "R":
                continue
            for arg in args:
                if "weight" not in arg:
                    continue
                size = self.bytes[arg["weight"]]
                if parts[0]["kind"] == "embed":
                    size = spec["width"] * {"f32": 4}.get(spec["table"], 2)
                elif spec.get("routing", "none") != "none":
                    size = size * spec["topk"] // spec["batch"]
                total += size
        return total

    def decode_flops(self, context):
        total = 0
        for part in (part for parts, _ in self.launches(1) for part in parts):
            spec = part["spec"]
            if part["kind"] == "gemm":
                matrices = 2 if spec["epilogue"] == "swiglu" else 1
                times = spec["batch"] if spec["routing"] == "none" else spec["topk"]
                total += 2 * spec["n"] * spec["k"] * matrices * times
            elif part["kind"] == "mla_attention":
                total += spec["heads"] * context * (2 * (spec["latent"] + spec["rope"]) + 2 * spec["latent"])
        return total

    def cache_bytes(self, context):
        """Each layer's attention reads each entry once."""
        sizes = {"F32": 4, "F16": 2, "BF16": 2}
        return sum(context * cache["width"] * sizes[cache["dtype"]] for cache in self.manifest["program"]["caches"])


def test_schema(moe_run, artifact):
    found = bench(moe_run, artifact, "-p", "8,70", "-n", "3", "-d", "0,130", "-t", "1,2", "-r", "2", "--sequences", "1,3")
    assert [limits["threads"] for limits in found["limits"]] == [1, 2]
    for limits in found["limits"]:
        for key in ("bandwidth", "f32", "bf16", "int8"):  # null where the machine has no instruction
            assert limits[key] is None or 0 < limits[key]["least"] <= limits[key]["median"] <= limits[key]["most"]
        assert limits["bandwidth"] and limits["f32"]
    assert found["model"] == {"name": "tiny-shakespeare", "type": "deepseek_v3", "layers": 4}
    assert found["device"].startswith("x86-64-v") and found["machine"]["cpu"] and found["machine"]["cores"] >= 1
    names = ["pp8", "pp70", "tg3", "tg3@d130", "tg3x3", "tg3x3@d130"]
    assert [(one["test"], one["threads"]) for one in found["results"]] == [(name, t) for t in (1, 2) for name in names]
    for one in found["results"]:
        tokens = one["prompt"] or one["predict"] * one["sequences"]
        rates = tokens / np.array(one["seconds"])
        assert len(rates) == 2
        np.testing.assert_allclose(one["tokens_per_second"], np.median(rates))
        np.testing.assert_allclose([one["least"], one["most"]], [rates.min(), rates.max()])
        assert one["bandwidth_share"] > 0
        # Null where this machine has no instruction for the model's unit, and then no limit. It is the larger share's.
        assert one["arithmetic_share"] is None or one["arithmetic_share"] > 0
        share = max(one["bandwidth_share"], one["arithmetic_share"] or 0)
        np.testing.assert_allclose(one["tokens_per_second"] / one["limit_tokens_per_second"], share)
    one = found["results"][5]
    assert (one["prompt"], one["predict"], one["depth"], one["sequences"]) == (0, 3, 130, 3)


def test_costs_of_a_decoded_token(moe_run, artifact):
    """Three tokens at depth 130 attend to 131, 132 and 133 entries."""
    program = Program(artifact)
    at_0, at_130 = bench(moe_run, artifact, "-p", "0", "-n", "3", "-d", "0,130", "-t", "1", "-r", "1")["results"]
    for one, context in ((at_0, 2), (at_130, 132)):
        assert one["weight_bytes_per_token"] == program.decode_weight_bytes()
        assert one["cache_bytes_per_token"] == program.cache_bytes(context)
        assert sum(one["flops_per_token"].values()) == program.decode_flops(context)


def test_costs_of_tokens_together(moe_run, artifact):
    """Sequences share what they read but experts, of which more are chosen; each has a cache of its own."""
    one, eight = bench(moe_run, artifact, "-p", "0", "-n", "2", "-t", "1", "-r", "1", "--sequences", "1,8")["results"]
    assert one["weight_bytes_per_token"] / 8 < eight["weight_bytes_per_token"] < one["weight_bytes_per_token"]
    assert eight["cache_bytes_per_token"] == one["cache_bytes_per_token"]
    assert eight["flops_per_token"] == one["flops_per_token"]


def test_costs_of_a_prompt(moe_run, artifact):
    """Two steps read all weights twice, but those of the last row once; a prompt of one token is a decoded token."""
    program = Program(artifact)
    most = program.manifest["program"]["max_tokens"]
    options = ("-p", f"1,{most},{2 * most}", "-n", "0", "-t", "1", "-r", "1")
    one, step, steps = (r["weight_bytes_per_token"] * r["prompt"] for r in bench(moe_run, artifact, *options)["results"])
    assert one == program.decode_weight_bytes()
    rows = program.decode_weight_bytes(of_rows_alone=True)
    assert rows > 0
    np.testing.assert_allclose(steps, 2 * step - rows, rtol=0.01)  # an expert may go without a token in one of them


def test_profile_adds_up(moe_run, artifact):
    found = bench(moe_run, artifact, "-p", "64", "-n", "4", "-t", "2", "-r", "1", "--profile")
    for one in found["results"]:
        profile = one["profile"]
        tokens = one["prompt"] or one["predict"]
        steps = 1 if one["prompt"] else one["predict"]
        for entries in (profile["kinds"], profile["kernels"]):
            launches = list(Program(artifact).launches(tokens // steps))
            assert sum(entry["launches"] for entry in entries) == steps * len(launches)
            assert sum(entry["seconds"] for entry in entries) <= profile["seconds"]
            np.testing.assert_allclose(
                sum(entry["bytes"] for entry in entries),
                tokens * (one["weight_bytes_per_token"] + one["cache_bytes_per_token"]),
            )
            np.testing.assert_allclose(sum(entry["flops"] for entry in entries), tokens * sum(one["flops_per_token"].values()))
        by_kind = {}
        for entry in profile["kernels"]:
            by_kind[entry["kind"]] = by_kind.get(entry["kind"], 0) + entry["seconds"]
        for entry in profile["kinds"]:
            np.testing.assert_allclose(entry["seconds"], by_kind.pop(entry["kind"]))
        assert not by_kind


def test_trace(moe_run, artifact, tmp_path):
    moe_run.run("bench", artifact, "-p", "64", "-n", "2", "-t", "2", "-r", "1", "--trace", tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert names == ["pp64, 2 threads", "tg2, 2 threads"]
    for process, (steps, tokens) in enumerate(((1, 64), (2, 1))):
        launches = [event for event in events if event["ph"] == "X" and event["pid"] == process and event["tid"] == 0]
        assert len(launches) == steps * len(list(Program(artifact).launches(tokens)))
        assert all(a["ts"] + a["dur"] <= b["ts"] + 0.01 for a, b in zip(launches, launches[1:]))
        tasks = [event for event in events if event["ph"] == "X" and event["pid"] == process and event["tid"] != 0]
        assert {event["tid"] for event in tasks} <= {1, 2}
        assert {event["args"]["launch"] for event in tasks} == {event["args"]["launch"] for event in launches}


def test_tables(moe_run, artifact):
    options = ("-p", "8", "-n", "2", "-t", "1", "-r", "1", "--profile")
    plain = moe_run.run("bench", artifact, *options).stdout.decode()
    assert "pp8" in plain and "tg2" in plain and "|" not in plain
    markdown = moe_run.run("bench", artifact, *options, "--markdown").stdout.decode()
    tables = [block for block in markdown.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2 + 2 * 2  # limits, tests; kinds and kernels of each
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_an_artifact_without_work_has_rates_alone(moe_run, compiled, tmp_path):
    shutil.copytree(compiled(MODEL), tmp_path / "old")
    manifest = json.loads((tmp_path / "old" / "manifest.json").read_text())
    for kernel in manifest["kernels"]:
        kernel.pop("work", None)
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest))
    (one,) = bench(moe_run, tmp_path / "old", "-p", "4", "-n", "0", "-t", "1", "-r", "1")["results"]
    assert one["tokens_per_second"] > 0 and "weight_bytes_per_token" not in one
    text = moe_run.run("bench", tmp_path / "old", "-p", "4", "-n", "0", "-t", "1", "-r", "1").stdout.decode()
    assert "compile it again" in text


@pytest.mark.parametrize(
    "options, sentence",
    [
        (("-p", "0", "-n", "0"), "there is nothing to measure, as --prompt and --predict are 0"),
        (("-p", "1025"), "a prompt has 1025 tokens, but the artifact is compiled for a context of 1024"),
        (
            ("-n", "64", "-d", "1000"),
            "64 tokens at depth 1000 are a context of 1064, but the artifact is compiled for a context of 1024",
        ),
        (("-p", "-1"), "--prompt has -1, expected at least 0"),
        (("-n", "-1"), "--predict has -1, expected at least 0"),
        (("-d", "0,-5"), "--depth has -5, expected at least 0"),
        (("--sequences", "0"), "--sequences has 0, expected at least 1"),
        (("-r", "0"), "--repetitions is 0, expected at least 1"),
        (("-t", "-2"), "number of threads is -2, expected 0 (all cores) or more"),
        (("-t", "5000"), "number of threads is 5000, expected 1 to 1024"),
        (("-p", "many"), "Could not convert: --prompt = many; see moe-run --help"),
        (("--json", "--markdown"), "--json excludes --markdown; see moe-run --help"),
        (("--trace", "none/x"), "none/x: cannot be created: no such file or directory"),
    ],
)
def test_refusals(moe_run, compiled, options, sentence):
    assert moe_run.refuses("bench", compiled(MODEL), *options) == f"moe-run: {sentence}"
