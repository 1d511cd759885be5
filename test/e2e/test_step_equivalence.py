# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""With one form of attention, a prompt's logits have the same bits however it is cut, batched or threaded."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

moec = pytest.importorskip("moec", reason="the Python module is not built")

MODEL = Path(__file__).parent.parent / "models" / "tiny-shakespeare"
LENGTH = 150  # crosses two page boundaries (64 tokens a page)


def sequence(seed: int, length: int) -> np.ndarray:
    raw = np.random.PCG64(seed).random_raw(length)
    return np.concatenate([[0], 3 + raw[1:] % 1277]).astype(np.int32)


def feed(model, tokens, slot, begin, end):
    """One step with part of one sequence; logits of each token."""
    count = end - begin
    return model.step(
        tokens[begin:end],
        np.arange(begin, end, dtype=np.int32),
        np.full(count, slot, np.int32),
        np.arange(count, dtype=np.int32),
    )


FORMS, CACHES = ("absorbed", "expanded"), ("f32", "bf16", "int8", "fp8")


@pytest.fixture(scope="module", params=[(form, cache) for form in FORMS for cache in CACHES], ids="-".join)
def artifact(request, compiled):
    form, cache = request.param
    return compiled(MODEL, "--cpu", "x86-64", "--mla", form, "--cache", cache)


@pytest.fixture(scope="module")
def whole(artifact):
    model = moec.load(artifact, threads=1)
    return feed(model, sequence(1, LENGTH), 0, 0, LENGTH)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("chunk", [1, 7, 64, LENGTH])
