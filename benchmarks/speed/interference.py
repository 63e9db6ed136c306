"""PCB-Merging and Consensus, streamed, against dense implementations; planned and real peaks of four methods.

    python benchmarks/speed/interference.py [--size 0.1B] [--peaks 0.5B] [--threads 2] [--report]

Needs nothing but torch. The dense side is written from the papers' formulas in the way of their authors' code: the
model as one vector per task, all tasks stacked in float32, thresholds from sorts of the whole matrix (or, kinder, from
`kthvalue`). Both sides are whole processes that read the same files and write the result.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from checkpoints import family
from cost import Cost, measured
from machine import commit, cpu_model, load, slug
from paths import REPORTS, WORK
from safetensors import safe_open
from safetensors.torch import save_file

PLANNED = ("consensus", "emr", "localize_and_stitch", "pcb")
MODEL_SCOPE = ("localize_and_stitch", "pcb")


# ---------------------------------------------------------------- the dense side


def stacked(folder: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The base, and all deltas as one matrix [tasks, parameters] in float32, names sorted."""
    paths = [folder / "base", *sorted(folder.glob("ft*"))]
    files = [safe_open(path / "model.safetensors", "pt") for path in paths]
    names = sorted(files[0].keys())
    base = {name: files[0].get_tensor(name).float() for name in names}
    flat = torch.cat([tensor.reshape(-1) for tensor in base.values()])
    deltas = torch.empty(len(files) - 1, len(flat))
    for row, file in zip(deltas, files[1:], strict=True):
        row.copy_(torch.cat([file.get_tensor(name).float().reshape(-1) for name in names]))
        row.sub_(flat)
    return base, deltas


def ranked(values: torch.Tensor, ranks: list[int], sorts: bool) -> list[torch.Tensor]:
    """Order statistics of every row, as columns."""
    if sorts:
        ordered = values.sort(dim=1).values
        return [ordered[:, [rank]] for rank in ranks]
    return [torch.stack([row.kthvalue(rank + 1).values for row in values])[:, None] for rank in ranks]


def spread(values: torch.Tensor) -> torch.Tensor:
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    return (values - low) / (high - low)


def dense_pcb(deltas: torch.Tensor, sorts: bool, density: float = 0.1, share: float = 0.01) -> torch.Tensor:
    """PCB-Merging, the paper's form."""
    count, d = deltas.shape
    sizes = deltas.abs()
    low, high = ranked(sizes, [int(share * d), d - 1 - int(share * d)], sorts)
    sizes = sizes.clamp(low, high)
    units = deltas.sign() * spread(sizes)
    inter = torch.zeros_like(units)
    for unit in units:
        inter += torch.tanh(units * unit)
    score = torch.exp(count * units**2) * inter
    (least,) = ranked(score, [int(d * (1 - density))], sorts)
    scale = spread(torch.maximum(score, least))
    return (deltas.sign() * sizes * scale).sum(0) / scale.sum(0).clamp(min=1e-12)


def dense_consensus(deltas: torch.Tensor) -> torch.Tensor:
    """Consensus merging with masks of lambda 0.4 and two votes."""
    total = deltas.sum(0)
    masks = deltas.abs() > 0.4 * (total - deltas).abs()
    return total * (masks.sum(0) >= 2)


def dense(kind: str, folder: Path, out: Path) -> None:
    """Read, merge densely, and write the result in bfloat16."""
    base, deltas = stacked(folder)
    merged = dense_consensus(deltas) if kind == "consensus" else dense_pcb(deltas, kind.endswith("sort"))
    parts = merged.split([tensor.numel() for tensor in base.values()])
    out.mkdir(parents=True, exist_ok=True)
    result = {n: (t + p.view_as(t)).bfloat16() for (n, t), p in zip(base.items(), parts, strict=True)}
    save_file(result, out / "model.safetensors")


# ---------------------------------------------------------------- measuring


def ours(folder: Path, method: str, scope: str | None, threads: int) -> tuple[Cost, float, Path]:
    """The cost of `eutectic merge`, the peak (MB) that its plan promised, and where the result is."""
    path, out = WORK / "interference.yaml", WORK / f"interference-{method}"
    recipe = {
        "merge_method": method,
        "base_model": str(folder / "base"),
        "parameters": {"scope": scope} if scope else {},
    }
    recipe["models"] = [{"model": str(tuned)} for tuned in sorted(folder.glob("ft*"))]
    path.write_text(json.dumps(recipe))
    command = [sys.executable, "-m", "eutectic"]
    options = ["--threads", str(threads)]
    plan = subprocess.run([*command, "plan", path, "--json", *options], capture_output=True, check=True)
    made = json.loads(plan.stdout)
    made = made["plans"][0] if "plans" in made else made
    merge = [*command, "merge", str(path), str(out), "--force", "--no-fsync", "--quiet", *options]
    return measured(merge, threads), made["memory"]["peak"] / 1e6, out


