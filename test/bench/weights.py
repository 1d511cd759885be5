# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""How fast weights are made, as tables for docs/benchmarks.md.

    python test/bench/weights.py rates DIR        # bf16 and FP8 to int4, beside memcpy and file copies
    python test/bench/weights.py v3 DIR           # three layers of DeepSeek-V3 at full width, one of them dense

`v3` writes 23 GB of random FP8 into DIR the first time, and needs 13 GB more for the artifact. `rates` needs the
program `bench-weights` (`ninja -C build bench-weights`).
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = Path(os.environ.get("MOEC_BUILD_DIR", ROOT / "build"))
sys.path.insert(0, str(ROOT / "test" / "e2e"))

import sparse_checkpoint  # noqa: E402

V3 = ROOT / "test" / "frontends" / "configs" / "deepseek-v3.json"


def heading(title: str, command: str) -> None:
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())[1]
    print(f"## {title}\n")
    print(f"{date.today()}, {cpu}, {os.cpu_count()} processors, {platform.system()} {platform.machine()}\n")
    print(f"`python test/bench/weights.py {command}`\n")


def rates(directory: Path, repeat: int) -> None:
    program = [str(BUILD / "bin" / "bench-weights"), str(directory), "--repeat", str(repeat)]
    lines = subprocess.run(program, check=True, capture_output=True, text=True).stdout.splitlines()
    heading("Weights to packed int4", f"rates DIR --repeat {repeat}")
    print("Bytes in and out, GB/s, medians of runs in turn; experts of 2048 x 7168, groups of 32.\n")
    print("| from | threads | memory to memory | memcpy of the same | of it | file to file | copy of the same | of it |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in map(json.loads, lines):
        print(
            f"| {row['from']} | {row['threads']} | {row['memory']:.1f} | {row['memcpy']:.1f} "
            f"| {100 * row['memory'] / row['memcpy']:.0f} % | {row['files']:.1f} | {row['file_copy']:.1f} "
            f"| {100 * row['files'] / row['file_copy']:.0f} % |"
        )


def v3(directory: Path, max_memory: str) -> None:
    config = json.loads(V3.read_text())
    config |= {"vocab_size": 1024, "num_hidden_layers": 3, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0}
    model, artifact = directory / "v3", directory / "v3.moec"
    if not (model / "model.safetensors.index.json").exists():
        sparse_checkpoint.write(config, model, shards=6, data_layers={0, 1, 2})
    shutil.rmtree(artifact, ignore_errors=True)
    read = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    command = [str(BUILD / "bin" / "moec"), "compile", str(model), "-o", str(artifact)]
    command += ["--experts", "int4", "--dense", "int4", "--max-memory", max_memory]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit("weights.py: moec failed")
    seconds = float(re.search(r"in ([\d.]+) s", said)[1])
    written = sum(path.stat().st_size for path in artifact.glob("*.safetensors"))
    # All of them: 3 dense layers and 58 of experts. One dense layer's bytes are those of the config alone.
    whole = json.loads(V3.read_text())
    layers = [t for t in sparse_checkpoint.listing(whole) if t.layer is not None and t.layer < whole["num_hidden_layers"]]
    total = sum(tensor.bytes for tensor in layers)
    heading("DeepSeek-V3, three layers of full width, FP8 to int4", "v3 DIR")
    print("| | |\n| --- | --- |")
    print(f"| read | {read / 1e9:.1f} GB |")
    print(f"| written | {written / 1e9:.1f} GB |")
    print(f"| time, code included | {seconds:.1f} s |")
    print(f"| rate, in and out | {(read + written) / seconds / 1e9:.2f} GB/s |")
    print(f"| peak resident memory, `--max-memory {max_memory}` | {usage.ru_maxrss / 1024:.0f} MiB |")
    print(f"| all 61 layers, {total / 1e9:.0f} GB, at this rate | {total / read * seconds / 60:.0f} minutes |")
    shutil.rmtree(artifact)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["rates", "v3"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--max-memory", default="2GiB")
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    if options.command == "rates":
        rates(options.directory, options.repeat)
    else:
        v3(options.directory, options.max_memory)


if __name__ == "__main__":
    main()
