# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""`moec calibrate`: what it keeps against NumPy on the checkpoint's weights, that it is the same every time, and what it
refuses."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from checkpoints import bf16_to_float, read_safetensors, to_bf16_bits, write_safetensors

MODEL = Path(__file__).parent.parent / "models" / "tiny-shakespeare"
FP8 = MODEL.with_name("tiny-shakespeare-fp8")
CONFIG = json.loads((MODEL / "config.json").read_text())
EXPERTS, TOPK = CONFIG["n_routed_experts"], CONFIG["num_experts_per_tok"]
CHUNK = 256
LAYER = "model.layers.1.mlp.experts"
GATE, UP, DOWN = (f"{LAYER}.{{e}}.{which}_proj.weight" for which in ("gate", "up", "down"))


def load(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a safetensors file, bf16 as float32."""
    tensors, _ = read_safetensors(path)
    return {name: bf16_to_float(array) if kind == "BF16" else array for name, (kind, array) in tensors.items()}


def metadata(path: Path) -> dict:
    return {key: json.loads(value) for key, value in read_safetensors(path)[1].items()}


def bf16(x: np.ndarray) -> np.ndarray:
    """Rounded to nearest even."""
    return bf16_to_float(to_bf16_bits(x))


def rms_norm(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return gain * x / np.sqrt((x * x).mean(1, keepdims=True) + CONFIG["rms_norm_eps"])


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A little more than three chunks."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text((MODEL / "val.txt").read_text()[:2400])
    return path


@pytest.fixture(scope="module")
def tokens(text, moe_run) -> np.ndarray:
    """The ids that the model reads: whole chunks, the first token of each a begin-of-sequence."""
    ids = json.loads(moe_run.run("tokenize", MODEL, "--file", text, "--raw", "--json").stdout)
    chunks = len(ids) // CHUNK
    assert chunks == 3 and len(ids) % CHUNK
    bos = CONFIG["bos_token_id"]
    return np.concatenate([[bos, *ids[CHUNK * i : CHUNK * i + CHUNK - 1]] for i in range(chunks)])


@pytest.fixture(scope="module")
def made(compiled, moec, text, tmp_path_factory):
    """(file, report) of the text."""
    path = tmp_path_factory.mktemp("made") / "c.safetensors"
    report = json.loads(moec.run("calibrate", compiled(MODEL), "--file", text, "-o", path, "--json").stdout)
    return path, report


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return load(MODEL / "model.safetensors")


def test_says_what_it_holds(made, tokens):
    path, report = made
    about = metadata(path)
    inputs, routing, tensors = about["inputs"], about["routing"], load(path)
    assert about["moec.calibration"] == 1 and about["tokens"] == report["tokens"] == len(tokens)
    assert report["bytes"] == path.stat().st_size
    expected = {"lm_head.weight"}
    for layer in range(CONFIG["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        attention = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj")
        expected |= {f"{prefix}self_attn.{which}.weight" for which in attention}
        folders = ("mlp",) if layer == 0 else ("mlp.shared_experts", "mlp.experts.{e}")
        expected |= {
            f"{prefix}{folder}.{which}_proj.weight" for folder in folders for which in ("gate", "up", "down")
        }
    assert set(inputs) == expected  # neither router nor the halves of kv_b_proj
    assert set(routing) == {name for name in expected if "{e}" in name}
    # What reads the same rows has them once: a normalised input goes to gate, up, shared and routed experts.
    assert inputs[GATE] == inputs[UP] == inputs["model.layers.1.mlp.shared_experts.up_proj.weight"]
    assert routing[GATE] == routing[UP] == routing[DOWN] == GATE
    query, latent = (f"model.layers.2.self_attn.{which}.weight" for which in ("q_a_proj", "kv_a_proj_with_mqa"))
    assert inputs[query] == inputs[latent] == query
    parts = {id + ".x" for id in inputs.values()}
    parts |= {f"{id}.{part}" for id in routing.values() for part in ("chosen", "weights", "counts", "sensitivity", "tipping")} | {"tokens"}
    assert set(tensors) == parts
    assert tensors[inputs[GATE] + ".x"].shape == (len(tokens), CONFIG["hidden_size"])
    assert tensors[inputs[DOWN] + ".x"].shape == (len(tokens) * TOPK, CONFIG["moe_intermediate_size"])
    assert tensors["lm_head.weight.x"].shape == (len(tokens), CONFIG["hidden_size"])


def test_first_input_is_the_normalised_embedding(made, tokens, weights):
    x = load(made[0])["model.layers.0.self_attn.q_a_proj.weight.x"]
    expected = rms_norm(weights["model.embed_tokens.weight"][tokens], weights["model.layers.0.input_layernorm.weight"])
    # Both round numbers that differ in the last bits of f32: to neighbours in bf16, and to the same almost always.
    assert np.allclose(x, bf16(expected), rtol=2**-7, atol=0)
    assert (x == bf16(expected)).mean() > 0.999


def test_head_gives_the_logits(made, tokens, weights, compiled, moe_run, tmp_path):
    x = load(made[0])["lm_head.weight.x"][CHUNK : 2 * CHUNK]
    ids = ",".join(map(str, tokens[CHUNK : 2 * CHUNK]))
    moe_run.run("logits", compiled(MODEL), "--tokens", ids, "-o", tmp_path / "l")
    logits = load(tmp_path / "l")["logits"]
    # bf16 has 8 bits, and errors of 256 products partly cancel.
    assert np.abs(x @ weights["lm_head.weight"].T - logits).max() < 2**-7 * np.abs(logits).max()


def test_choices_are_the_routers(made, weights):
    """From the rows that experts read: sigmoid scores, two of four groups, the best four."""
    path, report = made
    tensors, groups = load(path), CONFIG["n_group"]
    for layer, use in enumerate(report["layers"], 1):
        mlp = f"model.layers.{layer}.mlp"
        ids = metadata(path)
        gate = f"{mlp}.experts.{{e}}.gate_proj.weight"
        x, chosen = tensors[ids["inputs"][gate] + ".x"], tensors[gate + ".chosen"]
        scores = 1 / (1 + np.exp(-(x @ weights[f"{mlp}.gate.weight"].T)))
        biased = scores + weights[f"{mlp}.gate.e_score_correction_bias"]
        grouped = biased.reshape(len(x), groups, -1)
        best = np.argsort(-np.sort(grouped, 2)[:, :, -2:].sum(2), 1)[:, : CONFIG["topk_group"]]
        allowed = np.zeros(grouped.shape, bool)
        np.put_along_axis(allowed, best[:, :, None], True, 1)
        order = np.argsort(-np.where(allowed.reshape(biased.shape), biased, -np.inf), 1)[:, :TOPK]
        # x was rounded: where two experts are nearly equal, the other one may be better then.
        same = (np.sort(order, 1) == np.sort(chosen, 1)).all(1)
        assert same.mean() > 0.97

        picked = np.take_along_axis(scores, chosen, 1)
        picked *= CONFIG["routed_scaling_factor"] / picked.sum(1, keepdims=True)
        assert np.allclose(picked, tensors[gate + ".weights"], rtol=0.02)

        counts = np.bincount(chosen.ravel(), minlength=EXPERTS)
        assert (tensors[gate + ".counts"] == counts).all() and counts.sum() == chosen.size
        assert use["experts"] == f"{mlp}.experts" and use["counts"] == counts.tolist()
        assert use["sensitivity"] == tensors[gate + ".sensitivity"][0] > 0


def test_each_choice_has_its_own_row(made, weights):
    """The input of down at row t * topk + k is silu(gate) * up of token t's k-th expert."""
    path, _ = made
    tensors, inputs = load(path), metadata(path)["inputs"]
    x, chosen = tensors[inputs[GATE] + ".x"], tensors[GATE + ".chosen"]
    down = tensors[inputs[DOWN] + ".x"].reshape(*chosen.shape, -1)
    for expert in range(EXPERTS):
        token, choice = np.nonzero(chosen == expert)
        gate, up = (weights[name.format(e=expert)] for name in (GATE, UP))
        expected = silu(x[token] @ gate.T) * (x[token] @ up.T)
        found = down[token, choice]
        # x was rounded to bf16 here, not in the model; rows of another token or expert have nothing in common.
        assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("options", [("--threads", "1"), ("--threads", "3")], ids=["1", "3"])
def test_the_same_bytes(options, made, compiled, moec, text, tmp_path):
    moec.run("calibrate", compiled(MODEL), "--file", text, "-o", tmp_path / "c", *options)
    assert (tmp_path / "c").read_bytes() == made[0].read_bytes()


def test_runs_of_fewer_tokens_give_the_same(compiled, moec, text, tmp_path):
    """Chunks that take three runs of the program; of two forms of attention, a short run would take the other one."""
    for name, options in (("whole", []), ("cut", ["--max-tokens", "100"])):
        artifact = compiled(MODEL, "--mla", "absorbed", *options)
        moec.run("calibrate", artifact, "--file", text, "-o", tmp_path / name)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "cut").read_bytes()


