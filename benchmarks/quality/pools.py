"""Pools against the experts that were packed, and R-TSVM against TSV-M where one expert's change has outliers.

    python benchmarks/quality/pools.py [--family FOLDER ...] [--without PART ...] [--report [NAME]]

Without --family the image families of docs/claims.md are built first: digits, in-basin and far, seeds 0 to 2. The
claims, their tests and thresholds were registered there ("Pools", "R-TSVM under outliers") before the first run.
Everything is chosen on validation data; --split validation also reports on them, for trials.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import eutectic
from eutectic.evaluation import results
from eutectic.evaluation.evaluator import Evaluator
from eutectic.evaluation.family import Family, load_family
from eutectic.evaluation.scores import Outcome, Scores
from eutectic.evaluation.statistics import Interval, generator, interval_of, resampled
from eutectic.evaluation.studies.bench import Bench, Measured, normalised
from eutectic.evaluation.studies.candidates import CANDIDATES, FULL_GRID, QUICK_GRID
from eutectic.evaluation.studies.claims import verdict
from eutectic.evaluation.studies.summary import Summary
from eutectic.pools.pool import Pool
from eutectic.routing.fitting import fit_pool, save_router
from eutectic.routing.measuring import measure_pool
from eutectic.weights.safetensors import write_safetensors
from eutectic.zoo.digits import build_digits

REPORTS = Path(__file__).resolve().parent.parent / "reports"
SEEDS, REGIMES = (0, 1, 2), ("in-basin", "far")
LAMBDAS = (0.2, 0.3, 0.4, 0.5, 0.6)
OUTLIERS, DEVIATIONS = 0.01, 10.0
PARTS = ("tall", "bitdelta", "rmm", "router", "outliers")
METHODS = {candidate.id: candidate for candidate in CANDIDATES}
CLIPPED = dataclasses.replace(METHODS["r_tsvm"], name="r_tsvm_clip", parameters={"outlier": "clip"})
LABELS = {
    "task_arithmetic": "task arithmetic, tuned", "tall": "TALL", "bitdelta": "BitDelta", "twin": "Twin, oracle",
    "twin-router": "Twin, learned router", "twin-shared": "Twin, shared expert alone", "rmm": "RMM, half the storage",
    "rmm-whole": "RMM, factors as they are", "packed": "what RMM packed", "base": "base",
    "tsv_m": "TSV-M", "r_tsvm": "R-TSVM", "r_tsvm_clip": "R-TSVM, clip",
    "tsv_m-outliers": "TSV-M, outliers", "r_tsvm-outliers": "R-TSVM, outliers",
    "r_tsvm_clip-outliers": "R-TSVM, clip, outliers", "experts": "experts",
}  # fmt: skip
VERDICTS = {True: "holds", False: "**refuted**", None: "open"}


@dataclass
class Run:
    """One family measured: the rows, and what was written and chosen on the way."""

    bench: Bench
    rows: list[Measured] = field(default_factory=list)
    bytes: dict[str, int] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)
    factors: float = float("nan")
    validated: float | None = None
    routed: Mapping[str, float] = field(default_factory=dict)

    def of(self, row: str) -> Mapping[str, Outcome]:
        """A row's outcomes."""
        return next(measured.outcomes for measured in self.rows if measured.id == row)

    @property
    def raw(self) -> int:
        """Bytes of the base and all experts."""
        return sum(eutectic.open(path).nbytes for path in (self.bench.base, *self.bench.experts.values()))


