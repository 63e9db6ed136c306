"""A regime map: which method wins where. Base strength x norm of a change x overlap x number of experts.

- base strength: of each family, its base's multi-task score; give families of both regimes, in-basin and far.
- norm: the first expert of a subset is moved to base + s (expert - base), s in `SIZES`, by a recipe within the recipe.
  A factor that all changes share would show nothing: tuning the scale takes it out again.
- overlap: of the subsets of one size, the one whose experts' changes have the highest mean cosine, and the lowest.
- number: subsets of 2 experts, of about half, and all.
In each cell every method's scale is tuned on validation over one grid; the cell's winner is the best on test.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eutectic.errors import EutecticError
from eutectic.evaluation.deltas import measure_deltas
from eutectic.evaluation.studies.bench import Bench, Report
from eutectic.evaluation.studies.candidates import Candidate
from eutectic.weights.checkpoint import open_checkpoint

__all__ = ["SIZES", "Cell", "map_regimes"]

SIZES = (0.5, 1.0, 2.0)
MOST_SUBSETS = 500


@dataclass(frozen=True)
class Cell:
    """One regime, and each method's multi-task score on test there; NaN where it could not be measured."""

    family: str
    regime: str
    base: float
    size: float
    experts: tuple[str, ...]
    overlap: str
    cosine: float
    scores: dict[str, float]

    @property
    def winner(self) -> str | None:
        """The method with the best score."""
        known = {method: score for method, score in self.scores.items() if np.isfinite(score)}
        return max(known, key=known.__getitem__) if known else None


def map_regimes(
    bench: Bench, methods: Sequence[Candidate], grid: Sequence[float], report: Report
) -> tuple[list[Cell], list[str]]:
    """The cells of one family, and sentences about what could not be measured."""
    cells: list[Cell] = []
    failures: list[str] = []
    wanted = list(itertools.product(SIZES, list(_subsets(bench))))
    for number, (size, (overlap, subset, cosine)) in enumerate(wanted, 1):
        shared = "" if overlap == "all" else f", {overlap} overlap"
        where = f"{len(subset)} experts{shared}, first change x {size:g}"
        report(f"{bench.family.path.name}: cell {number} of {len(wanted)} ({where})")
        first, *others = (bench.experts[name] for name in subset)
        sources = [moved(bench.base, first, size), *others]
        scores: dict[str, float] = {}
        for candidate in methods:
            try:
                scale = bench.tune(candidate, grid, sources).scale
                scores[candidate.id] = bench.tested(candidate, scale, sources, candidate.id)
            except EutecticError as error:
                failures.append(f"{candidate.id} of {'+'.join(subset)}, first change x {size:g}: {error}")
                scores[candidate.id] = float("nan")
        name, regime = bench.family.path.name, bench.family.regime
        cells.append(Cell(name, regime, bench.tested_base, size, subset, overlap, cosine, scores))
    return cells, failures


def moved(base: str, expert: str, size: float) -> Any:
    """The expert with its change to the base times `size`: itself, or a recipe."""
    if size == 1.0:
        return expert
    parameters = {"weight": size}
    return {
        "merge_method": "task_arithmetic",
        "base_model": base,
        "models": [{"model": expert, "parameters": parameters}],
    }


def _subsets(bench: Bench) -> Iterator[tuple[str, tuple[str, ...], float]]:
    """(overlap, experts, mean cosine) of the subsets that are compared."""
    names = list(bench.experts)
    checkpoints = {name: open_checkpoint(path) for name, path in bench.experts.items()}
    found = measure_deltas(open_checkpoint(bench.base), checkpoints).cosine
    cosine = np.array([[0.0 if value is None else value for value in row] for row in found])
    for count in sorted({2, max(2, round(len(names) / 2)), len(names)}):
        subsets = list(itertools.islice(itertools.combinations(range(len(names)), count), MOST_SUBSETS))
        means = [float(np.mean([cosine[i, j] for i, j in itertools.combinations(s, 2)])) for s in subsets]
        places = {"low": int(np.argmin(means)), "high": int(np.argmax(means))}
        if len(subsets) == 1:
            places = {"all": 0}
        for overlap, at in places.items():
            yield overlap, tuple(names[index] for index in subsets[at]), means[at]
