# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""What formats of weights cost, on the trained model of the tree and its held-out text, as a table for docs/accuracy.md.

    python test/bench/accuracy.py > docs/accuracy.md

Every row is an artifact; its logits are compared with those of another one at each of 20,992 positions.
"""

import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = Path(os.environ.get("MOEC_BUILD_DIR", ROOT / "build")) / "bin"
BF16 = ROOT / "test" / "models" / "tiny-shakespeare"
FP8 = ROOT / "test" / "models" / "tiny-shakespeare-fp8"
TEXT = BF16 / "val.txt"

EVERYTHING = ("--experts", "--attention", "--dense", "--head")
INT4 = ["int4:g32", "int4:g64"]


def run(*command) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return done.stdout


class Row:
    """One artifact, measured against `base`, or by itself."""

    def __init__(self, artifact: Path, model: Path, options: list[str], base: "Row | None" = None):
        run(BIN / "moec", "compile", model, "-o", artifact, *options)
        self.artifact = artifact
        weights = json.loads(run(BIN / "moec", "inspect", artifact, "--json"))["weights"]
        self.bytes = sum(weight["bytes"] for weight in weights)
        kld = ["--kld", base.artifact] if base else []
        self.found = json.loads(run(BIN / "moe-run", "perplexity", artifact, "--file", TEXT, "--json", *kld))

    def cells(self) -> list[str]:
        found = self.found
        cells = [f"{self.bytes / 2**20:.2f}", f"{found['perplexity']:.3f}"]
        if "kld_mean" not in found:
            return [*cells, "-", "-", "-"]
        return [*cells, f"{found['kld_mean']:.2e}", f"{found['kld_p99']:.2e}", f"{100 * found['same_top']:.2f} %"]


def main() -> None:
    print("# Accuracy\n")
    print(f"{date.today()}, `python test/bench/accuracy.py > docs/accuracy.md`\n")
    print("What formats of weights do to `test/models/tiny-shakespeare` and its twin in FP8 blocks, over the 82 whole chunks of")
    print("`val.txt`. KLD is the divergence in nats from the artifact that the row names, its mean and the value that 99 of 100")
    print("positions do not exceed. Codes are rounded to nearest; activations are f32 in all of them.\n")
    print("| experts | other linears | against | MiB | perplexity | KLD mean | KLD p99 | same top token |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as directory:
        numbers = iter(range(1000))

        def show(experts: str, others: str, model: Path, options: list[str], against: str = "", base=None) -> Row:
            row = Row(Path(directory) / str(next(numbers)), model, options, base)
            print(f"| {experts} | {others} | {against or '-'} | " + " | ".join(row.cells()) + " |", flush=True)
            return row

        bf16 = show("bf16", "bf16", BF16, [])
        fp8 = show("fp8 blocks", "fp8 blocks", FP8, [], "bf16", bf16)
        klds = {}
        for format in INT4:
            klds[format] = show(format, "bf16", BF16, ["--experts", format], "bf16", bf16).found["kld_mean"]
        for format in INT4:
            row = show(format, "fp8 blocks", FP8, ["--experts", format], "fp8 blocks", fp8)
            klds[format] = row.found["kld_mean"] / klds[format]
        for format in INT4:
            show(format, format, BF16, [part for option in EVERYTHING for part in (option, format)], "bf16", bf16)
    print("\n`int4:g64` is int4 in groups of 64 with f16 scales. bf16 scales give the same values here: an eighth of a bf16")
    print("weight is a bf16 number. Made from FP8 blocks, the experts' int4 costs " + " and ".join(f"{klds[f]:.2f}" for f in INT4))
    print("times the KLD that it costs made from bf16, in groups of 32 and 64.")


if __name__ == "__main__":
    main()
