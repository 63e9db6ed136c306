"""Spectral merges against the same merge by full decompositions of every tensor, in one run.

    python benchmarks/speed/spectral.py [--size 0.1B] [--layers 1] [--report]

Needs nothing but torch. The other side is what the papers' code does: `torch.linalg.svd` in float32 of every delta of
two axes, once with all singular vectors (its default, `full_matrices=True`) and once without the superfluous ones, on
as many threads; embeddings and heads are averaged on both sides, so they do not count. Ours is the whole
`eutectic merge`, process, reading and writing included; theirs is the arithmetic alone. The published code of both
methods leaves the superfluous vectors out. `--layers` takes a model of so many layers on both sides: layers are alike.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from checkpoints import family
from machine import cpu_model, load, slug
from paths import REPORTS, WORK
from safetensors import safe_open

METHODS = ("tsv_m", "iso_c")


class Seconds(NamedTuple):
    """What something took: by the clock, and of the processors (which a busy machine changes less)."""

    wall: float
    cpu: float


def recipe(folder: Path, method: str) -> dict:
    """A merge of all fine-tunes of a family."""
    models = [{"model": str(path)} for path in sorted(folder.glob("ft*"))]
    return {"merge_method": method, "base_model": str(folder / "base"), "models": models, "out_dtype": "float32"}


def ours(folder: Path, method: str, threads: int) -> tuple[Seconds, Path]:
    """Seconds of the whole process, and where the result is."""
    path, out = WORK / f"{method}.yaml", WORK / f"spectral-{method}"
    path.write_text(json.dumps(recipe(folder, method)))
    command = [
        sys.executable,
        "-m",
        "eutectic",
        "merge",
        path,
        out,
        "--force",
        "--no-fsync",
        "--quiet",
        "--max-memory",
        "4GiB",
    ]
    begun, before = time.perf_counter(), os.times()
    subprocess.run(command, check=True)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return Seconds(time.perf_counter() - begun, spent), out


def polar(columns: torch.Tensor, full: bool) -> torch.Tensor:
    """The nearest orthonormal columns, by a decomposition."""
    u, s, vh = torch.linalg.svd(columns, full_matrices=full)
    return u[:, : len(s)] @ vh[: len(s)]


def theirs(deltas: list[torch.Tensor], method: str, full: bool) -> torch.Tensor:
    """The merged delta of one tensor, by full decompositions in float32."""
    if method == "iso_c":
        u, s, vh = torch.linalg.svd(sum(deltas), full_matrices=full)
        return s.mean() * u[:, : len(s)] @ vh[: len(s)]
    rank, parts = min(deltas[0].shape) // len(deltas), []
    for delta in deltas:
        u, s, vh = torch.linalg.svd(delta, full_matrices=full)
        parts.append((u[:, :rank], s[:rank], vh[:rank].T))
    u, s, v = (torch.cat(side, -1) for side in zip(*parts, strict=True))
    return (polar(u, full) * s) @ polar(v, full).T


def compare(folder: Path, method: str, out: Path) -> tuple[dict[str, Seconds], float]:
    """Seconds of both ways, and the largest relative difference to ours."""
    files = [safe_open(path / "model.safetensors", "pt") for path in (folder / "base", *sorted(folder.glob("ft*")))]
    result = safe_open(out / "model.safetensors", "pt")
    found = [name for name in list(files[0].keys()) if ".layers." in name]
    names = [name for name in found if len(files[0].get_slice(name).get_shape()) == 2]
    spent, apart = {"full": [0.0, 0.0], "thin": [0.0, 0.0]}, 0.0
    for name in names:
        base, *tuned = (file.get_tensor(name).float() for file in files)
        deltas = [tensor - base for tensor in tuned]
        for kind, total in spent.items():
            begun, busy = time.perf_counter(), time.process_time()
            merged = theirs(deltas, method, kind == "full")
            total[0] += time.perf_counter() - begun
            total[1] += time.process_time() - busy
        apart = max(apart, float((result.get_tensor(name).float() - base - merged).norm() / merged.norm()))
    return {kind: Seconds(*total) for kind, total in spent.items()}, apart


def main() -> None:
    """Measure, print, and write a report if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="0.1B")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of both sides")
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder, begun = family(arguments.size, layers=arguments.layers), load()
    lines = [
        "| method | | eutectic merge, s | full SVD, s | ratio | without superfluous vectors, s | ratio | apart |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        own, out = ours(folder, method, arguments.threads)
        found, apart = compare(folder, method, out)
        for kind in Seconds._fields:
            mine, full, thin = (getattr(seconds, kind) for seconds in (own, found["full"], found["thin"]))
            row = (mine, full, full / mine, thin, thin / mine)
            lines.append(f"| {method} | {kind} | " + " | ".join(f"{v:.1f}" for v in row) + f" | {apart:.1e} |")
        print("\n".join(lines[-2:]), flush=True)
    if arguments.report:
        write(arguments, begun, lines)


def write(arguments: argparse.Namespace, begun: str, lines: list[str]) -> None:
    """The report beside the others."""
    size, layers, threads = arguments.size, arguments.layers, arguments.threads
    date = datetime.date.today().isoformat()
    command = f"python benchmarks/speed/spectral.py --size {size} --layers {layers} --threads {threads}"
    head = [
        f"# Spectral merges: {size}, 4 fine-tunes, bfloat16 sources", "",
        f"{cpu_model()}, {os.cpu_count()} processors, {date}, torch {torch.__version__};",
        f"load average {begun} before and {load()} after. `{command}`:",
        f"a model of that shape, layers: {layers}. *Apart* is the relative distance of results, the merge's in",
        "float32. *wall* is by the clock, *cpu* the time of all processors together.", "",
    ]  # fmt: skip
    path = REPORTS / f"spectral_{size}_{slug(cpu_model())}_{date}.md"
    path.write_text("\n".join([*head, *lines]) + "\n")
    print(f"written: {path.name}")


if __name__ == "__main__":
    main()
