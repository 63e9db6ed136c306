"""`eutectic extract-lora` against mergekit's, both as whole processes, turn about.

    python benchmarks/speed/extract_lora.py [--size 0.5B] [--rank 64] [--runs 1]

Needs the checkpoints and environment that `benchmarks/speed/run.py` makes. mergekit also copies the embedding and
the head whole (modules_to_save); the time for that is part of its own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent.parent
WORK = BENCHMARKS / ".work"
PEER = WORK / "venv-mergekit" / "bin" / "mergekit-extract-lora"


def seconds(command: list[str]) -> float:
    """Wall time of a process that must succeed."""
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return time.perf_counter() - begun


def main() -> None:
    """Time both, print the ratio of the medians."""
    parser = argparse.ArgumentParser(description="Time eutectic extract-lora against mergekit's.")
    parser.add_argument("--size", default="0.5B")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--runs", type=int, default=1)
    arguments = parser.parse_args()
    family = WORK / "checkpoints" / arguments.size
    if not PEER.exists() or not family.is_dir():
        sys.exit("run first: python benchmarks/speed/run.py --peers mergekit --size " + arguments.size)
    tuned, base, out = str(family / "ft1"), str(family / "base"), WORK / "extracted"
    rank = str(arguments.rank)
    commands = {
        "eutectic": [sys.executable, "-m", "eutectic", "extract-lora", tuned, str(out), "--base", base, "--rank", rank],
        "mergekit": [
            str(PEER), "--model", tuned, "--base-model", base, "--out-path", str(out), "--max-rank", rank,
        ],
    }  # fmt: skip
    found: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(arguments.runs):
        for name, command in commands.items():
            shutil.rmtree(out, ignore_errors=True)
            found[name].append(seconds(command))
    shutil.rmtree(out, ignore_errors=True)
    medians = {name: statistics.median(times) for name, times in found.items()}
    for name, times in found.items():
        print(f"{name}: median {medians[name]:.1f} s of {', '.join(f'{t:.1f}' for t in times)}")
    print(f"ratio {medians['mergekit'] / medians['eutectic']:.1f}")


if __name__ == "__main__":
    main()
