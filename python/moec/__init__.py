# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Ahead-of-time compiler for mixture-of-experts transformers.

    moec.compile("DeepSeek-V2-Lite", "v2lite.moec")   # checkpoint directory -> artifact
    model = moec.load("v2lite.moec")
    for text in model.generate("The theory of relativity", max_new_tokens=64):
        print(text, end="", flush=True)

`Model.step` is the compiled program itself, on NumPy arrays. Bad input raises ValueError with one
sentence; arrays of another type or layout raise TypeError, nothing is converted silently.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from ._moec import Generation, Model, __version__, _calibrate, _compile, _ir, _load, _verify

__all__ = ["Generation", "Model", "calibrate", "compile", "ir", "load", "verify", "__version__"]


def compile(
    model_dir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    target: str = "cpu",
    cpus: Sequence[str] = (),
    max_context: int | None = None,
    mla: str = "auto",
    experts: str = "keep",
    attention: str = "keep",
    dense: str = "keep",
    head: str = "keep",
    formats: Sequence[str] = (),
    rounding: str = "nearest",
    calibration: str | os.PathLike[str] | None = None,
    cache: str = "f32",
    level: int = 2,
    fold_norm: bool = False,
    max_tokens: int = 512,
    max_memory: int = 2 << 30,
    threads: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> None:
    """Compile a checkpoint directory into an artifact.

    Args:
      model_dir: directory with config.json and safetensors or GGUF, as published.
      out: the artifact directory. It appears whole or not at all; an earlier artifact there is
        replaced, anything else is refused.
      target: the chip; "cpu" so far.
      cpus: CPUs to make code for: levels such as "x86-64-v3", architectures with all of their levels ("x86-64",
        "aarch64"), or "native"; weights serve all of them. Empty: this machine's architecture.
      max_context: longest sequence in tokens; None: what config.json allows, at most 32768.
      mla: form of latent attention: "absorbed", "expanded", or "auto", expanded where a step brings many tokens of a
        sequence. With one form alone, bits do not depend on how a prompt is cut into steps.
      experts, attention, dense, head: formats of the weights of routed experts, of attention's projections, of
        feed-forward layers that every token takes, of the projection to logits: "keep", "f32", "bf16", "f16", "int8",
        "fp8", "mxfp4", "nvfp4" or "int4"; options follow colons, as in "int4:g64:bf16", "int4:zero" or "int8:weights".
      formats: "REGEX=FORMAT" each, for weights whose name in the checkpoint matches; the first match decides, before the
        formats above.
      rounding: how codes are chosen: "nearest", or by a calibration: "importance" (of columns, for better scales) or
        "feedback" (of errors, as GPTQ does).
      calibration: a file that `calibrate` made.
      cache: format of cache entries: "f32"; "bf16" for half of the memory and of what attention reads; "int8" or "fp8",
        latents in codes, for little more than half of that.
      level: of optimization, 0 to 3, as -O of `moec compile` has them.
      fold_norm: whether the weights of norms are multiplied into those of the projections after them, where these are
        f32 or quantized to nearest; at level 3 they always are.
      max_tokens: tokens in one run of the program; longer steps are cut.
      max_memory: bound, in bytes, on what making the weights keeps in memory.
      threads: None: one per processor.
      progress: called now and then with (bytes done, bytes in all, weight).

    A compile that is killed, interrupted (KeyboardInterrupt) or stopped by an exception from `progress` goes
    on where it stopped when it is called again.

    Raises:
      ValueError: the checkpoint or an argument is unusable, or the disk is full; the message says which.
    """
    asked = [experts, attention, dense, head, "\n".join(formats), rounding, os.fspath(calibration or ""), cache]
    _compile(
        os.fspath(model_dir),
        os.fspath(out),
        target,
        list(cpus),
        max_context or 0,
        mla,
        asked,
        level,
        fold_norm,
        max_tokens,
        max_memory,
        threads or 0,
        progress,
    )


def load(
    artifact: str | os.PathLike[str],
    *,
    threads: int | None = None,
    max_slots: int = 1,
    cpu: str | None = None,
    weights: str = "mapped",
) -> Model:
    """Map an artifact, ready to run.

    Args:
      artifact: directory that `compile` or the `moec` command made.
      threads: None: the physical cores available to the process. Results do not depend on it.
      max_slots: sequences that can be held at the same time.
      cpu: CPU level such as "v3" to use instead of the best one that runs here.
      weights: where they are read: "mapped", in the page cache; "copied", in huge pages of this process, on all memory
        nodes in turn; "replicated", such a copy on each node, for its threads.
    Raises:
      ValueError: the artifact is damaged, or made for another CPU; there is no memory for copies.
    """
    return _load(os.fspath(artifact), threads or 0, max_slots, cpu, weights)


def ir(model_dir: str | os.PathLike[str], *, stage: str = "moe", max_context: int | None = None) -> str:
    """The model as MLIR text.

    Args:
      model_dir: as for `compile`; no weight is read.
      stage: "moe" (as imported), "optimized" (after the passes over moe) or "exec" (the device program).
      max_context: as for `compile`.
    """
    return _ir(os.fspath(model_dir), stage, max_context or 0)


def verify(
    model_dir: str | os.PathLike[str],
    *,
    tokens: Sequence[int] | None = None,
    count: int = 32,
    seed: int = 1,
    layers: Sequence[int] | None = None,
    mla: str = "auto",
    experts: str = "keep",
    attention: str = "keep",
    dense: str = "keep",
    head: str = "keep",
    formats: Sequence[str] = (),
    rounding: str = "nearest",
    calibration: str | os.PathLike[str] | None = None,
    cache: str = "f32",
    level: int = 2,
    fold_norm: bool = False,
    artifact: bool = True,
) -> dict[str, Any]:
    """Run the reference interpreter before and after each pass, then the artifact, on the same tokens.

    Args:
      model_dir, mla, experts, attention, dense, head, formats, rounding, calibration, cache, level, fold_norm: as for
        `compile`.
      tokens: one sequence of ids; None: `count` of them, drawn with `seed`.
      layers: a slice of the model, in rising order; None: all of it.
      artifact: whether it is made and run too.
    Returns:
      "holds": whether every step does; "tokens": how many were read; "unchanged": passes that changed nothing; "steps":
      for each pass that did, and for the artifact, a dictionary of "name", "proof" ("exact", "rounded": at most 2e-4 of a
      logit, "formats": another model, not judged), "max_abs", "max_rel", "kld_mean" (nats) and "same_top" against the
      step before, "holds", and, where it does not, the "divergence" as text.
    Raises:
      ValueError: the checkpoint or an argument is unusable.
    """
    asked = [experts, attention, dense, head, "\n".join(formats), rounding, os.fspath(calibration or ""), cache]
    return json.loads(
        _verify(
            os.fspath(model_dir), list(tokens or []), count, seed, list(layers or []), mla, asked, level, fold_norm, artifact
        )
    )


def calibrate(
    artifact: str | os.PathLike[str],
    file: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    tokens: int | None = None,
    threads: int | None = None,
    sensitivity: bool = True,
) -> dict[str, Any]:
    """Run an artifact over a text and keep what its weights are multiplied with, for quantizers.

    Args:
      artifact: directory that `compile` or the `moec` command made.
      file: the text, read in chunks of 256 tokens.
      out: the safetensors file to write (docs/calibration.md). It appears whole or not at all; an earlier one is replaced.
      tokens: at most so many are read, in whole chunks; None: the whole text.
      threads: None: the physical cores available to the process. The file does not depend on it.
      sensitivity: whether what noise in each layer's experts costs is measured, on the first 2048 tokens.
    Returns:
      "output", its size as "bytes", "tokens" that were read; "layers": for each layer of experts a dictionary of "experts"
      (its name), "topk", "counts" of each expert, the "least" and the "most" chosen one ("expert", "tokens"), those that saw
      too little ("scarce": fewer tokens than "enough"), "sensitivity" (nats per token over the noise's mean squared norm);
      "scarce" experts in all, those "never_chosen", and "tokens_needed" for each to see enough.
    Raises:
      ValueError: the artifact or the text is unusable, an argument is out of range, or the disk is full.
    """
    return json.loads(
        _calibrate(os.fspath(artifact), os.fspath(file), os.fspath(out), tokens or 0, threads or 0, sensitivity)
    )
