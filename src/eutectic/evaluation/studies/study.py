"""`run_study`: a protocol over families, up to RUN/results.json. A killed run resumes: its ledger stays."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import eutectic
from eutectic.errors import OutputError, RecipeError, nearest
from eutectic.evaluation import results
from eutectic.evaluation.deltas import measure_deltas
from eutectic.evaluation.evaluator import Evaluator
from eutectic.evaluation.family import load_family
from eutectic.evaluation.results import RESULTS, Results
from eutectic.evaluation.studies.baselines import baselines
from eutectic.evaluation.studies.bench import Bench, Measured
from eutectic.evaluation.studies.candidates import FULL_GRID, QUICK_GRID, Candidate, candidates
from eutectic.evaluation.studies.claims import claims_of, regime_claims, wild_claims
from eutectic.evaluation.studies.in_the_wild import Trial, curves, draw_subsets, run_trials
from eutectic.evaluation.studies.mergebench import measure_family
from eutectic.evaluation.studies.regimes import Cell, map_regimes
from eutectic.evaluation.studies.summary import Summary
from eutectic.ops.spectrum_cache import SpectrumCache
from eutectic.weights.checkpoint import open_checkpoint

__all__ = ["STUDIES", "Setup", "run_study"]

LEDGER = "ledger.sqlite"


@dataclass(frozen=True)
class Setup:
    """How a study is run. `quick` takes fewer scales and subsets; `only` names the methods, in place of all."""

    quick: bool = True
    seed: int = 0
    subsets: int = 0
    fidelity: float = 1.0
    only: tuple[str, ...] = ()

    @property
    def grid(self) -> tuple[float, ...]:
        """The scales that every method tries."""
        return QUICK_GRID if self.quick else FULL_GRID


STUDIES = {
    "mergebench": "multi-task score, forgetting, time and memory of every method, tuned on validation",
    "in-the-wild": "random subsets of the experts: is the merge better than the base, than the best expert?",
    "3h": "conflicting objectives: mergers against data mixtures at equal compute, by mean and by the worst objective",
    "regimes": "which method wins where: strength of the base, norm and overlap of the changes, number of experts",
}
WILD = ("task_arithmetic", "ties", "model_stock", "tsv_m", "iso_c", "task_arithmetic_sb")
MAPPED = ("linear", "task_arithmetic", "ties", "dare_ties", "model_stock", "tsv_m", "iso_c", "task_arithmetic_sb")


def run_study(
    name: str,
    families: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    setup: Setup | None = None,
    *,
    report: Callable[[str], None] | None = None,
) -> Results:
    """Run a study over families of one kind (seeds of one variant, say) and write RUN/results.json.

    What was measured before, in the same run folder, is not measured again. The same families, setup and versions give
    the same results, times aside.

    Raises:
        RecipeError: no such study, method, or split, or families that are no replicates of one another.
        SourceError: a family is missing or changed, or an expert is no measure on its own task.
        OutputError: the run folder holds another study.
    """
    if name not in STUDIES:
        raise RecipeError(f"no study is called {name!r}{nearest(name, STUDIES) or '; there are ' + ', '.join(STUDIES)}")
    if not families:
        raise RecipeError("a study needs at least one family; build one with `eutectic zoo build`")
    setup = setup or Setup()
    run = Path(out)
    if (run / RESULTS).is_file() and Results.load(run).study != name:
        raise OutputError(f"{run}: holds the study {Results.load(run).study}; choose another folder")
    say = report or (lambda line: None)
    with ExitStack() as stack:
        stack.enter_context(SpectrumCache())  # scales and methods decompose the same changes
        benches = []
        for folder in families:
            family = load_family(Path(folder))
            evaluator = stack.enter_context(Evaluator(family.suite, ledger=run / LEDGER))
            benches.append(Bench(family, evaluator, run, fidelity=setup.fidelity))
        _check_replicates(name, benches)
        for bench in benches:
            for split in ("validation", "test"):  # experts that are no measure are refused before all work
                bench.experts_on(split)
        found = {"in-the-wild": _wild, "regimes": _regimes}.get(name, _table)(name, benches, setup, say)
    document = Results(study=name, split="test", versions=_versions(), **found)
    document.save(run / RESULTS)
    return document


def _check_replicates(name: str, benches: Sequence[Bench]) -> None:
    """Means are over families: seeds of one variant and regime; the map of regimes only lists its families."""
    told = ("name", "variant", "regime", "architecture", "size")
    kinds = {tuple(bench.family.description.get(key) for key in told) for bench in benches}
    if name != "regimes" and len(kinds) > 1:
        found = "; ".join(f"{b.family.path}: {b.family.name} {b.family.variant}, {b.family.regime}" for b in benches)
        raise RecipeError(
            f"several families of one study are seeds of one variant and regime, over which it takes means; found "
            f"{found}. Make a study of each kind, or `eutectic study regimes` of all."
        )
    seen: dict[str, Bench] = {}
    for bench in benches:
        other = seen.setdefault(bench.identity, bench)
        if other is not bench:
            raise RecipeError(
                f"{other.family.path} and {bench.family.path} hold the same models, which are no replicates of one "
                "another; build a family with another --seed"
            )


def _methods(setup: Setup, default: Sequence[str] = ()) -> list[Candidate]:
    known = {candidate.id for candidate in candidates()}
    for method in setup.only:
        if method not in known:
            raise RecipeError(f"no method {method!r} takes part in studies{nearest(method, known)}")
    return candidates(setup.only or default)


def _facts(benches: Sequence[Bench], setup: Setup, warnings: Sequence[str]) -> dict[str, Any]:
    first = benches[0]
    tasks = [
        results.Task(name=t.name, unit=t.unit, higher=t.higher, role=t.role, expert=t.expert)
        for t in first.evaluator.suite
    ]
    return {
        "family": [
            results.Family(name=b.family.name, variant=b.family.variant, seed=b.family.seed, regime=b.family.regime)
            for b in benches
        ],
        "settings": {"grid": list(setup.grid), "seed": setup.seed, "fidelity": setup.fidelity, "quick": setup.quick},
        "tasks": tasks,
        "warnings": list(dict.fromkeys(warnings)),
    }


def _edges(labels: Sequence[str]) -> list[str]:
    found = ", ".join(dict.fromkeys(labels))
    return [f"The best scale lies on the edge of the grid for {found}: a better one may lie beyond."] if found else []


def _table(name: str, benches: Sequence[Bench], setup: Setup, say: Callable[[str], None]) -> dict[str, Any]:
    """MergeBench and 3H: one table of all methods and baselines."""
    methods = _methods(setup)
    measured = [(bench, measure_family(bench, methods, setup.grid, say)) for bench in benches]
    summary = Summary(measured, setup.seed)
    rows = summary.rows()
    pairs = [summary.pair(a, b) for a, b in _compared(rows)]
    if name == "3h":
        least = summary.shares("min")
        rows = [row.model_copy(update={"least": least.interval(row.id)}) for row in rows]
    warnings = _edges([row.label for row in rows if row.tuned is not None and row.tuned.at_edge])
    if name == "3h" and not all(bench.family.mixtures for bench in benches):
        warnings.append("The family has no data mixtures: merges are compared with joint training alone.")
    title = {
        "mergebench": "Merging experts into one model", "3h": "Merging or mixing data: conflicting objectives"
    }[name]  # fmt: skip
    return {
        **_facts(benches, setup, warnings),
        "title": f"{title}: {benches[0].family.name}, {benches[0].family.regime}",
        "note": "Scales tuned on validation, every model reported once on test. Intervals: 95% bootstrap over samples"
        + (" and families." if len(benches) > 1 else "."),
        "rows": rows,
        "pairs": [pair for pair in pairs if pair is not None],
        "deltas": _deltas(benches[0]),
        "claims": claims_of(name, summary),
    }


def _compared(rows: Sequence[results.Row]) -> list[tuple[str, str]]:
    """The pairs that are tested: merged rows against the baselines, and against the best of those that need as much."""
    ids = [row.id for row in rows]
    against = [row for row in ("base", "task_arithmetic", "best-expert", "ensemble", "joint") if row in ids]
    merged = [row for row in rows if row.group == "merged"]
    best: dict[str, results.Row] = {}
    for row in merged:
        if row.mean is not None and (row.needs not in best or row.mean.value > best[row.needs].mean.value):  # pyright: ignore[reportOptionalMemberAccess]
            best[row.needs] = row
    wanted = [(row.id, other) for row in merged for other in against]
    wanted += [(row.id, best[row.needs].id) for row in merged if row.needs in best]
    found: dict[frozenset[str], tuple[str, str]] = {}
    for a, b in wanted:
        if a != b:
            found.setdefault(frozenset((a, b)), (a, b))
    return list(found.values())


def _wild(name: str, benches: Sequence[Bench], setup: Setup, say: Callable[[str], None]) -> dict[str, Any]:
    methods = _methods(setup, WILD)
    count = setup.subsets or (11 if setup.quick else 33)
    trials: list[Trial] = []
    failures: list[str] = []
    measured: list[tuple[Bench, list[Measured]]] = []
    drawn = 0
    for at, bench in enumerate(benches):
        subsets = draw_subsets(list(bench.experts), count, setup.seed + at)
        drawn = len(subsets)
        found, failed = run_trials(bench, methods, setup.grid, subsets, say, at)
        trials, failures = trials + found, failures + failed
        measured.append((bench, list(baselines(bench))))
    labels = {candidate.id: candidate.label for candidate in methods}
    edges = [labels[trial.method] for trial in trials if trial.at_edge]
    return {
        **_facts(benches, setup, [*_edges(edges), *failures]),
        "title": f"Merging in the wild: {benches[0].family.name}, {drawn} random subsets of "
        f"{len(benches[0].experts)} experts",
        "note": "Multi-task scores over all tasks of the suite. Untuned: at the scale of a method's default. "
        "Intervals: 95%, widened where subsets that share experts agree"
        + (", and over families." if len(benches) > 1 else "."),
        "rows": Summary(measured, setup.seed).rows(),
        "curves": curves(trials, labels),
        "deltas": _deltas(benches[0]),
        "claims": wild_claims(trials, labels),
    }


def _regimes(name: str, benches: Sequence[Bench], setup: Setup, say: Callable[[str], None]) -> dict[str, Any]:
    methods = _methods(setup, MAPPED)
    cells: list[Cell] = []
    failures: list[str] = []
    for bench in benches:
        found, failed = map_regimes(bench, methods, setup.grid, say)
        cells, failures = cells + found, failures + failed
    groups = {regime: [b for b in benches if b.family.regime == regime] for regime in ("in-basin", "far")}
    claims: list[results.Claim] = []
    if all(groups.values()):  # the merges of all experts were measured as cells
        near, far = (
            Summary([(b, measure_family(b, methods, setup.grid, say)) for b in group], setup.seed)
            for group in groups.values()
        )
        claims = regime_claims(near, far)
    measured = [(bench, list(baselines(bench))) for bench in benches[:1]]
    return {
        **_facts(benches, setup, failures),
        "claims": claims,
        "title": f"Which method wins where: {benches[0].family.name}",
        "note": "Each cell: every method's scale tuned on validation, the winner by its score on test.",
        "rows": Summary(measured, setup.seed).rows(),
        "regimes": [_regime(cell) for cell in cells],
    }


def _regime(cell: Cell) -> results.Regime:
    return results.Regime(
        family=cell.family, regime=cell.regime, base=round(cell.base, 6), size=cell.size, experts=cell.experts,
        overlap=cell.overlap, cosine=round(cell.cosine, 6), winner=cell.winner,
        scores={method: round(score, 6) if np.isfinite(score) else None for method, score in cell.scores.items()},
    )  # fmt: skip


def _deltas(bench: Bench) -> results.Deltas:
    experts = {name: open_checkpoint(path) for name, path in bench.experts.items()}
    return measure_deltas(open_checkpoint(bench.base), experts)


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"eutectic": eutectic.__version__, "python": platform.python_version()}
    for package in ("numpy", "torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