def apart(left: Path, right: Path) -> float:
    """Relative distance of two results."""
    one, two = (safe_open(path / "model.safetensors", "pt") for path in (left, right))
    over = under = 0.0
    for name in one.keys():  # noqa: SIM118  (not a mapping)
        a, b = one.get_tensor(name).double(), two.get_tensor(name).double()
        over, under = over + float(((a - b) ** 2).sum()), under + float((b**2).sum())
    return (over / under) ** 0.5


def against_dense(size: str, threads: int) -> list[str]:
    """Rows of the comparison."""
    folder, lines = family(size), []
    for method, scope, kinds in (("pcb", "model", ("pcb-sort", "pcb-kthvalue")), ("consensus", None, ("consensus",))):
        ours(folder, method, scope, threads)  # compiles the kernels
        own, _, out = ours(folder, method, scope, threads)
        for kind in kinds:
            target = WORK / f"interference-{kind}"
            command = [
                sys.executable,
                str(Path(__file__)),
                "--dense",
                kind,
                "--folder",
                str(folder),
                "--out",
                str(target),
            ]
            other = measured(command, threads)
            cells = [f"{a:.1f} / {b:.1f} = 1/{b / a:.1f}" for a, b in zip(own, other, strict=True)]
            lines.append(f"| {kind} | {' | '.join(cells)} | {apart(out, target):.1e} |")
            print(lines[-1], flush=True)
    return lines


def against_plan(size: str, threads: int) -> list[str]:
    """Rows of planned and real peaks."""
    folder, lines = family(size), []
    for method in PLANNED:
        for scope in ("tensor", "model") if method in MODEL_SCOPE else (None,):
            own, planned, _ = ours(folder, method, scope, threads)
            kept = "yes" if own.megabytes <= planned else "NO"
            row = f"| {method} | {scope or '-'} | {own.wall:.1f} | {own.cpu:.1f} "
            lines.append(row + f"| {own.megabytes:.0f} | {planned:.0f} | {kept} |")
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Measure, print, and write a report if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="0.1B", help="of the comparison")
    parser.add_argument("--peaks", default="0.5B", help="where peaks are held against plans")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of both sides")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--dense", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.dense:
        dense(arguments.dense, arguments.folder, arguments.out)
        return
    WORK.mkdir(exist_ok=True)
    begun = load()
    compared, peaks = (
        against_dense(arguments.size, arguments.threads),
        against_plan(arguments.peaks, arguments.threads),
    )
    if arguments.report:
        write(arguments, begun, compared, peaks)


def write(arguments: argparse.Namespace, begun: str, compared: list[str], peaks: list[str]) -> None:
    """The report beside the others."""
    size, large, threads = arguments.size, arguments.peaks, arguments.threads
    date = datetime.date.today().isoformat()
    command = f"python benchmarks/speed/interference.py --size {size} --peaks {large} --threads {threads}"
    lines = [
        f"# PCB-Merging and Consensus, streamed against dense: {size}, 4 fine-tunes, bfloat16", "",
        f"{cpu_model()}, {os.cpu_count()} processors, {date}, torch {torch.__version__}, commit {commit()};",
        f"load average {begun} before and {load()} after. `{command}`.",
        "",
        "Each figure is ours / dense: whole processes, reading and writing included. *Apart* is the relative distance",
        "of the results in bfloat16. PCB has `scope: model` and the form `paper` on both sides; the dense side takes",
        "its thresholds from sorts, as the authors' code does, or from `kthvalue`.",
        "",
        "| dense side | wall, s | cpu, s | peak RSS, MB | apart |", "|---|---|---|---|---|", *compared, "",
        f"Peaks against plans, {large}:", "",
        "| method | scope | wall, s | cpu, s | peak RSS, MB | planned, MB | kept |", "|---|---|---|---|---|---|---|",
        *peaks,
    ]  # fmt: skip
    path = REPORTS / f"interference_{size}_{slug(cpu_model())}_{date}.md"
    path.write_text("\n".join(lines) + "\n")
    print(f"written: {path.name}")


if __name__ == "__main__":
    main()
