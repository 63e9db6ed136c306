"""From what was measured on one or several families to the rows and pairs of a study's results, with intervals.

The interval of a multi-task score resamples each task's samples, all models together, and where there are several
families these as a whole first: families are the replicates, samples of one family are not. Families of one variant
share their test data, so each resample draws the same samples in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

import numpy as np

from eutectic.evaluation import results
from eutectic.evaluation.scores import Failure, Scores
from eutectic.evaluation.statistics import RESAMPLES, Interval, generator, interval_of, resampled, two_sided
from eutectic.evaluation.studies.bench import Bench, Measured, normalised

__all__ = ["Replicates", "Summary"]

DIGITS = 6  # of what is written: more would differ between machines


@dataclass(frozen=True)
class Replicates:
    """A statistic of some rows by id: its value, and its bootstrap replicates [resamples]."""

    values: Mapping[str, float]
    replicates: Mapping[str, np.ndarray]

    def interval(self, row: str) -> results.Interval | None:
        """The value with its 95% interval; None where the row was not measured whole."""
        if row not in self.values:
            return None
        return _rounded(interval_of(self.values[row], self.replicates[row]))


class Summary:
    """The rows of a study over `families`: for each a bench and what was measured there, in one order of ids."""

    def __init__(self, families: Sequence[tuple[Bench, Sequence[Measured]]], seed: int = 0) -> None:
        self.families, self.seed = families, seed
        self.ids = list(dict.fromkeys(row.id for _, rows in families for row in rows))

    def shares(self, reduce: str = "mean") -> Replicates:
        """The multi-task score of each row: the mean (or ``min``) over tasks of its share of the expert's score."""
        return self._means if reduce == "mean" else self._statistic("min")

    @cached_property
    def _means(self) -> Replicates:
        return self._statistic("mean")

    def _statistic(self, reduce: str) -> Replicates:
        """Over the families: their mean, families resampled where there are several."""
        points: dict[str, list[float]] = {}
        found: dict[str, list[np.ndarray]] = {}
        for bench, rows in self.families:
            groups, columns = _tables(bench, rows)
            value = _share(bench, {task: table.mean(axis=0) for task, table in groups.items()}, reduce)
            draws = _share(bench, resampled(groups, self.seed, "samples"), reduce)
            for column, row in enumerate(columns):
                points.setdefault(row, []).append(float(value[column]))
                found.setdefault(row, []).append(draws[:, column])
        whole = {row: parts for row, parts in found.items() if len(parts) == len(self.families)}
        replicates = {row: self.over_families(parts) for row, parts in whole.items()}
        return Replicates({row: fmean(points[row]) for row in whole}, replicates)

    def over_families(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Replicates of the mean over families from those of each: families are drawn, then their samples."""
        count = len(parts)
        if count == 1:
            return parts[0]
        chosen = generator(self.seed, "families").integers(count, size=(RESAMPLES, count))
        return np.stack(parts)[chosen, np.arange(RESAMPLES)[:, None]].mean(axis=1)

    def pair(self, a: str, b: str) -> results.Pair | None:
        """The paired test of two rows' multi-task scores; None where one was not measured whole."""
        shares = self.shares()
        if a not in shares.values or b not in shares.values:
            return None
        replicates = shares.replicates[a] - shares.replicates[b]
        found = interval_of(shares.values[a] - shares.values[b], replicates)
        return results.Pair(
            a=a, b=b, difference=_round(found.value), low=_round(found.low), high=_round(found.high),
            p=_round(two_sided(replicates)), n=self._count(),
        )  # fmt: skip

    def _count(self) -> int:
        bench, rows = self.families[0]
        return sum(len(table) for table in _tables(bench, rows)[0].values()) * len(self.families)

    def rows(self) -> list[results.Row]:
        """Every row of the table, in the order of measurement."""
        shares = self.shares()
        return [self._row(row, shares) for row in self.ids]

    def _row(self, row: str, shares: Replicates) -> results.Row:
        found = [(bench, measured) for bench, rows in self.families for measured in rows if measured.id == row]
        first = found[0][1]
        tuned = [m.tuning for _, m in found if m.tuning is not None]
        costs = {key: _mean(key, [m.seconds for _, m in found]) for key in ("merge", "tune", "latency")}
        sizes = {
            key: max((m.bytes[key] for _, m in found if key in m.bytes), default=None) for key in ("model", "peak")
        }
        alone = len(self.families) == 1
        return results.Row(
            id=row,
            label=_label([measured.label for _, measured in found]),
            group=first.group,  # pyright: ignore[reportArgumentType]  one of the three
            needs=first.needs,  # pyright: ignore[reportArgumentType]
            recipe=dict(first.recipe) if first.recipe is not None else None,
            tuned=None if not tuned else results.Tuned(
                knob="scale", value=tuned[0].scale if alone else ", ".join(f"{t.scale:g}" for t in tuned),
                at_edge=any(t.at_edge for t in tuned), evaluations=sum(len(t.scores) for t in tuned),
            ),
            scores={task.name: _cell(task.name, [m for _, m in found]) for task in found[0][0].evaluator.suite},
            mean=shares.interval(row),
            forgetting={task: changes[row] for task, changes in self._changes.items() if row in changes},
            seconds=results.Cost(**costs),
            bytes=results.Size(**sizes),
        )  # fmt: skip

    @cached_property
    def _changes(self) -> dict[str, dict[str, results.Interval]]:
        """The change against the base on each task of role base, in its unit, by row."""
        found: dict[str, dict[str, results.Interval]] = {}
        for task in self.families[0][0].kept:
            parts: dict[str, list[tuple[float, np.ndarray]]] = {}
            for _, rows in self.families:
                base = next((_samples(row, task.name) for row in rows if row.id == "base"), np.empty(0))
                whole = [row for row in rows if len(_samples(row, task.name)) == len(base) > 0]
                if whole:
                    table = np.stack([_samples(row, task.name) - base for row in whole], axis=1)
                    draws = resampled({"": table}, self.seed, f"samples {task.name}")[""]
                    for column, row in enumerate(whole):
                        parts.setdefault(row.id, []).append((float(table[:, column].mean()), draws[:, column]))
            found[task.name] = {
                row: _rounded(interval_of(fmean(p for p, _ in of), self.over_families([draws for _, draws in of])))
                for row, of in parts.items()
                if len(of) == len(self.families)
            }
        return found


def _tables(bench: Bench, rows: Sequence[Measured]) -> tuple[dict[str, np.ndarray], list[str]]:
    """For each task the samples of the rows that were measured on every task, and of its expert last: [n, k + 1].

    The ids are those of the k rows.
    """
    by_id = {row.id: row for row in rows}
    owners = {task.name: _samples(by_id[f"expert:{bench.owners[task.name]}"], task.name) for task in bench.tasks}
    whole = [row for row in rows if all(len(_samples(row, task)) == len(own) > 0 for task, own in owners.items())]
    groups = {task: np.stack([*(_samples(row, task) for row in whole), own], axis=1) for task, own in owners.items()}
    return groups, [row.id for row in whole]


def _samples(row: Measured, task: str) -> np.ndarray:
    outcome = row.outcomes.get(task)
    return outcome.samples if isinstance(outcome, Scores) else np.empty(0)


def _share(bench: Bench, means: Mapping[str, np.ndarray], reduce: str) -> np.ndarray:
    """From means by task [..., k + 1], the expert's last, to multi-task scores [..., k].

    NaN in a resample in which an expert scores nothing, which is no measure.
    """
    parts = []
    for task in bench.tasks:
        rows, expert = means[task.name][..., :-1], means[task.name][..., -1:]
        with np.errstate(divide="ignore", invalid="ignore"):
            parts.append(normalised(rows, np.where(expert > 0, expert, np.nan), task.higher))
    return np.min(parts, axis=0) if reduce == "min" else np.mean(parts, axis=0)


def _cell(task: str, rows: Sequence[Measured]) -> results.Score | results.Hole:
    outcomes = [row.outcomes.get(task, Failure("not measured")) for row in rows]
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            return results.Hole(error=outcome.reason)
    scores = [o for o in outcomes if isinstance(o, Scores)]
    values = [score.value for score in scores]
    if len(values) == 1:
        stderr = scores[0].stderr
        return results.Score(
            value=_round(values[0]), stderr=_round(stderr) if np.isfinite(stderr) else None, n=scores[0].n
        )
    spread = float(np.std(values, ddof=1)) / len(values) ** 0.5  # over families
    return results.Score(value=_round(fmean(values)), stderr=_round(spread), n=sum(score.n for score in scores))


def _mean(key: str, facts: Sequence[Mapping[str, float]]) -> float | None:
    known = [found[key] for found in facts if key in found]
    return fmean(known) if known else None


def _label(labels: Sequence[str]) -> str:
    """What a row is called; what differs between families (the best expert's name, the size of a soup) is left out.

    >>> _label(["greedy soup of 5", "greedy soup of 2"]), _label(["linear (average)"] * 2)
    ('greedy soup', 'linear (average)')
    """
    first = labels[0]
    return first if len(set(labels)) == 1 else first.partition(" (")[0].partition(" of ")[0]


def _rounded(interval: Interval) -> results.Interval:
    return results.Interval(value=_round(interval.value), low=_round(interval.low), high=_round(interval.high))


def _round(value: float) -> float:
    return round(float(value), DIGITS)
