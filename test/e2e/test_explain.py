# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""`moec compile --explain=REPORT`: what it says is what the artifact is, and its page stands alone."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import checkpoints
import pytest
from safetensors import safe_open

ROOT = Path(__file__).resolve().parent.parent.parent
MODELS = Path(__file__).parent.parent / "models"
PARITY = Path(__file__).parent / "parity"
TINY, FP8 = MODELS / "tiny-shakespeare", MODELS / "tiny-shakespeare-fp8"
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Counts elements, keeps text and attributes, and wants every element closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.count, self.words, self.attributes = [], {}, [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def explained(moec, tmp_path_factory):
    """explained(model, *options) -> (report, page, what inspect says of the artifact); each made once."""
    made = {}

    def make(model: Path, *options):
        if (model, options) not in made:
            out = tmp_path_factory.mktemp("explained")
            moec.run("compile", model, "-o", out / "artifact", f"--explain={out / 'report'}", *options)
            report = json.loads((out / "report.json").read_text())
            artifact = json.loads(moec.run("inspect", out / "artifact", "--json").stdout)
            made[model, options] = report, (out / "report.html").read_text(), artifact
        return made[model, options]

    return make


CASES = [(TINY, ()), (FP8, ()), (TINY, ("--experts", "int4", "-O0", "--max-tokens", "64"))]


@pytest.mark.parametrize("model, options", CASES, ids=["bf16", "fp8", "int4"])
def test_says_what_the_artifact_is(model, options, explained):
    report, _, artifact = explained(model, *options)
    assert report["memory"] == artifact["memory"]
    assert report["model"]["name"] == artifact["model"]["name"]
    assert {weight["name"]: weight["bytes"] for weight in report["weights"]} == {
        weight["name"]: weight["bytes"] for weight in artifact["weights"]
    }
    assert [(launch["label"], launch["kernel"]) for launch in report["launches"]] == [
        (launch["label"], launch["kernel"]) for launch in artifact["launches"]
    ]
    for key in ("name", "dtype", "offset", "bytes"):
        assert [buffer[key] for buffer in report["buffers"]] == [buffer[key] for buffer in artifact["buffers"]]
    for buffer in report["buffers"]:
        uses = [
            index
            for index, launch in enumerate(artifact["launches"])
            if any(arg.partition("+")[0] == "%" + buffer["name"] for arg in launch["args"])
        ]
        assert (buffer["first_launch"], buffer["last_launch"]) == (uses[0], uses[-1])
    for key in ("checkpoint_bytes", "bytes", "flops_before", "flops_after"):
        assert report["total"][key] == sum(part[key] for part in report["parts"])
    assert report["total"]["bytes"] == artifact["memory"]["weights"]


@pytest.mark.parametrize("model", [TINY, FP8], ids=lambda path: path.name)
def test_bytes_of_the_checkpoint(model, explained):
    """By layer, as a reader of its own counts the tensors that are compiled."""
    report, _, _ = explained(model)
    layers = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    found = {part["name"]: part["checkpoint_bytes"] for part in report["parts"]}
    expected = dict.fromkeys(found, 0)
    sizes = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1}
    for path in model.glob("model*.safetensors"):
        with safe_open(path, "np") as file:
            for name in file.keys():
                layer = re.match(r"model\.layers\.(\d+)\.", name)
                if layer and int(layer[1]) >= layers:
                    continue  # multi-token prediction is not compiled
                part = f"layers.{layer[1]}" if layer else name.removeprefix("model.").partition(".")[0]
                count = 1
                for size in file.get_slice(name).get_shape():
                    count *= size
                expected[part] += sizes[file.get_slice(name).get_dtype()] * count
    assert found == expected
    assert set(found) == {f"layers.{i}" for i in range(layers)} | {"embed_tokens", "norm", "lm_head"}


def flops_of(config: dict, layer: int, context: int, absorbed: bool) -> int:
    """One token's products in a layer, from the paper's shapes."""
    hidden, heads, latent = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    key, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    query = config["q_lora_rank"]
    products = query * hidden + heads * (key + rope) * query if query else heads * (key + rope) * hidden
    products += (latent + rope) * hidden + hidden * heads * value
    if absorbed:
        products += heads * (key + value) * latent + heads * context * (latent + rope + latent)
    else:
        products += context * heads * (key + value) * latent + heads * context * (key + rope + value)
    if layer < config["first_k_dense_replace"]:
        products += 3 * config["intermediate_size"] * hidden
    else:
        experts = config["num_experts_per_tok"] + (config["n_shared_experts"] or 0)
        products += config["n_routed_experts"] * hidden + experts * 3 * config["moe_intermediate_size"] * hidden
    return 2 * products


