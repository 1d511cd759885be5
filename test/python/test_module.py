# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""The Python module: its arrays, its errors, its text."""

import ast
import inspect
import os
from pathlib import Path

import numpy as np
import pytest

moec = pytest.importorskip("moec", reason="the Python module is not built")

TINY = Path(__file__).parent.parent / "models" / "tiny-shakespeare"
STUBS = Path(__file__).parent.parent.parent / "python" / "moec" / "_moec.pyi"


def ints(*values):
    return np.array(values, np.int32)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    out = tmp_path_factory.mktemp("module") / "ts.moec"
    seen = []
    moec.compile(TINY, out, progress=lambda done, total, weight: seen.append((done, total, weight)))
    assert seen[-1][0] == seen[-1][1] > 5e6
    return out


@pytest.fixture(scope="module")
def model(artifact):
    return moec.load(artifact, threads=2, max_slots=2)


def test_compile_takes_formats(artifact, tmp_path):
    moec.compile(TINY, tmp_path / "int4", experts="int4", dense="int4:g64:bf16")
    size = [sum(path.stat().st_size for path in directory.glob("weights-*")) for directory in (artifact, tmp_path / "int4")]
    assert size[1] < 0.65 * size[0]


def test_properties(model):
    assert (model.name, model.type) == ("tiny-shakespeare", "deepseek_v3")
    assert (model.vocab_size, model.max_context, model.max_slots) == (1280, 1024, 2)
    assert "2 threads" in model.device


def test_step_gives_new_array(model):
    logits = model.step(ints(0, 874), ints(0, 1), ints(0, 0), ints(1, 0, 1))
    assert logits.shape == (3, 1280) and logits.dtype == np.float32
    assert (logits[0] == logits[2]).all() and (logits[0] != logits[1]).any()
    assert model.length(0) == 2


def test_step_writes_in_place(model):
    out = np.zeros((1, 1280), np.float32)
    result = model.step(ints(0), ints(0), ints(1), ints(0), out=out)
    assert result is out or np.shares_memory(result, out)
    assert np.abs(out).max() > 0


def test_step_argmax(model):
    text = ints(0, 874, 3, 99), ints(0, 1, 2, 3), ints(0, 0, 0, 0), ints(3, 0, 3, 1)
    argmax = model.step_argmax(*text)
    assert argmax.dtype == np.int32 and argmax.tolist() == model.step(*text).argmax(1).tolist()
    assert model.step_argmax(ints(5), ints(0), ints(1), ints()).shape == (0,)
    with pytest.raises(ValueError, match="row is 1, but the step has 1 tokens"):
        model.step_argmax(ints(5), ints(0), ints(1), ints(1))
    with pytest.raises(TypeError):
        model.step_argmax(np.array([5]), ints(0), ints(1), ints(0))


def test_step_without_rows(model):
    assert model.step(ints(5), ints(0), ints(1), ints()).shape == (0, 1280)


def test_truncate(model):
    model.step(ints(0, 1, 2), ints(0, 1, 2), ints(0, 0, 0), ints())
    model.truncate(0, 1)
    assert model.length(0) == 1
    with pytest.raises(ValueError):
        model.truncate(0, 5)


@pytest.mark.parametrize(
    "arguments",
    [
        (np.array([0], np.int64), ints(0), ints(0), ints(0)),
        (np.array([0.0]), ints(0), ints(0), ints(0)),
        (np.arange(4, dtype=np.int32)[::2], ints(0, 1), ints(0, 0), ints(0)),
        ([0], [0], [0], [0]),
    ],
    ids=["int64", "float", "strided", "list"],
)
def test_nothing_is_converted(model, arguments):
    with pytest.raises(TypeError):
        model.step(*arguments)


@pytest.mark.parametrize(
    "arguments,words",
    [
        ((ints(0, 1), ints(0), ints(0), ints(0)), "position"),
        ((ints(1280), ints(0), ints(0), ints(0)), "1280"),
        ((ints(-1), ints(0), ints(0), ints(0)), "-1"),
        ((ints(0), ints(0), ints(2), ints(0)), "slot"),
        ((ints(0), ints(0), ints(0), ints(1)), "row"),
        ((ints(0), ints(900), ints(1), ints(0)), "position"),
        ((ints(), ints(), ints(), ints()), "token"),
    ],
)
def test_step_refuses(model, arguments, words):
    with pytest.raises(ValueError, match=words):
        model.step(*arguments)


def test_out_must_fit(model):
    with pytest.raises(ValueError, match="1280"):
        model.step(ints(0), ints(0), ints(0), ints(0), out=np.zeros((2, 1280), np.float32))
    with pytest.raises(TypeError):
        model.step(ints(0), ints(0), ints(0), ints(0), out=np.zeros((1, 1280)))