def test_chunks(artifact, whole, threads, chunk):
    model = moec.load(artifact, threads=threads)
    tokens = sequence(1, LENGTH)
    parts = [feed(model, tokens, 0, at, min(at + chunk, LENGTH)) for at in range(0, LENGTH, chunk)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_ragged_batch(artifact, whole, threads):
    """Four sequences in one batch, interleaved, cut at different places and starting at different times."""
    model = moec.load(artifact, threads=threads, max_slots=4)
    sequences = [sequence(1, LENGTH), sequence(2, 90), sequence(3, 130), sequence(4, 17)]
    slots = [2, 0, 3, 1]
    cuts = [11, 7, 13, 1]
    done = [0, 0, 0, 0]
    ours = []
    step = 0
    while done[0] < LENGTH:
        entries = []
        for index, tokens in enumerate(sequences):
            if step < 2 * index:  # later sequences join later
                continue
            for _ in range(min(cuts[index], len(tokens) - done[index])):
                entries.append((index, done[index]))
                done[index] += 1
        # By position, so that the sequences' tokens alternate; each sequence's own stay in order.
        mixed = sorted(entries, key=lambda entry: (entry[1], entry[0]))
        logits = model.step(
            np.array([sequences[i][p] for i, p in mixed], np.int32),
            np.array([p for _, p in mixed], np.int32),
            np.array([slots[i] for i, _ in mixed], np.int32),
            np.array([at for at, (i, _) in enumerate(mixed) if i == 0], np.int32),
        )
        ours.append(np.array(logits))
        step += 1
    assert np.concatenate(ours).tobytes() == whole.tobytes()


def test_auto_takes_the_form_that_the_length_of_a_run_asks_for(compiled):
    """The model's widths break even at 64 tokens; who else is in the step does not matter."""
    forms = {form: moec.load(compiled(MODEL, "--mla", form), threads=2, max_slots=2) for form in ("absorbed", "expanded", "auto")}
    tokens = sequence(1, LENGTH)
    for chunk, form in ((LENGTH, "expanded"), (64, "expanded"), (63, "absorbed"), (7, "absorbed")):
        length = LENGTH // chunk * chunk  # whole chunks
        for begin in range(0, length, chunk):
            expected, found = (feed(forms[name], tokens, 0, begin, begin + chunk).tobytes() for name in (form, "auto"))
            assert found == expected, (chunk, begin)
    # A prompt beside a single token of another sequence.
    other = sequence(2, 1)
    logits = forms["auto"].step(
        np.concatenate([tokens[:100], other]),
        np.append(np.arange(100), 0).astype(np.int32),
        np.append(np.zeros(100), 1).astype(np.int32),
        np.arange(101, dtype=np.int32),
    )
    assert logits[:100].tobytes() == feed(forms["expanded"], tokens, 0, 0, 100).tobytes()
    assert logits[100:].tobytes() == feed(forms["absorbed"], other, 1, 0, 1).tobytes()


@pytest.mark.parametrize("rows", [[LENGTH - 1], [0], [99, 3, 7], [5, 5, LENGTH - 1, 5], list(range(1, LENGTH)), []], ids=len)
def test_rows_asked_for(artifact, whole, rows):
    """What is computed for some rows alone is what it is among all; a step that asks for none still fills the cache."""
    model = moec.load(artifact, threads=2)
    tokens = sequence(1, LENGTH)
    every = np.arange(LENGTH, dtype=np.int32)
    logits = model.step(tokens, every, np.zeros(LENGTH, np.int32), np.array(rows, np.int32))
    assert logits.shape == (len(rows), whole.shape[1])
    assert logits.tobytes() == whole[rows].tobytes()
    again = feed(model, tokens, 0, LENGTH - 1, LENGTH)
    assert again.tobytes() == whole[-1:].tobytes()


def test_from_the_last_attention_on_only_rows_asked_for_are_computed(moec):
    """That is what a prompt's last layer costs; -O0 computes all rows there."""
    for level, trimmed in (("-O0", False), ("-O1", True)):
        program = moec.run("compile", MODEL, level, "--emit=exec").stdout.decode()
        maps = dict(re.findall(r"^(#\S+) = affine_map<\(d0, d1\) -> (.*)>$", program, re.M))
        launches = re.findall(r'exec.launch .* grid (#\w+) .*label = "(.*?)"', program)
        labels = [label for _, label in launches]
        after = launches[labels.index("layers.3.self_attn.o_proj") :]
        assert len(after) > 10
        assert all("d0" not in maps[grid] for grid, _ in after) == trimmed


def test_rewind(artifact, whole):
    """A sequence taken back to an earlier position and fed again gives the same bits."""
    model = moec.load(artifact, threads=2)
    tokens = sequence(1, LENGTH)
    feed(model, sequence(9, 100), 0, 0, 100)
    feed(model, tokens, 0, 0, 70)
    again = feed(model, tokens, 0, 40, LENGTH)
    assert again.tobytes() == whole[40:].tobytes()


def test_levels_agree(artifact, moe_run, tmp_path):
    """AVX2 and AVX-512 code give the same bits: vectors are 16 wide in the definition of each kernel."""
    tokens = ",".join(map(str, sequence(1, LENGTH)))
    results = []
    for level in ("v3", "v4", None):
        env = dict(os.environ)
        env.pop("MOEC_CPU", None)
        if level:
            env["MOEC_CPU"] = level
        out = tmp_path / f"{level}.safetensors"
        moe_run.run("logits", artifact, "--tokens", tokens, "-o", out, env=env)
        results.append(load_file(out)["logits"].tobytes())
    assert results[0] == results[1] == results[2]


def test_context_limit(compiled):
    model = moec.load(compiled(MODEL, "--max-context", 96))
    tokens = sequence(1, 97)
    feed(model, tokens, 0, 0, 96)
    with pytest.raises(ValueError, match="96"):
        feed(model, tokens, 0, 96, 97)


@pytest.mark.parametrize("head", ["f32", "bf16:a16", "int4:a32", "int8:a32", "fp8", "mxfp4:a32"])
def test_argmax_is_that_of_the_logits(head, compiled):
    """Of all rows of a long step, and in a generation without temperature, which stores no logits."""
    artifact = compiled(MODEL, "--head", head)
    model, other = moec.load(artifact, threads=2), moec.load(artifact, threads=1)
    tokens, positions = sequence(1, LENGTH), np.arange(LENGTH, dtype=np.int32)
    best = model.step_argmax(tokens, positions, np.zeros(LENGTH, np.int32), positions)
    assert best.tolist() == feed(other, tokens, 0, 0, LENGTH).argmax(1).tolist()
    for text in ("ROMEO:\n", "First Citizen:\nBefore we"):
        generation = model.generate(text, max_new_tokens=40, temperature=0)
        "".join(generation)
        prompt = model.encode(text)
        tokens = np.array([*prompt, *generation.tokens], np.int32)
        assert len(generation.tokens) == 40  # neither text ends so early
        logits = feed(other, tokens, 0, 0, len(tokens))
        assert logits[len(prompt) - 1 : -1].argmax(1).tolist() == generation.tokens
