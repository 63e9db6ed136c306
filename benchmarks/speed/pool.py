"""Packing pools and writing their members back: bytes of parameters a second, bytes of the archive, peak memory.

    python benchmarks/speed/pool.py [--size 0.1B] [--threads 2] [--runs 3] [--report]

Whole processes, in turn, inputs in the page cache; start-up (that of packing a model of a few KB) is taken off in a
column of its own. Packing reads the base and all experts: its rate is their bytes over the time. Getting a member back
reads the base, the shared part and one file of bits and writes a model: its rate is the model's bytes over the time.
The copy beside them is `cp` of the same bytes.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import statistics
import sys
from pathlib import Path

from checkpoints import family
from cost import Cost, measured
from folder import weight_bytes
from machine import commit, cpu_model, load, slug
from paths import REPORTS, WORK

SCHEMES = ("tall", "bitdelta")
GOAL = 1e9


def pack(folder: Path, out: Path, scheme: str, threads: int) -> Cost:
    """`eutectic pool pack` of a family."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    experts = [str(path) for path in sorted(folder.glob("ft*"))]
    command = [sys.executable, "-m", "eutectic", "pool", "pack", str(folder / "base"), *experts]
    return measured([*command, "--out", str(out), "--scheme", scheme, "--threads", str(threads), "--quiet"], threads)


def get(pool: Path, out: Path, threads: int) -> Cost:
    """`eutectic pool get` of its first member."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    name = sorted(path.stem for path in (pool / "experts").iterdir())[0]
    return measured([sys.executable, "-m", "eutectic", "pool", "get", str(pool), name, str(out), "--quiet"], threads)


def copied(source: Path, out: Path) -> Cost:
    """`cp` of a model's weights."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    return measured([shutil.which("cp") or "cp", "-r", str(source), str(out)], 1)


def median(costs: list[Cost]) -> Cost:
    """Each figure's median."""
    return Cost(*(statistics.median(column) for column in zip(*costs, strict=True)))


def main() -> None:
    """Measure, print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="0.1B")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--report", action="store_true", help="write benchmarks/reports/pool_<size>_...md")
    options = parser.parse_args()
    folder, small, before = family(options.size), family("tiny"), load()
    experts = len(list(folder.glob("ft*")))
    raw, one = weight_bytes(folder / "base") * (experts + 1), weight_bytes(folder / "base")
    out, back = WORK / "pool-bench", WORK / "pool-back"
    found: dict[tuple[str, str], list[Cost]] = {}
    sizes: dict[str, int] = {}
    for _ in range(options.runs):
        for scheme in SCHEMES:
            start = pack(small, out, scheme, options.threads)
            found.setdefault((scheme, "start"), []).append(start)
            found.setdefault((scheme, "pack"), []).append(pack(folder, out, scheme, options.threads))
            sizes[scheme] = sum(path.stat().st_size for path in out.rglob("*.safetensors"))
            found.setdefault((scheme, "get"), []).append(get(out, back, options.threads))
        found.setdefault(("cp", "cp"), []).append(copied(folder / "base", back))
    rows = []
    for (scheme, action), costs in found.items():
        if action == "start":
            continue
        cost, start = median(costs), median(found[scheme, "start"]) if action != "cp" else Cost(0, 0, 0)
        nbytes = raw if action == "pack" else one
        rates = [nbytes / cost.wall / 1e9, nbytes / max(1e-9, cost.wall - start.wall) / 1e9]
        share = f"{sizes[scheme] / raw:.1%}" if action == "pack" else ""
        verdict = "" if action == "cp" else "met" if rates[1] * 1e9 >= GOAL else "**missed**"
        name = "cp" if action == "cp" else f"{scheme}, {action}"
        rows.append(
            f"| {name} | {nbytes / 1e9:.2f} | {cost.wall:.2f} | {cost.cpu:.2f} | {rates[0]:.2f} | {rates[1]:.2f} | "
            f"{cost.megabytes:.0f} | {share} | {verdict} |"
        )
    command = f"python benchmarks/speed/pool.py --size {options.size} --threads {options.threads} --runs {options.runs}"
    formula = (2 + experts / 16) / (experts + 1)
    page = "\n".join([
        f"# Pools: {options.size}, {experts} experts, bfloat16", "",
        f"{cpu_model()}, {options.threads} threads, {datetime.date.today()}, commit {commit()}; load average {before}",
        f"before and {load()} after. Medians of {options.runs} runs in turn, inputs in the page cache:", "",
        f"    {command}", "",
        "The goal is 1 GB of parameters a second, start-up taken off.",
        f"The formula of a TALL archive, (2 + T/16)/(T + 1), is {formula:.1%}.", "",
        "| | GB of parameters | wall s | CPU s | GB/s | GB/s without start-up | peak RSS MB | of all models | goal |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|", *rows, "",
    ])  # fmt: skip
    print(page)
    if options.report:
        (REPORTS / f"pool_{options.size}_{slug(cpu_model())}_{datetime.date.today()}.md").write_text(
            page, encoding="utf-8"
        )


if __name__ == "__main__":
    main()
