# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""One artifact at several CPU levels of one machine, in turn, as a table for docs/benchmarks.md.

    python test/bench/levels.py ds4.moec --levels x86-64-v4-vnni,x86-64-v4-amx --threads 1,16 --reports reports
    python test/bench/levels.py --print reports

Each round runs each level once (A B A B); a cell is the median of all repetitions of all rounds, with the least and the most of
them. The reports are what `moe-run bench --json` gave, one file LEVEL.ROUND.json each: a machine that has nothing but moe-run and
an artifact with code for its levels can make them, and another one the table.
"""

import argparse
import json
import os
import statistics
import sys
from datetime import date
from pathlib import Path

from compare import Cell, json_of, number
from v2lite import BUILD


def measure(options) -> None:
    options.reports.mkdir(parents=True, exist_ok=True)
    for turn in range(options.rounds):
        for level in options.levels.split(","):
            command = [BUILD / "bin" / "moe-run", "bench", options.artifact, "-p", options.prompts, "-n", "48"]
            command += ["-d", options.depths, "-t", options.threads, "-r", "3", "--json"]
            os.environ["MOEC_CPU"] = level
            (options.reports / f"{level}.{turn + 1}.json").write_text(json.dumps(json_of(command)))


def table(reports: Path) -> str:
    files = sorted(reports.glob("*.json"), key=lambda file: file.stat().st_mtime)  # as they were made
    if not files:
        sys.exit(f"levels.py: {reports}: holds no reports")
    runs = [json.loads(file.read_text()) for file in files]
    levels = list(dict.fromkeys(run["device"] for run in runs))
    cells: dict[tuple, Cell] = {}
    best: dict[tuple, float] = {}
    for run in runs:
        for limits in run["limits"]:
            for unit in ("bandwidth", "f32", "bf16", "int8"):
                if limits[unit]:
                    key = limits["threads"], unit
                    best[key] = max(best.get(key, 0), limits[unit]["most"])
        for one in run["results"]:
            cell = cells.setdefault((one["threads"], one["test"], run["device"]), Cell())
            tokens = one["prompt"] or one["predict"] * one["sequences"]
            cell.rates += [tokens / seconds for seconds in one["seconds"]]
            cell.shares.append((one["bandwidth_share"], one["arithmetic_share"] or 0))
    day = date.fromtimestamp(min(file.stat().st_mtime for file in files))
    lines = [f"{day}, {runs[0]['machine']['cpu']}, {runs[0]['machine']['cores']} processors.", ""]
    threads = sorted({key[0] for key in cells})
    for count in threads:
        measured = [f"{number(best[count, unit] / 1e9)} {text}" for unit, text in UNITS.items() if (count, unit) in best]
        lines.append(f"- {count} thread{'s' * (count > 1)}, best measured: {', '.join(measured)}")
    lines += ["", "| test | threads | " + " | ".join(f"{level}, tok/s" for level in levels) + " | of read | of arithmetic |"]
    lines.append("| --- | ---: |" + " ---: |" * (len(levels) + 2))
    for count, test in dict.fromkeys(key[:2] for key in cells):
        row = [cells[count, test, level] for level in levels if (count, test, level) in cells]
        read, arithmetic = (statistics.median(share[i] for share in row[-1].shares) for i in (0, 1))
        lines.append(f"| {test} | {count} | {' | '.join(map(str, row))} | {100 * read:.0f} % | {100 * arithmetic:.0f} % |")
    return "\n".join(lines)


UNITS = {"bandwidth": "GB/s read", "f32": "GFLOP/s f32", "bf16": "GFLOP/s bf16", "int8": "GOP/s int8"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", nargs="?", type=Path)
    parser.add_argument("--levels", default="x86-64-v4,x86-64-v4-vnni", help="the shares are those of the last")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--prompts", default="512,2048", help="lengths")
    parser.add_argument("--depths", default="0,4096", help="where 48 tokens are decoded")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--reports", type=Path, default=Path("reports"))
    parser.add_argument("--print", type=Path, dest="made", metavar="REPORTS", help="only print the table of reports that are there")
    options = parser.parse_args()
    if not options.made:
        if not options.artifact:
            parser.error("name an artifact, or reports to --print")
        measure(options)
    print(table(options.made or options.reports))


if __name__ == "__main__":
    main()
