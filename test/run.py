# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Builds and runs every test of the project; the last line counts them all.

Suites: GoogleTest programs, lit, pytest, each in the `release` build; then GoogleTest and lit again,
and the pytest files marked `sanitize`, in the `asan` build; then the fuzzers of test/fuzz, side by side,
in the `fuzz` build.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = {
    "release": ROOT / "build",
    "aarch64": ROOT / "build-aarch64",
    "asan": ROOT / "build-asan",
    "fuzz": ROOT / "build-fuzz",
}
# The runtime for 64-bit Arm is run by tests of the release build, where there is what it takes.
CROSS_TOOLS = ["aarch64-linux-gnu-g++", "qemu-aarch64"]
FUZZ = ROOT / "test" / "fuzz"
# Seeds beside those of the corpus: too large for each of them to be cut at every length by the replay.
MORE_SEEDS = {"config": [ROOT / "test" / "frontends" / "configs"]}


class Counts:
    """Passed, failed and skipped over all suites, and what failed."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self.failures: list[str] = []

    def add(self, suite: str, passed: int, failures: list[str], skipped: int, seconds: float) -> None:
        self.passed += passed
        self.failed += len(failures)
        self.skipped += skipped
        self.failures += [f"{suite}: {name}" for name in failures]
        print(f"{suite}: {passed} passed, {len(failures)} failed, {skipped} skipped in {seconds:.0f} s", flush=True)

    def add_junit(self, suite: str, report: Path, output: str, code: int, seconds: float) -> None:
        """Counts of a JUnit report; a suite that wrote none counts as one failure."""
        passed, failures, skipped = 0, [], 0
        if report.exists():
            for case in ElementTree.parse(report).iter("testcase"):
                name = f"{case.get('classname', '')}.{case.get('name', '')}"
                found = case.find("failure") if case.find("failure") is not None else case.find("error")
                if found is not None:
                    # What went wrong, as pytest marks it; else the last line.
                    lines = (found.text or found.get("message") or "").strip().split("\n")
                    said = next((line for line in lines if line.startswith("E  ")), lines[-1])
                    failures.append(f"{name}: {said.strip()[:200]}" if said else name)
                elif case.find("skipped") is not None or case.get("result") == "skipped":
                    skipped += 1
                else:
                    passed += 1
        if code != 0 and not failures:
            failures.append(f"ended with code {code}")
        if not failures and passed + skipped == 0:
            failures.append("ran no test")
        if failures:
            print(output)
        self.add(suite, passed, failures, skipped, seconds)


def run(command: list, **options) -> tuple[int, str, float]:
    start = time.monotonic()
    done = subprocess.run(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", **options
    )
    return done.returncode, done.stdout, time.monotonic() - start


def build(preset: str) -> None:
    directory = BUILD[preset]
    # The module belongs to the interpreter that runs the tests; a sanitizer's runtime would have to come before it.
    python = ["-DMOEC_BUILD_PYTHON=ON", f"-DPython_EXECUTABLE={sys.executable}"] if preset == "release" else []
    code, output, _ = run(["cmake", "--preset", preset, *python], cwd=ROOT)
    if code != 0:
        sys.exit(output + f"check: could not configure the {preset} build")
    print(f"building {preset}", flush=True)
    targets = ["fuzzers"] if preset == "fuzz" else []
    code, output, seconds = run(["ninja", "-C", directory, *targets])
    if code != 0:
        sys.exit(output[-20000:] + f"check: could not build {preset}")
    print(f"built {preset} in {seconds:.0f} s", flush=True)


def environment(preset: str) -> dict:
    env = dict(os.environ, MOEC_BUILD_DIR=str(BUILD[preset]), PYTHONDONTWRITEBYTECODE="1")
    # The packaged MLIR is not instrumented. What it allocates at exit is not our leak, and memory that our
    # instrumented copy of its allocator's inline code poisons, its own copy hands out without saying so.
    env["ASAN_OPTIONS"] = "detect_leaks=0:allow_user_poisoning=0:abort_on_error=0:allocator_may_return_null=1"
    env["PYTHONPATH"] = str(BUILD[preset] / "python")
    env["UBSAN_OPTIONS"] = "print_stacktrace=1:halt_on_error=1"
    return env


def run_gtest(preset: str, counts: Counts, reports: Path) -> None:
    for program in sorted((BUILD[preset] / "gtest").glob("*")):
        if not os.access(program, os.X_OK) or program.is_dir():
            continue
        report = reports / f"{preset}-{program.name}.xml"
        code, output, seconds = run([program, f"--gtest_output=xml:{report}"], env=environment(preset))
        counts.add_junit(f"{preset} {program.name}", report, output, code, seconds)


def run_lit(preset: str, counts: Counts, reports: Path) -> None:
    report = reports / f"{preset}-lit.xml"
    code, output, seconds = run(
        ["lit-22", "-v", f"--xunit-xml-output={report}", BUILD[preset] / "test"], env=environment(preset)
    )
    counts.add_junit(f"{preset} lit", report, output, code, seconds)


def run_pytest(preset: str, counts: Counts, reports: Path, extra: list[str]) -> None:
    report = reports / f"{preset}-pytest.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider", f"--junitxml={report}", *extra]
    command += ["-n", "auto", "--dist", "loadfile"]  # files side by side, as their tests share what they compile
    code, output, seconds = run(command + [ROOT / "test"], env=environment(preset), cwd=ROOT)
    for line in output.splitlines():
        if line.startswith("SKIPPED"):
            print(line)
    counts.add_junit(f"{preset} pytest", report, output, code, seconds)


def fuzz(target: str, seconds: int) -> tuple[int, list[str], str]:
    """Runs one fuzzer; how many inputs it tried, what is wrong, and what it printed."""
    found = BUILD["fuzz"] / "found" / target  # inputs that reached something new: a later run goes on from them
    found.mkdir(parents=True, exist_ok=True)
    dictionary = FUZZ / f"{target}.dict"
    limits = [f"-max_total_time={seconds}", "-max_len=8192", "-timeout=10", "-rss_limit_mb=2048"]
    words = [f"-dict={dictionary}"] if dictionary.exists() else []
    corpus = [found, FUZZ / "corpus" / target, *MORE_SEEDS.get(target, [])]
    with tempfile.TemporaryDirectory() as scratch:
        program, report = BUILD["fuzz"] / "bin" / f"fuzz-{target}", [f"-artifact_prefix={found}/", "-print_final_stats=1"]
        # Without the allowances of `environment`: here everything is instrumented, and a leak is a finding.
        code, output, _ = run([program, *limits, *words, *report, *corpus], env=dict(os.environ, TMPDIR=scratch))
    tried = re.search(r"stat::number_of_executed_units: *(\d+)", output)
    written = re.search(r"Test unit written to (\S+)", output)
    if written:
        return 0, [f"shown again by build-fuzz/bin/fuzz-{target} {Path(written[1]).relative_to(ROOT)}"], output
    if code != 0 or not tried or int(tried[1]) == 0:
        return 0, [f"ended with code {code}"], output
    return int(tried[1]), [], output


def run_fuzz(counts: Counts, seconds: int) -> None:
    """Shares the seconds among all fuzzers, as many at a time as there are cores."""
    targets = sorted(path.name for path in (FUZZ / "corpus").iterdir())
    workers = min(len(targets), os.cpu_count() or 1)
    share = max(1, seconds // -(-len(targets) // workers))
    with ThreadPoolExecutor(workers) as pool:
        for target, (tried, failures, output) in zip(targets, pool.map(lambda target: fuzz(target, share), targets)):
            if failures:
                print(output[-20000:])
            else:
                print(f"fuzz {target} tried {tried} inputs")
            counts.add(f"fuzz {target}", 0 if failures else 1, failures, 0, share)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    presets = [preset for preset in BUILD if preset != "aarch64"]
    parser.add_argument("--preset", action="append", choices=presets, help="only this build (default: all)")
    all_suites = ["gtest", "lit", "pytest", "fuzz"]
    parser.add_argument("--suite", action="append", choices=all_suites, help="only this suite (default: all)")
    parser.add_argument(
        "--fuzz-seconds", type=int, default=60, metavar="N", help="how long all fuzzers run together (default: 60; 0: not at all)"
    )
    options = parser.parse_args()
    suites = options.suite or all_suites

    counts = Counts()
    for preset in options.preset or presets:
        if preset == "fuzz":
            if "fuzz" in suites and options.fuzz_seconds > 0:
                build(preset)
                run_fuzz(counts, options.fuzz_seconds)
            continue
        build(preset)
        if preset == "release" and "pytest" in suites and all(map(shutil.which, CROSS_TOOLS)):
            build("aarch64")
        reports = BUILD[preset] / "reports"
        reports.mkdir(exist_ok=True)
        for old in reports.glob("*.xml"):
            old.unlink()
        if "gtest" in suites:
            run_gtest(preset, counts, reports)
        if "lit" in suites:
            run_lit(preset, counts, reports)
        if "pytest" in suites:
            # Without the Python module, which the sanitizers' runtime would have to precede.
            run_pytest(preset, counts, reports, ["-m", "sanitize"] if preset == "asan" else [])

    for failure in counts.failures:
        print(f"FAILED {failure}")
    print(f"{counts.passed} passed, {counts.failed} failed, {counts.skipped} skipped")
    return 1 if counts.failed else 0


if __name__ == "__main__":
    sys.exit(main())
