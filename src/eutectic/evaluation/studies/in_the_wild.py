"""Merging in the wild: random subsets of a family's experts, merged by each method at tuned and at untuned scales.

The protocol of "A Systematic Study of In-the-Wild Model Merging" (2025), with a scale tuned on validation for every
method and the same number of evaluations for each. For a subset S and a method: is the merge better than the base, and
than the best single expert of S, on all tasks of the suite? Subsets share experts, so intervals resample experts:
each replicate gives every expert a Poisson(1) count and weighs a subset by the mean of its experts' counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eutectic.errors import EutecticError, RecipeError
from eutectic.evaluation.results import Curve, Interval
from eutectic.evaluation.statistics import RESAMPLES, generator
from eutectic.evaluation.studies.bench import Bench, Report
from eutectic.evaluation.studies.candidates import Candidate

__all__ = ["Trial", "curves", "draw_subsets", "run_trials", "success"]


@dataclass(frozen=True)
class Trial:
    """One merge of one subset: multi-task scores on test of the merge, of the base and of the best single expert."""

    method: str
    tuned: bool
    subset: tuple[str, ...]
    scale: float
    at_edge: bool
    merged: float
    base: float
    best: float
    family: int = 0

    @property
    def beats_base(self) -> bool:
        """Whether the merge is better than doing nothing."""
        return self.merged > self.base

    @property
    def gain(self) -> float:
        """The merge's multi-task score less that of the best single expert."""
        return self.merged - self.best


def draw_subsets(names: Sequence[str], count: int, seed: int) -> list[tuple[str, ...]]:
    """Random subsets of 2 to K names: sizes in turn, so that each comes up as often; none twice.

    >>> draw_subsets(["a", "b", "c"], 4, seed=0)[-1]
    ('a', 'b', 'c')

    Raises:
        RecipeError: fewer than two names.
    """
    if len(names) < 2:
        raise RecipeError(f"a study of subsets needs at least 2 experts, the family has {len(names)}")
    draws = generator(seed, "subsets")
    found: dict[tuple[str, ...], None] = {}
    sizes = range(2, len(names) + 1)
    for turn in range(20 * count):
        if len(found) == count:
            break
        size = sizes[turn % len(sizes)]
        chosen = sorted(draws.choice(len(names), size=size, replace=False))
        found.setdefault(tuple(names[int(at)] for at in chosen), None)
    return sorted(found, key=lambda subset: (len(subset), subset))


def run_trials(
    bench: Bench,
    methods: Sequence[Candidate],
    grid: Sequence[float],
    subsets: Sequence[tuple[str, ...]],
    report: Report,
    family: int = 0,
) -> tuple[list[Trial], list[str]]:
    """Every method on every subset, tuned and untuned, and the sentences of what could not be measured."""
    trials: list[Trial] = []
    failures: list[str] = []
    base = bench.multitask(bench.outcomes(bench.base, "test", "base", bench.tasks), "test")
    alone = {
        split: {
            name: bench.multitask(bench.outcomes(path, split, f"expert {name}", bench.tasks), split)
            for name, path in bench.experts.items()
        }
        for split in ("validation", "test")
    }
    for number, subset in enumerate(subsets, 1):
        report(f"{bench.family.path.name}: subset {number} of {len(subsets)} ({len(subset)} experts)")
        best = alone["test"][max(subset, key=alone["validation"].__getitem__)]
        for candidate in methods:
            try:
                tuning = bench.tune(candidate, grid, subset)
                for tuned, scale in ((True, tuning.scale), (False, candidate.scale(len(subset)))):
                    recipe = bench.recipe(candidate, scale, subset)
                    label = f"{candidate.id} of {'+'.join(subset)}"
                    merged = bench.multitask(bench.outcomes(recipe, "test", label, bench.tasks), "test")
                    edge = tuned and tuning.at_edge
                    trials.append(Trial(candidate.id, tuned, subset, scale, edge, merged, base, best, family))
            except EutecticError as error:
                failures.append(f"{candidate.id} of {'+'.join(subset)}: {error}")
    return trials, failures


def success(trials: Sequence[Trial], measure: str, seed: int = 0) -> Interval:
    """P(merged > base) (`measure` "beats_base") or the mean "gain", with an interval over experts and families."""
    values = np.array([float(getattr(trial, measure)) for trial in trials])
    experts = sorted({(trial.family, name) for trial in trials for name in trial.subset})
    families = sorted({trial.family for trial in trials})
    member = np.zeros((len(trials), len(experts)))
    for row, trial in enumerate(trials):
        for name in trial.subset:
            member[row, experts.index((trial.family, name))] = 1 / len(trial.subset)
    draws = generator(seed, f"wild {measure}")
    weights = draws.poisson(1.0, size=(RESAMPLES, len(experts))) @ member.T
    if len(families) > 1:
        counts = draws.multinomial(len(families), np.full(len(families), 1 / len(families)), size=RESAMPLES)
        weights = weights * counts[:, [families.index(trial.family) for trial in trials]]
    totals = weights.sum(axis=1)
    replicates = (weights @ values)[totals > 0] / totals[totals > 0]
    low, high = np.quantile(replicates, (0.025, 0.975))
    return Interval(value=round(float(values.mean()), 6), low=round(float(low), 6), high=round(float(high), 6))


def curves(trials: Sequence[Trial], labels: Mapping[str, str], seed: int = 0) -> list[Curve]:
    """By number of experts: the share of subsets whose merge beats the base, and the gain over the best expert."""
    found: list[Curve] = []
    for measure, title in (("beats_base", "P(merged > base)"), ("gain", "gain over the best single expert")):
        for tuned in (True, False):
            for method in dict.fromkeys(trial.method for trial in trials):
                mine = [trial for trial in trials if trial.method == method and trial.tuned == tuned]
                sizes = sorted({len(trial.subset) for trial in mine})
                points = [success([t for t in mine if len(t.subset) == size], measure, seed) for size in sizes]
                if points:
                    found.append(Curve(
                        label=labels[method], x=tuple(map(float, sizes)), y=tuple(p.value for p in points),
                        low=tuple(p.low for p in points), high=tuple(p.high for p in points), x_title="experts merged",
                        y_title=title, title=f"{title}, {'tuned' if tuned else 'untuned'}",
                    ))  # fmt: skip
    return found
