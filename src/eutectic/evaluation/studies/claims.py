"""The claims that studies answer; docs/claims.md has them with tests, sample sizes, baselines and what was seen before.

A claim holds if its 95% interval lies on its side of the threshold, is refuted if it lies on the other, else is open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from eutectic.evaluation.results import Claim, Interval
from eutectic.evaluation.statistics import interval_of
from eutectic.evaluation.studies.in_the_wild import Trial, success
from eutectic.evaluation.studies.summary import Replicates, Summary

__all__ = ["claims_of", "regime_claims", "verdict", "wild_claims"]

SUBSPACE = ("tsv_m", "r_tsvm", "iso_c", "iso_cts", "task_arithmetic_sb")

DATA_INFORMED = {
    "A1": ("Layer-wise AdaMerging is better than tuned task arithmetic.", "adamerging_tensor", "task_arithmetic"),
    "A2": ("Task-wise AdaMerging is better than tuned task arithmetic.", "adamerging", "task_arithmetic"),
    "A3": ("Tuned RegMean++ is better than tuned RegMean.", "regmean_pp", "regmean"),
}


def verdict(interval: Interval, threshold: float = 0.0) -> bool | None:
    """Whether a value lies above a threshold: True, False, or None where the interval holds it.

    >>> verdict(Interval(value=0.2, low=0.1, high=0.3)), verdict(Interval(value=0.2, low=-0.1, high=0.3))
    (True, None)
    """
    if interval.low is None or interval.high is None:
        return None
    return True if interval.low > threshold else False if interval.high < threshold else None


def claims_of(study: str, summary: Summary) -> list[Claim]:
    """The claims of the studies that end in one table."""
    return list(_three(summary) if study == "3h" else _mergebench(summary))


def _mergebench(summary: Summary) -> Iterator[Claim]:
    yield from _difference(summary, "M1", "Tuned task arithmetic is better than the base.", "task_arithmetic", "base")
    yield from _difference(
        summary, "M2", "Tuned task arithmetic is better than the best single expert.", "task_arithmetic", "best-expert"
    )
    merged = [row for row in summary.ids if row in _merged(summary)]
    if "joint" in summary.ids and merged:
        best = max(merged, key=lambda row: summary.shares().values[row])
        yield from _difference(
            summary, "M3", "Joint training at equal compute is better than the best merge.", "joint", best
        )
    for method in SUBSPACE:
        yield from _difference(
            summary, f"M4-{method}", f"Tuned {method} is better than tuned task arithmetic.", method, "task_arithmetic"
        )
    numbered = {"ties": "M5", "pcb": "M5", "consensus": "M5", "regmean": "M7", "fisher": "M7"}
    for method, number in numbered.items():
        claim = f"Tuned {method} is better than tuned task arithmetic."
        yield from _difference(summary, f"{number}-{method}", claim, method, "task_arithmetic")
    for number, (words, a, b) in DATA_INFORMED.items():
        yield from _difference(summary, number, words, a, b)


def _three(summary: Summary) -> Iterator[Claim]:
    mixtures = [row for row in summary.ids if row.startswith("mixture:") or row == "joint"]
    merged = _merged(summary)
    for number, (reduce, words) in enumerate((("min", "worst objective"), ("mean", "mean of the objectives")), 1):
        shares = summary.shares(reduce)
        a = [row for row in merged if row in shares.values]
        b = [row for row in mixtures if row in shares.values]
        if a and b:
            words = f"The best merge has a better {words} than the best data mixture."
            yield _of_maxima(f"H{number}", words, (shares, a), (shares, b))
    yield from _difference(summary, "H3", "R-TSVM is better than TSV-M.", "r_tsvm", "tsv_m")


def regime_claims(near: Summary, far: Summary) -> list[Claim]:
    """The claim that needs families of both regimes, which differ in nothing else."""
    a, b = _merged(near), _merged(far)
    if not a or not b:
        return []
    words = "The best merge of an in-basin family has a higher multi-task score than that of a far one."
    return [_of_maxima("M6", words, (near.shares(), a), (far.shares(), b))]


def _of_maxima(id: str, claim: str, *sides: tuple[Replicates, Sequence[str]]) -> Claim:
    """Whether the best of some rows is better than the best of others, the best chosen anew in each resample."""
    (value, draws), (other, others) = (
        (max(shares.values[row] for row in rows), np.max([shares.replicates[row] for row in rows], axis=0))
        for shares, rows in sides
    )
    found = interval_of(value - other, draws - others)
    interval = Interval(value=round(found.value, 6), low=round(found.low, 6), high=round(found.high, 6))
    return Claim(
        id=id, claim=claim, test="difference of the two maxima, each taken anew in every resample of the samples",
        result=_sentence(interval), holds=verdict(interval),
    )  # fmt: skip


def _merged(summary: Summary) -> list[str]:
    known = summary.shares().values
    return [r.id for _, rows in summary.families[:1] for r in rows if r.group == "merged" and r.id in known]


def _difference(summary: Summary, id: str, claim: str, a: str, b: str) -> Iterator[Claim]:
    pair = summary.pair(a, b)
    if pair is not None:
        interval = Interval(value=pair.difference, low=pair.low, high=pair.high)
        yield Claim(
            id=id, claim=claim, test=f"paired bootstrap of the multi-task score over {pair.n} samples",
            result=_sentence(interval), holds=verdict(interval),
        )  # fmt: skip


def wild_claims(trials: Sequence[Trial], labels: Mapping[str, str]) -> list[Claim]:
    """The claims of the study in the wild."""
    found: list[Claim] = []

    def of(method: str, tuned: bool) -> list[Trial]:
        return [trial for trial in trials if trial.method == method and trial.tuned == tuned]

    for method in dict.fromkeys(trial.method for trial in trials):
        for tuned in (True, False):
            mine = of(method, tuned)
            threshold = 0.8 if method == "task_arithmetic" else 0.5
            share, gain = success(mine, "beats_base"), success(mine, "gain")
            found.append(Claim(
                id=f"W-{method}-{'tuned' if tuned else 'untuned'}",
                claim=f"{labels[method]}, {'tuned' if tuned else 'untuned'}: P(merged > base) is above {threshold:g}.",
                test=f"share of {len(mine)} subsets, which share experts",
                result=f"P = {_range(share)}; gain over the best single expert {_range(gain)}",
                holds=verdict(share, threshold),
            ))  # fmt: skip
    return found


def _range(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _sentence(interval: Interval) -> str:
    return f"difference {interval.value:+.4f} ({interval.low:+.4f} to {interval.high:+.4f})"