def test_a_shared_expert_among_the_routed_ones_is_recorded_as_the_one_it_is(compiled, moec, text, tmp_path):
    """A shared expert twice as wide as a routed one, which -O1 leaves apart: both say the same of every weight, but for
    rounding."""
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    (model / "config.json").write_text(json.dumps({**CONFIG, "n_shared_experts": 2}))
    stored, _ = read_safetensors(MODEL / "model.safetensors")
    for name, (kind, array) in stored.items():
        if ".shared_experts." in name:  # the same again, from the other end
            axis = 1 if "down_proj" in name else 0
            stored[name] = kind, np.concatenate([array, np.flip(array, axis)], axis)
    write_safetensors(model / "model.safetensors", stored)
    said = []
    for level in ("-O1", "-O2"):
        path = tmp_path / level
        moec.run("calibrate", compiled(model, level), "--file", text, "-o", path, "--tokens", "256")
        said.append((load(path), metadata(path)))
    (apart, named), (joined, joined_named) = said
    assert set(named["inputs"]) == set(joined_named["inputs"]) and named["routing"] == joined_named["routing"]
    for weight, id in named["inputs"].items():
        one, other = apart[id + ".x"], joined[joined_named["inputs"][weight] + ".x"]
        assert one.shape == other.shape
        # A rounding of f32 may take bf16 to its neighbour; choices that tip over would be other rows.
        assert (np.abs(one - other) <= 2**-7 * np.abs(one) + 1e-6).mean() > 0.999, weight
    for id in set(named["routing"].values()):
        for part in (".chosen", ".counts"):
            assert (apart[id + part] == joined[id + part]).mean() > 0.999
        for part in (".sensitivity", ".tipping"):
            assert np.isfinite(joined[id + part]).all()
        # Noise is measured against what the experts give, not against the stream that this is added to.
        ratio = joined[id + ".sensitivity"][0] / apart[id + ".sensitivity"][0]
        assert 0.5 < ratio < 2, ratio


