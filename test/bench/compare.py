# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""moec, llama.cpp and ik_llama.cpp on the same model, in turn, as tables for docs/benchmarks.md.

    python test/bench/v2lite.py write --layers 4 ds4
    python test/bench/v2lite.py gguf ds4 ds4-q4_0.gguf --type q4_0
    moec compile ds4 -o ds4.moec --experts int4:a32 --attention int4:a32 --dense int4:a32 --head int4:a32 --cache bf16
    python test/bench/compare.py --pair 'int4:a32 / Q4_0' ds4.moec ds4-q4_0.gguf \\
        --llama llama.cpp/build/bin/llama-bench --ik ik_llama.cpp/build/bin/llama-bench

Each round runs each engine once with each number of threads (A B C A B C): what the machine does meanwhile meets all of them.
A cell is the median of all repetitions of all rounds, with the least and the most of them.

Peers are made outside the tree: Release, GGML_NATIVE=ON, target llama-bench. ik_llama.cpp knows models without a q_a_proj by
their number of layers; for 4 of them its condition must have one number more:

    sed -i 's/(hparams.n_layer == 27 || hparams.n_layer == 26)/(hparams.n_layer == 27 || hparams.n_layer == 26 || hparams.n_layer == 4)/' \\
        src/llama-hparams.cpp src/llama-load-tensors.cpp src/graphs/build_deepseek2.cpp
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from v2lite import BUILD, machine

# What its documentation recommends for models with latent attention on CPUs.
IK_OPTIONS = ["-mla", "3", "-fa", "1", "-fmoe", "1", "-rtr", "1"]