def measure_family(family: Family, folder: Path, split: str, without: Sequence[str] = ()) -> Run:
    """Every scheme and every merge on one family, `without` some of PARTS (and what they are held against)."""
    with Evaluator(family.suite) as evaluator:
        run = Run(Bench(family, evaluator, folder))
        bench, owners = run.bench, set(run.bench.owners.values())

        def add(row: str, outcomes: Mapping[str, Outcome]) -> None:
            run.rows.append(Measured(row, LABELS.get(row, row), "merged", outcomes))

        def merged(name: str, sources: list[str] | None = None, mark: str = "") -> None:
            candidate = CLIPPED if name == CLIPPED.id else METHODS[name]
            tuning = bench.tune(candidate, FULL_GRID if family.name == "digits" else QUICK_GRID, sources)
            recipe = bench.recipe(candidate, tuning.scale, sources)
            run.chosen[name + mark] = f"scale {tuning.scale:g}" + " (edge)" * tuning.at_edge
            add(name + mark, bench.outcomes(recipe, split, name + mark, bench.tasks))

        def packed(row: str, experts: Mapping[str, str], **settings: Any) -> Pool:
            pool = eutectic.pack(bench.base, experts, folder / row, **settings)
            run.bytes[row] = sum(file.bytes for file in pool.manifest.files.values())
            add(row, own_tasks(bench, members(pool), split))
            return pool

        for name in sorted(owners):
            add(f"expert:{name}", own_tasks(bench, bench.experts, split, name))
        add("experts", own_tasks(bench, bench.experts, split))
        run.bytes["experts"] = run.raw
        add("base", bench.outcomes(bench.base, split, "base", bench.tasks))
        if "tall" not in without:
            lambdas = best_lambdas(bench, folder)
            run.chosen["tall"] = "λ " + ", ".join(f"{value:g}" for name, value in lambdas.items() if name in owners)
            packed("tall", bench.experts, scheme="tall", mask_lambda=list(lambdas.values()))
        if "bitdelta" not in without:
            packed("bitdelta", bench.experts, scheme="bitdelta")
        twin = packed("twin", bench.experts, scheme="twin")
        if any(task.expert is None for task in bench.tasks):
            return run  # nothing to route by, and no expert of one task
        if "rmm" not in without:
            adapters = {name: f"{bench.base}+{path}" for name, path in family.adapters.items()}
            add("packed", own_tasks(bench, adapters or bench.experts, split))
            half = packed("rmm", adapters or bench.experts, scheme="rmm", budget=0.5)
            whole = packed("rmm-whole", adapters or bench.experts, scheme="rmm", budget=1.0)
            run.factors = parts(half) / parts(whole)
        if "router" not in without:
            _route(run, twin, split, add)
            merged("task_arithmetic")
        if "outliers" in without:
            return run
        harmed = with_outliers(bench, folder / "harmed")
        for name in ("tsv_m", "r_tsvm", CLIPPED.id):
            merged(name)
            merged(name, harmed, "-outliers")
        return run


def _route(run: Run, pool: Pool, split: str, add: Callable[[str, Mapping[str, Outcome]], None]) -> None:
    """Fit the router of a Twin pool and measure what it chooses, the shared expert beside it."""
    suite = run.bench.evaluator.suite.only([task.name for task in run.bench.tasks])
    fitted = fit_pool(pool, suite)
    save_router(pool, fitted)
    found = measure_pool(pool, suite, split=split)
    add("twin-router", found.scores["router"])
    add("twin-shared", found.scores["shared"])
    run.validated, run.routed = fitted.accuracy, {task: scores.value for task, scores in found.routed.items()}


def members(pool: Pool) -> dict[str, str]:
    """References of a pool's members by name."""
    return {name: f"{pool.path}#{name}" for name in pool}


def parts(pool: Pool) -> int:
    """Bytes of all but the core."""
    facts = pool.manifest
    return sum(f.bytes for f in facts.files.values()) - sum(f.bytes for f in facts.core.files.values())


def own_tasks(bench: Bench, sources: Mapping[str, str], split: str, only: str | None = None) -> dict[str, Outcome]:
    """Each task's outcome by the source that has the name of its expert."""
    found: dict[str, Outcome] = {}
    for task in bench.tasks:
        owner = bench.owners[task.name]
        if only is None or owner == only:
            found |= bench.outcomes(sources[owner], split, owner, [task])
    return found