def test_generate(model):
    generation = model.generate("ROMEO:\n", max_new_tokens=12, temperature=0)
    assert iter(generation) is generation and generation.stop_reason is None
    pieces = list(generation)
    assert len(pieces) > 1 and all(pieces)
    assert generation.stop_reason == "length" and len(generation.tokens) == 12
    assert model.decode(generation.tokens) == "".join(pieces)
    assert "".join(model.generate("ROMEO:\n", max_new_tokens=12, temperature=0)) == "".join(pieces)


def test_encode_and_decode(model):
    assert model.encode("ROMEO:\nWhat light") == [0, 874, 269, 474, 1264]
    assert model.decode(model.encode("To be, or not", add_bos=False)) == "To be, or not"


def test_generate_refuses(model):
    with pytest.raises(ValueError, match="temperature"):
        model.generate("a", temperature=-1.0)


def test_ir():
    text = moec.ir(TINY)
    assert "moe.attention" in text and "moe.mla_attention" not in text
    assert "moe.mla_attention" in moec.ir(TINY, stage="optimized")
    assert "exec.launch" in moec.ir(TINY, stage="exec")
    with pytest.raises(ValueError, match="stage"):
        moec.ir(TINY, stage="nowhere")


def test_verify():
    report = moec.verify(TINY, tokens=[0, 5, 6], layers=[0, 3], experts="int4")
    assert report["holds"] and report["tokens"] == 3
    names = [step["name"] for step in report["steps"]]
    after = ["moe-fuse-gate-up", "moe-fuse-projections", "moe-fuse-residual", "moe-trim-rows"]
    assert names == ["moe-fuse-mla", "moe-choose-mla", "moe-quantize", *after, "artifact"]
    assert report["steps"][2]["kld_mean"] > 0 and report["steps"][3]["max_abs"] == 0
    folded = moec.verify(TINY, count=2, layers=[0, 3], dense="int4", experts="int4", fold_norm=True, artifact=False)
    assert folded["holds"] and folded["steps"][2]["name"] == "moe-fold-norm" and 0 < folded["steps"][2]["max_abs"] < 2e-4
    assert moec.verify(TINY, count=2, artifact=False)["steps"][-1]["name"] == "moe-trim-rows"
    with pytest.raises(ValueError, match="token 1280 is not in the vocabulary"):
        moec.verify(TINY, tokens=[1280])
    assert "moe-choose-mla" in moec.verify(TINY, count=2, mla="absorbed", artifact=False)["unchanged"]
    with pytest.raises(ValueError, match="mla is 'both'"):
        moec.verify(TINY, mla="both")
    with pytest.raises(ValueError, match="no token"):
        moec.verify(TINY, count=0)
    with pytest.raises(ValueError, match="layer 7 is asked for"):
        moec.verify(TINY, layers=[7])


def test_errors_are_sentences(tmp_path):
    with pytest.raises(ValueError, match="config.json"):
        moec.compile(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="unknown weight format 'int3'"):
        moec.compile(TINY, tmp_path / "out", experts="int3")
    with pytest.raises(ValueError, match="manifest.json"):
        moec.load(tmp_path)
    assert not (tmp_path / "out").exists()


def test_progress_may_fail(tmp_path):
    def stop(*_):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        moec.compile(TINY, tmp_path / "out", progress=stop)
    assert os.listdir(tmp_path) == [".out.moec-part"], "what it made stays for the next one"
    moec.compile(TINY, tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def test_calibrate(artifact, tmp_path):
    report = moec.calibrate(artifact, TINY / "val.txt", tmp_path / "c", tokens=700, threads=2)
    assert report["tokens"] == 512 and report["bytes"] == (tmp_path / "c").stat().st_size
    assert [sum(layer["counts"]) for layer in report["layers"]] == [512 * 4] * 3
    assert all(layer["sensitivity"] > 0 for layer in report["layers"])
    silent = moec.calibrate(artifact, TINY / "val.txt", tmp_path / "c", tokens=256, sensitivity=False)
    assert all("sensitivity" not in layer for layer in silent["layers"])
    with pytest.raises(ValueError, match="tokens to read are 255, expected at least the 256 of a chunk"):
        moec.calibrate(artifact, TINY / "val.txt", tmp_path / "c", tokens=255)
    with pytest.raises(ValueError, match="absent"):
        moec.calibrate(artifact, tmp_path / "absent", tmp_path / "c")


def test_everything_is_documented():
    for name in moec.__all__:
        thing = getattr(moec, name)
        assert name.startswith("__") or inspect.getdoc(thing), name


def test_stubs_match_the_module():
    """Each class member and function that the stubs promise exists, and no other."""
    from moec import _moec

    for node in ast.parse(STUBS.read_text()).body:
        if isinstance(node, ast.ClassDef):
            promised = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
            found = {n for n in vars(getattr(_moec, node.name)) if not n.startswith("_")} | {"__iter__", "__next__"} & promised
            assert promised == found, node.name
        elif isinstance(node, ast.FunctionDef):
            assert callable(getattr(_moec, node.name))