@dataclass
class Cell:
    rates: list[float] = field(default_factory=list)
    shares: list[tuple[float, float]] = field(default_factory=list)  # of bandwidth and of arithmetic

    def median(self) -> float:
        return statistics.median(self.rates)

    def __str__(self) -> str:
        if not self.rates:
            return "-"
        return f"{number(self.median())} ({number(min(self.rates))} to {number(max(self.rates))})"


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def json_of(command: list, threads: int = 0) -> object:
    """What a command prints; one thread stays on one core, as llama-bench would wander."""
    words = [str(word) for word in command]
    if threads == 1:
        words = ["taskset", "-c", str(max(os.sched_getaffinity(0))), *words]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{Path(sys.argv[0]).name}: {' '.join(words)} ended with code {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


class Moec:
    name = "moec"

    def __init__(self, artifact: Path):
        self.program, self.artifact = BUILD / "bin" / "moe-run", artifact
        self.limits: dict[int, list[dict]] = {}

    def version(self) -> str:
        return subprocess.run([self.program, "--version"], capture_output=True, text=True).stdout.split()[-1]

    def command(self, options, threads: int) -> list:
        tests = ["-p", listed(options.prompt), "-n", listed(options.predict), "-d", listed(options.depth)]
        return [self.program, "bench", self.artifact, *tests, "-t", threads, "-r", options.repetitions, "--json"]

    def run(self, options, threads: int, cells: dict) -> None:
        found = json_of(self.command(options, threads), threads)
        self.limits.setdefault(threads, []).append(found["limits"][0])
        for one in found["results"]:
            tokens = one["prompt"] or one["predict"]
            cell = cells.setdefault((one["test"], threads), Cell())
            cell.rates += [tokens / seconds for seconds in one["seconds"]]
            cell.shares.append((one.get("bandwidth_share") or 0, one.get("arithmetic_share") or 0))


class LlamaBench:
    """llama-bench of either peer; what differs is how a depth is asked for."""

    def __init__(self, name: str, program: Path, gguf: Path, more: list[str]):
        self.name, self.program, self.gguf, self.more = name, program, gguf, more
        self.build = "?"

    def version(self) -> str:
        return self.build

    def commands(self, options, threads: int) -> list[list]:
        start = [self.program, "-m", self.gguf, "-t", threads, "-r", options.repetitions, "-o", "json", *self.more]
        depths = [depth for depth in options.depth if depth > 0]
        plain_predict = options.predict if 0 in options.depth else [0]
        commands = [[*start, "-p", listed(options.prompt), "-n", listed(plain_predict)]]
        for depth in depths:
            if self.name == "llama.cpp":
                commands.append([*start, "-p", 0, "-n", listed(options.predict), "-d", depth])
            else:
                pairs = [word for count in options.predict for word in ("-gp", f"{depth},{count}")]
                commands.append([*start, "-p", 0, "-n", 0, *pairs])
        return commands

    def run(self, options, threads: int, cells: dict) -> None:
        for command in self.commands(options, threads):
            for one in json_of(command, threads):
                self.build = one["build_commit"]
                if one["n_gen"] == 0:
                    test = f"pp{one['n_prompt']}"
                else:
                    depth = one.get("n_depth", 0) or one["n_prompt"]
                    test = f"tg{one['n_gen']}" + (f"@d{depth}" if depth else "")
                cells.setdefault((test, threads), Cell()).rates.extend(one["samples_ts"])


def listed(values: list[int]) -> str:
    return ",".join(map(str, values))


def compare(name: str, artifact: Path, gguf: Path, options) -> None:
    engines = [Moec(artifact)]
    if options.llama:
        engines.append(LlamaBench("llama.cpp", options.llama, gguf, []))
    if options.ik:
        engines.append(LlamaBench("ik_llama.cpp", options.ik, gguf, IK_OPTIONS))
    cells = {engine.name: {} for engine in engines}
    load = os.getloadavg()[0]
    for _ in range(options.rounds):
        for threads in options.threads:
            for engine in engines:
                engine.run(options, threads, cells[engine.name])

    peers = engines[1:]
    print(f"### {name}\n\n{machine()}; load average {load:.1f} before the first run\n")
    print(", ".join(f"{engine.name} {engine.version()}" for engine in engines) + ". Commands, with one thread pinned:\n\n```sh")
    for engine in engines:
        commands = [engine.command(options, 1)] if engine.name == "moec" else engine.commands(options, 1)
        for command in commands:
            print(" ".join(Path(word).name if isinstance(word, Path) else str(word) for word in command))
    print("```\n")
    titles = ["test", "threads", *(f"{engine.name}, tok/s" for engine in engines), *(f"moec ÷ {peer.name}" for peer in peers)]
    titles += ["moec: of read", "of arithmetic"]
    print("| " + " | ".join(titles) + " |\n| --- |" + " ---: |" * (len(titles) - 1))
    for test, threads in cells["moec"]:
        own = cells["moec"][test, threads]
        others = [cells[peer.name].get((test, threads), Cell()) for peer in peers]
        ratios = [f"{own.median() / other.median():.2f}" if other.rates else "-" for other in others]
        shares = [f"{100 * statistics.median(share):.0f} %" for share in zip(*own.shares)]
        print("| " + " | ".join([test, str(threads), str(own), *map(str, others), *ratios, *shares]) + " |")
    print("\n| threads | read, GB/s | f32, GFLOP/s | bf16, GFLOP/s | int8, GOP/s |\n| --- |" + " ---: |" * 4)
    for threads, found in engines[0].limits.items():
        row = [number(max(one[key]["most"] for one in found) / 1e9) if found[0][key] else "-" for key in ("bandwidth", "f32", "bf16", "int8")]
        print(f"| {threads} | " + " | ".join(row) + " |")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", nargs=3, action="append", required=True, metavar=("NAME", "ART", "GGUF"), help="a table; may be repeated")
    parser.add_argument("--llama", type=Path, help="llama-bench of llama.cpp")
    parser.add_argument("--ik", type=Path, help="llama-bench of ik_llama.cpp")

    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    parser.add_argument("-p", "--prompt", type=numbers, default=[512])
    parser.add_argument("-n", "--predict", type=numbers, default=[64])
    parser.add_argument("-d", "--depth", type=numbers, default=[0, 4096])
    parser.add_argument("-t", "--threads", type=numbers, default=[1, 2])
    parser.add_argument("-r", "--repetitions", type=int, default=2, help="of each test in each round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for name, artifact, gguf in options.pair:
        compare(name, Path(artifact), Path(gguf), options)


if __name__ == "__main__":
    main()