@pytest.mark.parametrize("name", ["tiny", "v2-lite", "v3-noshared"])
def test_operations(name, explained, tmp_path):
    model = TINY if name == "tiny" else checkpoints.build(PARITY / name, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    report, _, _ = explained(model)
    parts = {part["name"]: part for part in report["parts"]}
    assert report["context"] == min(4096, report["model"]["max_context"])
    for layer in range(config["num_hidden_layers"]):
        part = parts[f"layers.{layer}"]
        assert part["flops_before"] == flops_of(config, layer, report["context"], absorbed=False)
        assert part["flops_after"] == flops_of(config, layer, report["context"], absorbed=True)
    head = 2 * config["vocab_size"] * config["hidden_size"]
    assert parts["lm_head"]["flops_before"] == parts["lm_head"]["flops_after"] == head
    assert parts["embed_tokens"]["flops_before"] == 0


def test_what_was_fused_and_what_not(explained):
    report, page, _ = explained(TINY)
    outcome = {(fusion["pass"], fusion["op"]): (fusion["fused"], fusion["text"]) for fusion in report["fusions"]}
    assert outcome["moe-fuse-mla", "layers.3.self_attn.attention"] == (True, "into moe.mla_attention")
    assert outcome["moe-fuse-gate-up", "layers.0.mlp.act_fn"] == (True, "into moe.gate_up")
    assert outcome["moe-fuse-projections", "layers.2.self_attn.q_a_proj"][0]
    assert outcome["moe-join-shared-expert", "layers.1.mlp.shared_experts.add"] == (True, "into moe.experts")
    assert outcome["moe-fuse-residual", "layers.1.mlp.add"] == (True, "into moe.experts")
    layers = [fusion["op"].partition(".self_attn")[0].partition(".mlp")[0] for fusion in report["fusions"]]
    assert layers == sorted(layers)
    apart, page, _ = explained(TINY, "--experts", "int8", "--max-tokens", "64")
    outcome = {(fusion["pass"], fusion["op"]): (fusion["fused"], fusion["text"]) for fusion in apart["fusions"]}
    fused, why = outcome["moe-join-shared-expert", "layers.1.mlp.shared_experts.down_proj"]
    # int8 rounds what the routed experts read.
    assert not fused and "reads another input than the routed experts" in why and why in page
    fused, why = outcome["moe-fuse-residual", "layers.1.mlp.add"]
    assert not fused and "moe.experts adds a residual already" in why and why in page
    none, _, _ = explained(TINY, *CASES[2][1])
    assert {fusion["pass"] for fusion in none["fusions"]} == {"moe-fuse-mla"}


def test_formats_have_reasons(explained):
    report, page, _ = explained(FP8)
    reasons = {weight["name"]: weight["reason"] for weight in report["weights"]}
    assert reasons["model.layers.1.mlp.experts.gate_proj"] == "kept: the target multiplies FP8 blocks"
    for reason in set(reasons.values()):
        assert reason in page


def test_its_passes_make_the_same_program(moec, explained):
    report, _, _ = explained(TINY)
    (default, again) = (
        moec.run("compile", TINY, "--emit=exec", *options).stdout
        for options in ((), ("--pass-pipeline", report["passes"]))
    )
    assert default == again


@pytest.mark.parametrize("model, options", CASES, ids=["bf16", "fp8", "int4"])
def test_page(model, options, explained):
    report, text, _ = explained(model, *options)
    page = Page(text)
    assert "http://" not in text and "https://" not in text and "@import" not in text and "url(" not in text
    assert not {"script", "link", "img", "iframe"} & set(page.count)
    assert not [value for name, value in page.attributes if name in ("src", "href")]
    for part in report["parts"]:
        assert part["name"] in page.words
    for weight in report["weights"]:
        assert weight["name"] in page.words
    assert page.count["rect"] == len(report["buffers"]) > 20 and page.count["svg"] == 1
    # Every buffer lies inside the picture.
    for rect in re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', text):
        x, y, width, height = map(float, rect)
        assert 70 <= x and x + width <= 1070.01 and 10 <= y and y + height <= 430.01 and width > 0


def test_documented_keys(explained):
    """docs/report.md names every key, and no other."""
    report, _, _ = explained(TINY)
    rows = re.findall(r"^\| (`.*?) \|(.*)\|$", (ROOT / "docs" / "report.md").read_text(), re.MULTILINE)
    words = {tuple(re.findall(r"`(\w+)`", key)): set(re.findall(r"`(\w+)`", text)) for key, text in rows}
    assert {key for keys in words for key in keys} == set(report)
    for key in ("memory", "parts", "fusions", "weights", "launches", "buffers"):
        entry = report[key] if key == "memory" else report[key][0]
        assert words[(key,)] == set(entry), key


def test_names_are_text(moec, tmp_path):
    """The name of a model is that of its directory, which may be anything."""
    model = tmp_path / "<b>&amp;\"model'"
    model.symlink_to(TINY)
    moec.run("compile", model, "--emit=exec", "-o", tmp_path / "ir", f"--explain={tmp_path / 'report.html'}")
    assert not (tmp_path / "report.html.html").exists()
    page = Page((tmp_path / "report.html").read_text())
    name = json.loads((tmp_path / "report.json").read_text())["model"]["name"]
    assert name == model.name and name in page.words


def test_nothing_is_left_where_a_compile_fails(moec, tmp_path):
    report = f"--explain={tmp_path / 'report'}"
    moec.refuses("compile", tmp_path / "absent", "-o", tmp_path / "out", report)
    moec.refuses("compile", TINY, "--pass-pipeline", "builtin.module(cse)", "-o", tmp_path / "out", report)
    moec.refuses("compile", TINY, "--emit", "exec", "-o", tmp_path / "no" / "out", report)
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_told_first(moec, tmp_path):
    """Before the model is looked for."""
    where = tmp_path / "no" / "report"
    message = moec.refuses("compile", tmp_path / "absent", "-o", tmp_path / "out", f"--explain={where}")
    assert message == f"moec: {where}.html: cannot be created: no such file or directory"
    (tmp_path / "report.json").mkdir()
    message = moec.refuses("compile", tmp_path / "absent", "-o", tmp_path / "out", f"--explain={tmp_path / 'report'}")
    assert "report.json" in message and "directory" in message
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_too_early_a_stage(moec):
    assert "--emit=moe" in moec.refuses("compile", TINY, "--emit", "moe", "--explain")
