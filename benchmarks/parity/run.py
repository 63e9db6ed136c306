"""Compare every method with mergekit 0.1.5, number by number, and write a report.

    python benchmarks/parity/run.py [--report]

mergekit runs in its own environment (benchmarks/speed/peers.py makes it). Inputs are tie-free float32; random masks
are the same bits on both sides. The difference of an entry is divided by the largest magnitude that any input, or the
result, has there: what float32 arithmetic can be expected to keep.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import torch
from cases import DRAWS, SHAPES, SOURCES, TOLERANCE, WEIGHTS, Case, cases, random_cases
from safetensors.torch import load_file, save_file

import eutectic
from eutectic.ops.random import Draws, draw_key, philox_words

BENCHMARKS = Path(__file__).resolve().parent.parent
WORK = BENCHMARKS / ".work" / "parity"
PEER = BENCHMARKS / ".work" / "venv-mergekit" / "bin" / "python"
SEED = 0


def inputs() -> dict[str, torch.Tensor]:
    """A base, sources near it, and the random words of every source."""
    generator = torch.Generator().manual_seed(SEED)
    found = {}
    for shape, size in SHAPES.items():
        base = torch.randn(size, generator=generator) * 0.02
        found[f"base/{shape}"] = base
        for name in SOURCES:
            found[f"{name}/{shape}"] = base + torch.randn(size, generator=generator) * 0.002
        for k in range(len(SOURCES)):
            found[f"words{k}/{shape}"] = philox_words(draw_key(SEED, shape, k), 0, base.numel())
    return found


def ours(case: Case, shape: str, given: dict[str, torch.Tensor], seed: int = SEED) -> torch.Tensor:
    """The same merge here, by the method's own function."""
    method = eutectic.list_methods()[case.method]
    names = SOURCES[: case.sources]
    parameters = dict(case.parameters)
    if case.weighted:
        parameters["weight"] = [WEIGHTS[name] for name in names]
    return method(
        [given[f"{name}/{shape}"] for name in names],
        base=given[f"base/{shape}"] if case.base else None,
        draws=Draws(seed, shape),
        **parameters,
    )


def difference(case: Case, shape: str, given: dict[str, torch.Tensor], theirs: torch.Tensor) -> torch.Tensor:
    """Relative difference of every entry."""
    mine = ours(case, shape, given).double()
    names = [*(["base"] if case.base else []), *SOURCES[: case.sources]]
    size = torch.stack([*(given[f"{name}/{shape}"].double().abs() for name in names), mine.abs()]).amax(0)
    return (mine - theirs.double()).abs() / size


def distributions(given: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> tuple[list[str], int]:
    """A table of how two samples of merges differ, each tool with random numbers of its own, and the rows that fail.

    z is the difference of an entry's means in standard errors: z^2 is 1 on average where the distributions agree.
    """
    lines = ["| method | merges each | mean z^2 | variance, ours / theirs | |", "|---|---:|---:|---:|---|"]
    failed = 0
    for case in random_cases():
        for shape in case.shapes:
            drawn = torch.stack([ours(case, shape, given, seed) for seed in range(DRAWS)]).double()
            mean, variance = (theirs[f"{what} {case.name}/{shape}"] for what in ("mean", "variance"))
            z2 = float(((drawn.mean(0) - mean) ** 2 / ((drawn.var(0) + variance) / DRAWS)).nanmean())
            ratio = float(drawn.var(0).sum() / variance.sum())
            good = abs(z2 - 1) < 0.1 and abs(ratio - 1) < 0.02
            failed += not good
            lines.append(
                f"| {case.name} | {DRAWS} | {z2:.3f} | {ratio:.4f} | {'the same' if good else '**differs**'} |"
            )
    return lines, failed


def main() -> None:
    """Both sides, the table, the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", action="store_true", help="write benchmarks/reports/parity_<date>.md")
    options = parser.parse_args()
    if not PEER.exists():
        sys.exit("mergekit's environment is missing: run python benchmarks/speed/peers.py")
    WORK.mkdir(parents=True, exist_ok=True)
    given = inputs()
    save_file(given, WORK / "inputs.safetensors")
    subprocess.run([PEER, Path(__file__).with_name("mergekit_side.py"), WORK], check=True)
    theirs = load_file(WORK / "theirs.safetensors")
    rows: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for case in cases():
        for shape in case.shapes:
            worst = float(difference(case, shape, given, theirs[f"{case.name}/{shape}"]).max())
            rows[case.method].append((worst, f"{case.name} on {shape}"))
    lines = ["| method | comparisons | above 1e-6 | worst | where |", "|---|---:|---:|---:|---|"]
    for method, found in rows.items():
        worst, where = max(found)
        above = sum(not value <= TOLERANCE for value, _ in found)
        lines.append(f"| {method} | {len(found)} | {above} | {worst:.1e} | {where} |")
    table, failed = distributions(given, theirs)
    lines += ["", "In distribution, each tool with its own random numbers:", "", *table]
    text = "\n".join(lines)
    print(text)
    if options.report:
        today = datetime.date.today().isoformat()
        head = [f"# Parity with mergekit 0.1.5, {today}", "", "`python benchmarks/parity/run.py --report`", ""]
        rule = [__doc__.partition("\n\n    ")[2].partition("\n\n")[2].strip(), ""]
        path = BENCHMARKS / "reports" / f"parity_{today}.md"
        path.write_text("\n".join([*head, *rule, text, ""]))
        print(f"wrote {path.relative_to(BENCHMARKS.parent)}")
    missed = failed + sum(not value <= TOLERANCE for found in rows.values() for value, _ in found)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