def best_lambdas(bench: Bench, folder: Path) -> dict[str, float]:
    """TALL's `mask_lambda` of each expert, by its own tasks' validation data; 0.4 for experts without a task."""
    reference = bench.experts_on("validation")
    scores: dict[str, dict[float, float]] = {name: {} for name in bench.experts}
    for value in LAMBDAS:
        pool = eutectic.pack(bench.base, bench.experts, folder / f"tall-{value:g}", scheme="tall", mask_lambda=value)
        found = own_tasks(bench, members(pool), "validation")
        for name, known in scores.items():
            mine = [task for task in bench.tasks if bench.owners[task.name] == name]
            shares = [normalised(value_of(found[t.name]), reference[t.name], t.higher) for t in mine]
            known[value] = statistics.fmean(shares) if shares else -abs(value - 0.4)
    return {name: max(known, key=lambda value: (known[value], -value)) for name, known in scores.items()}


def value_of(outcome: Outcome) -> float:
    """A score's value; whatever could not be measured ends the run."""
    if not isinstance(outcome, Scores):
        raise SystemExit(outcome.reason)
    return outcome.value


def with_outliers(bench: Bench, folder: Path) -> list[str]:
    """The experts, the first by name with outliers: entries whose change is ± ten deviations of their tensor's."""
    first = min(bench.experts)
    base, tensors = eutectic.open(bench.base), {}
    for name, ref in eutectic.open(bench.experts[first]).items():
        value = ref.to_numpy()
        if ref.dtype.floating and name in base:
            before = base[name].to_numpy().astype(np.float64).reshape(-1)
            change = value.astype(np.float64).reshape(-1) - before
            count, random = round(OUTLIERS * change.size), generator(0, f"outliers {name}")
            at = random.choice(change.size, count, replace=False)
            change[at] = DEVIATIONS * change.std() * random.choice((-1.0, 1.0), count)
            value = (before + change).astype(value.dtype).reshape(value.shape)
        tensors[name] = value
    shutil.copytree(bench.experts[first], folder)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    return [str(folder) if name == first else path for name, path in bench.experts.items()]


# ---------------------------------------------------------------- statistics


def gain_kept(runs: Sequence[Run], summary: Summary, row: str, most: str = "packed") -> Interval:
    """The share of the gain: the sum over tasks of row - base, over that of what was packed (or another row) - base."""
    values, draws = [], []
    for run in runs:
        sides = [run.of(name) for name in (row, "base", most)]
        groups = {t.name: np.stack([samples(s[t.name]) for s in sides], axis=1) for t in run.bench.tasks}
        values.append(_gain({task: table.mean(axis=0) for task, table in groups.items()}))
        draws.append(_gain(resampled(groups, 0, "samples")))
    return interval_of(statistics.fmean(map(float, values)), summary.over_families(draws))


def _gain(means: Mapping[str, np.ndarray]) -> np.ndarray:
    total = np.sum(list(means.values()), axis=0)
    return (total[..., 0] - total[..., 1]) / (total[..., 2] - total[..., 1])


def samples(outcome: Outcome) -> np.ndarray:
    """A score's samples."""
    value_of(outcome)
    return outcome.samples if isinstance(outcome, Scores) else np.empty(0)


