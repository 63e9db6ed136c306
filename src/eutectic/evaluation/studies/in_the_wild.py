"""Merging in the wild: random subsets of a family's experts, merged by each method at tuned and at untuned scales.

The protocol of "A Systematic Study of In-the-Wild Model Merging" (2025), with a scale tuned on validation for every
method and the same number of evaluations for each. For a subset S and a method: is the merge better than the base, and
than the best single expert of S, on all tasks of the suite?

Subsets share experts and are no replicates of one another. With r_S the deviation of subset S from the mean over N
subsets and o_ST = |S n T| - |S| |T| / K the experts that two subsets share beyond those that any two of K share,

    V = (sum_S r_S^2 + max(0, sum_{S != T} o_ST r_S r_T)) / N (N - 1)

is the variance of the mean: never below that of independent subsets. Over several families it is at least the variance
of the families' means. Shares have Wilson's interval for N V_independent / V subsets, gains +-1.96 sqrt(V).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eutectic.errors import EutecticError, RecipeError
from eutectic.evaluation.results import Curve, Interval
from eutectic.evaluation.statistics import generator
from eutectic.evaluation.studies.bench import Bench, Report
from eutectic.evaluation.studies.candidates import Candidate

__all__ = ["Trial", "curves", "draw_subsets", "run_trials", "success"]

NORMAL = 1.96  # half of a 95% interval, in standard errors


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
    base = bench.tested_base
    alone = {
        split: {
            name: bench.multitask(bench.outcomes(path, split, f"expert {name}", bench.tasks), split)
            for name, path in bench.experts.items()
        }
        for split in ("validation", "test")
    }
    for number, subset in enumerate(subsets, 1):
        report(f"{bench.family.path.name}: subset {number} of {len(subsets)} ({len(subset)} experts)")
        best = alone["test"][max(subset, key=lambda name: np.nan_to_num(alone["validation"][name], nan=-np.inf))]
        if not np.isfinite(best):
            failures.append(f"{'+'.join(subset)}: its best single expert could not be measured on test")
            continue
        sources = [bench.experts[name] for name in subset]
        for candidate in methods:
            try:
                tuning = bench.tune(candidate, grid, sources)
                for tuned, scale in ((True, tuning.scale), (False, candidate.scale(len(subset)))):
                    merged = bench.tested(candidate, scale, sources, f"{candidate.id} of {'+'.join(subset)}")
                    edge = tuned and tuning.at_edge
                    trials.append(Trial(candidate.id, tuned, subset, scale, edge, merged, base, best, family))
            except EutecticError as error:
                failures.append(f"{candidate.id} of {'+'.join(subset)}: {error}")
    return trials, failures


def success(trials: Sequence[Trial], measure: str) -> Interval:
    """P(merged > base) (`measure` "beats_base") or the mean "gain", with an interval over experts and families."""
    values = np.array([float(getattr(trial, measure)) for trial in trials])
    value, count = float(values.mean()), len(values)
    if measure == "beats_base":
        alone = value * (1 - value) / max(1, count - 1)
        low, high = _wilson(value, count * (alone / _variance(trials, values) if alone else 1.0))
    elif count == 1:
        return Interval(value=round(value, 6))
    else:
        half = NORMAL * float(np.sqrt(_variance(trials, values)))
        low, high = value - half, value + half
    return Interval(value=round(value, 6), low=round(low, 6), high=round(high, 6))


def _variance(trials: Sequence[Trial], values: np.ndarray) -> float:
    """Of the mean over at least two trials: see the top of this file."""
    families = np.array([trial.family for trial in trials])
    deviations = values - values.mean()
    shared = 0.0
    for family in np.unique(families):
        mine = families == family
        subsets = [trial.subset for trial in trials if trial.family == family]
        names = sorted({name for subset in subsets for name in subset})
        member = np.array([[name in subset for name in names] for subset in subsets], dtype=np.float64)
        sizes = member.sum(axis=1)
        overlap = member @ member.T - np.outer(sizes, sizes) / len(names)
        np.fill_diagonal(overlap, 0)
        shared += float(deviations[mine] @ overlap @ deviations[mine])
    within = (float(deviations @ deviations) + max(0.0, shared)) / (len(values) * (len(values) - 1))
    means = [values[families == family].mean() for family in np.unique(families)]
    return max(within, float(np.var(means, ddof=1)) / len(means) if len(means) > 1 else 0.0)


def _wilson(share: float, count: float) -> tuple[float, float]:
    """Wilson's 95% interval of a share of `count` draws."""
    square = NORMAL**2
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = NORMAL * (share * (1 - share) / count + square / (4 * count**2)) ** 0.5 / (1 + square / count)
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def curves(trials: Sequence[Trial], labels: Mapping[str, str]) -> list[Curve]:
    """By number of experts: the share of subsets whose merge beats the base, and the gain over the best expert."""
    found: list[Curve] = []
    for measure, title in (("beats_base", "P(merged > base)"), ("gain", "gain over the best single expert")):
        for tuned in (True, False):
            for method in dict.fromkeys(trial.method for trial in trials):
                mine = [trial for trial in trials if trial.method == method and trial.tuned == tuned]
                sizes = sorted({len(trial.subset) for trial in mine})
                points = [success([t for t in mine if len(t.subset) == size], measure) for size in sizes]
                if points:
                    found.append(Curve(
                        label=labels[method], x=tuple(map(float, sizes)), y=tuple(p.value for p in points),
                        low=tuple(p.low for p in points), high=tuple(p.high for p in points), x_title="experts merged",
                        y_title=title, title=f"{title}, {'tuned' if tuned else 'untuned'}",
                    ))  # fmt: skip
    return found