def test_tokens_bound_what_is_read(made, compiled, moec, text, tmp_path):
    """Whole chunks, which are those of the longer reading; without sensitivities if so asked."""
    path = tmp_path / "c"
    arguments = ("calibrate", compiled(MODEL), "--file", text, "-o", path, "--tokens", "600", "--no-sensitivity")
    report = json.loads(moec.run(*arguments, "--json").stdout)
    assert report["tokens"] == metadata(path)["tokens"] == 512
    assert all("sensitivity" not in layer for layer in report["layers"])
    whole, part = load(made[0]), load(path)
    assert set(part) == {name for name in whole if not name.endswith((".sensitivity", ".tipping"))}
    for name, array in part.items():
        if not name.endswith(".counts"):
            assert (array == whole[name][: len(array)]).all(), name


@pytest.fixture(scope="module")
def stream(made, tokens, weights) -> dict[str, np.ndarray]:
    """The residual stream, rebuilt from the rows of the file and the checkpoint's weights: what each norm reads, by the
    norm's name, and the output of each layer's experts."""
    tensors, inputs = load(made[0]), metadata(made[0])["inputs"]

    def product(weight: str) -> np.ndarray:
        return tensors[inputs[weight] + ".x"] @ weights[weight].T

    found, h = {}, weights["model.embed_tokens.weight"][tokens]
    for layer in range(CONFIG["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        found[f"{prefix}.input_layernorm"] = h
        h = h + product(f"{prefix}.self_attn.o_proj.weight")
        found[f"{prefix}.post_attention_layernorm"] = h
        if layer == 0:
            h = h + product(f"{prefix}.mlp.down_proj.weight")
            continue
        out = product(f"{prefix}.mlp.shared_experts.down_proj.weight")
        family, routing = (f"{prefix}.mlp.experts.{{e}}.{which}_proj.weight" for which in ("down", "gate"))
        chosen, scale = tensors[routing + ".chosen"], tensors[routing + ".weights"]
        rows = tensors[inputs[family] + ".x"].reshape(*chosen.shape, -1)
        for expert in range(EXPERTS):
            token, choice = np.nonzero(chosen == expert)
            out[token] += scale[token, choice, None] * (rows[token, choice] @ weights[family.format(e=expert)].T)
        found[f"{prefix}.mlp.experts"] = out
        h = h + out
    found["model.norm"] = h
    return found


def test_everything_fits_together(made, stream, weights):
    """What the rows of each product add to the stream is what the next norm makes the next rows of."""
    tensors, inputs = load(made[0]), metadata(made[0])["inputs"]
    readers = {"model.norm": "lm_head"}
    for layer in range(CONFIG["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        readers[f"{prefix}.input_layernorm"] = f"{prefix}.self_attn.q_a_proj"
        mlp = f"{prefix}.mlp" if layer == 0 else f"{prefix}.mlp.shared_experts"
        readers[f"{prefix}.post_attention_layernorm"] = f"{mlp}.gate_proj"
    for norm, reader in readers.items():
        expected, found = rms_norm(stream[norm], weights[f"{norm}.weight"]), tensors[inputs[f"{reader}.weight"] + ".x"]
        # Roundings to bf16, 2^-9 each, of the rows of all products before.
        assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max(), norm
        assert np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()) < 2**-8, norm


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def test_sensitivity_of_the_last_layer(made, stream, weights):
    """Other signs and another step, in float64, through the last norm and the head."""
    layer = CONFIG["num_hidden_layers"] - 1
    h, out = (stream[name].astype(np.float64) for name in ("model.norm", f"model.layers.{layer}.mlp.experts"))

    def log_probabilities(h: np.ndarray) -> np.ndarray:
        return log_softmax(rms_norm(h, weights["model.norm.weight"]) @ weights["lm_head.weight"].T.astype(np.float64))

    step = 0.005 * np.sqrt((out**2).mean(1, keepdims=True))
    noise = step * np.random.default_rng(3).choice([-1.0, 1.0], out.shape)
    p, q = log_probabilities(h), log_probabilities(h + noise)
    expected = (np.exp(p) * (p - q)).sum(1).mean() / (noise**2).sum(1).mean()
    # Of 768 draws each, whose divergences deviate by about as much as they are.
    assert made[1]["layers"][-1]["sensitivity"] == pytest.approx(expected, rel=0.1)


def test_sensitivity_is_no_chance(made, compiled, moec, text, tmp_path):
    """One chunk and its noise say nearly what three do, though choices of later layers are near to tipping."""
    arguments = ("calibrate", compiled(MODEL), "--file", text, "-o", tmp_path / "c", "--tokens", "256", "--json")
    for layer, of_all in zip(json.loads(moec.run(*arguments).stdout)["layers"], made[1]["layers"]):
        assert layer["sensitivity"] == pytest.approx(of_all["sensitivity"], rel=0.3)


def test_quantized_checkpoints_are_named_by_their_codes(compiled, moec, text, tmp_path, made):
    """FP8 blocks: the same names, and no tensor of scales."""
    path = tmp_path / "c"
    moec.run("calibrate", compiled(FP8), "--file", text, "-o", path, "--no-sensitivity")
    assert metadata(path)["inputs"] == metadata(made[0])["inputs"]
    # The same of weights that this compile makes int4 of.
    int4 = compiled(MODEL, "--experts", "int4", "--dense", "int4")
    moec.run("calibrate", int4, "--file", text, "-o", path, "--no-sensitivity")
    assert metadata(path)["inputs"] == metadata(made[0])["inputs"]
    first = "model.layers.0.self_attn.q_a_proj.weight.x"
    assert (load(path)[first] == load(made[0])[first]).all()


def test_says_who_saw_too_little(made, compiled, moec, text, tmp_path):
    arguments = ("calibrate", compiled(MODEL), "--file", text, "-o", tmp_path / "c", "--tokens", "256")
    report = json.loads(moec.run(*arguments, "--json").stdout)
    counts = np.array([layer["counts"] for layer in report["layers"]])
    for layer, row in zip(report["layers"], counts):
        assert layer["scarce"] == np.nonzero(row < 128)[0].tolist()
        assert layer["least"] == {"expert": int(row.argmin()), "tokens": int(row.min())}
        assert layer["most"]["tokens"] == row.max()
    assert report["scarce"] == (counts < 128).sum() > 0
    assert report["tokens_needed"] == -(-256 * 128 // max(counts.min(), 1))
    said = moec.run(*arguments).stdout.decode()
    assert f"{report['scarce']} of {counts.size} experts saw fewer than 128 tokens" in said
    assert f"  {LAYER}: {report['layers'][0]['scarce'][0]} (" in said
    assert f"{report['tokens_needed']} tokens to give each of them 128" in said

    whole = moec.run("calibrate", compiled(MODEL), "--file", MODEL / "val.txt", "-o", tmp_path / "c", "--tokens", "4096")
    assert "each expert saw 128 tokens or more" in whole.stdout.decode()


@pytest.mark.sanitize
def test_refuses_bad_texts(compiled, moec, tmp_path):
    arguments = ("calibrate", compiled(MODEL), "-o", tmp_path / "c", "--file")
    short = tmp_path / "short.txt"
    short.write_text("")
    assert moec.refuses(*arguments, short) == f"moec: {short}: has 0 tokens, expected at least 256"
    short.write_text("To be, or not to be. " * 8)
    message = moec.refuses(*arguments, short)
    assert message.startswith(f"moec: {short}: has ") and message.endswith(" tokens, expected at least 256")
    assert str(tmp_path / "absent") in moec.refuses(*arguments, tmp_path / "absent")
    assert "--tokens" in moec.refuses(*arguments, MODEL / "val.txt", "--tokens", "255")
    assert os.listdir(tmp_path) == ["short.txt"]


def test_reads_what_is_not_utf8_as_perplexity_does(compiled, moec, moe_run, tmp_path):
    text = tmp_path / "t"
    text.write_bytes(b"to be \xff\xfe or \xc3 not " * 400)
    read = json.loads(moe_run.run("perplexity", compiled(MODEL), "--file", text, "--json").stdout)
    report = json.loads(
        moec.run("calibrate", compiled(MODEL), "--file", text, "-o", tmp_path / "c", "--json", "--no-sensitivity").stdout
    )
    assert report["tokens"] == read["tokens"]


@pytest.mark.sanitize
@pytest.mark.parametrize(
    "weights, why",
    [("--experts", "has a router in one launch, as where inputs are rounded"), ("--dense", "rounds its input to codes")],
)
def test_refuses_rounded_activations(weights, why, compiled, moec, tmp_path):
    artifact = compiled(MODEL, weights, "int4:a32")
    message = moec.refuses("calibrate", artifact, "--file", MODEL / "val.txt", "-o", tmp_path / "c")
    assert why + "; calibrate the model compiled in a format that leaves activations as they are" in message


@pytest.mark.parametrize("format", ["f32", "int8"])
def test_refuses_norms_without_weight(format, compiled, moec, tmp_path):
    """What reads them has other inputs than the checkpoint's weights do. Before int8 the norm is launched together with
    the rounding of its result."""
    artifact = compiled(MODEL, "--fold-norm", "--experts", format, "--dense", format)
    message = moec.refuses("calibrate", artifact, "--file", MODEL / "val.txt", "-o", tmp_path / "c")
    assert "has a norm whose weight is in those that it is multiplied with; calibrate the model compiled without" in message


def test_refuses_bad_artifacts(compiled, moec, text, tmp_path):
    output = tmp_path / "c"

    def refusal(change) -> str:
        broken = tmp_path / "broken"
        shutil.copytree(compiled(MODEL), broken)
        manifest = json.loads((broken / "manifest.json").read_text())
        change(manifest)
        (broken / "manifest.json").write_text(json.dumps(manifest))
        message = moec.refuses("calibrate", broken, "--file", text, "-o", output)
        shutil.rmtree(broken)
        assert not output.exists()
        return message

    def spec(manifest: dict, kind: str, **fields) -> dict:
        """The first with these fields."""
        specs = (kernel["spec"] for kernel in manifest["kernels"] if kernel["kind"] == kind)
        return next(spec for spec in specs if fields.items() <= spec.items())

    assert "broken" in refusal(lambda manifest: manifest.pop("program"))
    assert "compile the model again" in refusal(lambda manifest: manifest.pop("sources"))
    assert "'k' is 0" in refusal(lambda manifest: spec(manifest, "gemm").update(k=0))
    assert "too small for rows" in refusal(lambda manifest: spec(manifest, "gemm").update(k=2**20, x_stride=2**20))
    assert "too small for rows" in refusal(lambda manifest: spec(manifest, "route").update(topk=16))
    assert "too small for rows" in refusal(lambda manifest: spec(manifest, "route").update(shared=2**20))
    scatter = refusal(lambda manifest: spec(manifest, "gemm", routing="scatter").update(topk=3))
    assert "takes 3 rows for each token, but its router chooses 5 experts" in scatter  # one of them shared
    assert "of 3" in refusal(lambda manifest: spec(manifest, "route").update(experts=3))
    some = refusal(lambda manifest: spec(manifest, "dispatch").update(members=[0, 1]))
    assert "takes some of a layer's experts alone" in some
    assert "'routing'" in refusal(lambda manifest: spec(manifest, "gemm").pop("routing"))
    absent = tmp_path / "absent"
    message = moec.refuses("calibrate", absent, "--file", text, "-o", output)
    assert message == f"moec: {absent}: is not a directory, expected an artifact made by moec compile"


def test_output(compiled, moec, text, made, tmp_path):
    arguments = ("calibrate", compiled(MODEL), "--file", text, "-o")
    assert str(tmp_path / "no" / "c") in moec.refuses(*arguments, tmp_path / "no" / "c")
    assert "directory" in moec.refuses(*arguments, tmp_path)
    output = tmp_path / "c"
    output.write_text("an earlier one")
    moec.run(*arguments, output)
    assert output.read_bytes() == made[0].read_bytes()
    assert os.listdir(tmp_path) == ["c"]


@pytest.fixture
def small_disk(tmp_path) -> Path:
    path = tmp_path / "disk"
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", path], check=True)


def test_full_disk(small_disk, made, compiled, moec, text):
    """Said before the text is read, and an earlier output stays."""
    (small_disk / "c").write_text("an earlier one")
    message = moec.refuses("calibrate", compiled(MODEL), "--file", text, "-o", small_disk / "c")
    assert f"needs {made[0].stat().st_size} bytes" in message
    assert os.listdir(small_disk) == ["c"] and (small_disk / "c").read_text() == "an earlier one"