def claims_of(runs: Sequence[Run], summary: Summary) -> Iterator[tuple[str, str, results.Interval, bool | None]]:
    """Id, words, interval and verdict of every claim that these families can answer."""
    shares = summary.shares()
    for id, row, least in (("P1", "tall", 0.98), ("P2", "twin", 0.98), ("P4", "twin-router", 0.98),
                           ("P6", "bitdelta", 0.98)):  # fmt: skip
        found = shares.interval(row)
        if found is not None:
            yield id, f"{LABELS[row]}: keeps at least {least:.0%}", found, verdict(found, least)
    if "rmm" in summary.ids:
        gain = gain_kept(runs, summary, "rmm")
        kept = results.Interval(value=gain.value, low=gain.low, high=gain.high)
        yield "P5", "RMM, half the storage: at least 89% of the gain", kept, verdict(kept, 0.89)
    pairs = {
        "P3": ("twin-router", "task_arithmetic", 0.03, "at least 3 points better than tuned task arithmetic"),
        "R1": ("r_tsvm-outliers", "tsv_m-outliers", 0.0, "better than TSV-M"),
        "R1-clip": ("r_tsvm_clip-outliers", "tsv_m-outliers", 0.0, "better than TSV-M"),
        "R2": ("r_tsvm", "tsv_m", 0.0, "within 1 point of TSV-M"),
    }
    for id, (a, b, least, words) in pairs.items():
        pair = summary.pair(a, b)
        if pair is not None and pair.low is not None and pair.high is not None:
            found = results.Interval(value=pair.difference, low=pair.low, high=pair.high)
            holds = within(pair.low, pair.high) if id == "R2" else verdict(found, least)
            yield id, f"{LABELS[a]}: {words}", found, holds


def within(low: float, high: float, most: float = 0.01) -> bool | None:
    """Whether an interval lies between -most and most; None where it holds one of the two."""
    if -most < low and high < most:
        return True
    return False if low > most or high < -most else None


# ---------------------------------------------------------------- the page


def section(title: str, runs: Sequence[Run]) -> list[str]:
    """What came out on the families of one kind."""
    summary = Summary([(run.bench, run.rows) for run in runs])
    first, shares = runs[0], summary.shares()
    tasks = [task.name for task in first.bench.tasks]
    lines = [
        f"## {title}", "",
        f"{', '.join(run.bench.family.path.name for run in runs)}; {len(first.bench.experts)} experts, "
        f"{tasks_of(first)}.", "",
        "| id | claim | result | |", "|---|---|---|---|",
        *(f"| {id} | {words} | {shown(found, signed=id[0] == 'R' or id == 'P3')} | {VERDICTS[holds]} |"
          for id, words, found, holds in claims_of(runs, summary)),
        "", f"| | bytes | of {len(first.bench.experts) + 1} models | chosen on validation | score | share kept "
        f"| of the gain | {' | '.join(tasks)} |",
        "|---|---:|---:|---|---:|---|---:|" + "---:|" * len(tasks),
    ]  # fmt: skip
    for row in (row for row in LABELS if row in summary.ids):
        size = f"{first.bytes[row]:,} | {first.bytes[row] / first.raw:.1%}" if row in first.bytes else " | "
        chosen = "; ".join(run.chosen[row] for run in runs if row in run.chosen)
        means = [statistics.fmean(value_of(run.of(row)[task]) for run in runs) for task in tasks]
        interval, gain = shares.interval(row), gain_kept(runs, summary, row, "experts").value
        kept = "" if interval is None else shown(interval)
        cells = " | ".join(f"{mean:.3f}" for mean in means)
        lines.append(
            f"| {LABELS[row]} | {size} | {chosen} | {statistics.fmean(means):.4f} | {kept} | {gain:.3f} | {cells} |"
        )
    lines.append("")
    if first.routed:
        lines += _router(runs, tasks)
    if "rmm" in summary.ids:
        lines += _basis(runs, summary)
    return lines


def _router(runs: Sequence[Run], tasks: Sequence[str]) -> list[str]:
    each = ", ".join(f"{task} {statistics.fmean(run.routed[task] for run in runs):.1%}" for task in tasks)
    mean = statistics.fmean(statistics.fmean(run.routed.values()) for run in runs)
    before = statistics.fmean(run.validated for run in runs if run.validated is not None)
    return [f"Router: {mean:.1%} of the samples go to their task's expert ({each}); on validation {before:.1%}.", ""]


def _basis(runs: Sequence[Run], summary: Summary) -> list[str]:
    whole, share = gain_kept(runs, summary, "rmm-whole"), max(run.factors for run in runs)
    about = "adapters" if runs[0].bench.family.adapters else "full models, cut to rank 16"
    return [
        f"RMM packed {about}: {share:.1%} of the bytes of their factors; the factors as they are keep "
        f"{whole.value:.3f} ({whole.low:.3f} to {whole.high:.3f}) of the gain.", "",
    ]  # fmt: skip


def tasks_of(run: Run) -> str:
    """How many samples each task has, and the unit."""
    found = run.bench
    counts = [len(samples(run.of("base")[task.name])) for task in found.tasks]
    number = f"{min(counts)}" if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
    first = found.tasks[0]
    unit = first.unit if first.higher else f"{first.unit}, lower is better"
    return f"{number} samples for each of {len(counts)} tasks ({unit})"


def shown(interval: results.Interval, *, signed: bool = False) -> str:
    """A value with its interval."""
    form = "+.4f" if signed else ".4f"
    return f"{interval.value:{form}} ({interval.low:{form}} to {interval.high:{form}})"


def report(runs: Sequence[Run], split: str, seconds: float, options: str) -> str:
    """The page."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("eutectic", "torch", "numpy", "scikit-learn"))
    lines = [
        f"# Pools, and R-TSVM under outliers, {time.strftime('%Y-%m-%d')}", "",
        f"`python benchmarks/quality/pools.py{options}`", "",
        f"{packages}; {seconds:.0f} s. Scores are of {split} data, means over the families of a section. The claims",
        "were registered in [claims.md](../../docs/claims.md). *Share kept*: the mean over tasks of the score divided",
        "by the expert's (the inverse where lower is better), with 95% intervals. *Of the gain*: the sum over tasks of",
        "what is gained over the base, divided by that of the experts.", "",
    ]  # fmt: skip
    groups: dict[str, list[Run]] = {}
    for run in runs:
        family = run.bench.family
        groups.setdefault(f"{family.name}, {family.variant}, {family.regime}", []).append(run)
    for title, found in groups.items():
        lines += section(title, found)
    return "\n".join(lines)


def main() -> None:
    """Pack, merge, measure, print; with --report also write the page."""
    parser = argparse.ArgumentParser(description="Measure pools and R-TSVM on families.")
    parser.add_argument("--family", action="append", type=Path, help="a family's folder; repeatable")
    parser.add_argument("--split", default="test", choices=("test", "validation"), help="what is reported")
    parser.add_argument("--without", action="append", default=[], choices=PARTS, help="leave it out")
    parser.add_argument("--report", nargs="?", const="", metavar="NAME", help="write a page under benchmarks/reports")
    arguments = parser.parse_args()
    begun, runs = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as scratch:
        folders = arguments.family or list(build(Path(scratch)))
        for number, folder in enumerate(folders):
            at = Path(scratch) / f"run-{number}"
            runs.append(measure_family(load_family(folder), at, arguments.split, arguments.without))
            print(f"{folder}: measured after {time.perf_counter() - begun:.0f} s", flush=True)
        options = [f" --family {folder.name}" for folder in arguments.family or ()]
        options += [f" --without {part}" for part in arguments.without]
        page = report(runs, arguments.split, time.perf_counter() - begun, "".join(options))
    print(page)
    if arguments.report is not None:
        name = f"pools_{arguments.report}_" if arguments.report else "pools_"
        (REPORTS / f"{name}{time.strftime('%Y-%m-%d')}.md").write_text(page, encoding="utf-8")


def build(folder: Path) -> Iterator[Path]:
    """The image families of the claims."""
    for regime in REGIMES:
        for seed in SEEDS:
            yield build_digits(folder / f"digits-{regime}-{seed}", seed=seed, regime=regime).path


if __name__ == "__main__":
    main()
