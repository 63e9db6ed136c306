"""Intervals and tests over samples: bootstraps whose random numbers depend on a seed and a name alone.

Percentile intervals of the bootstrap (Efron 1979); paired differences resample the same samples of both sides. Where
several differences are looked at, p comes from random signs (Fisher 1935) and is corrected by Holm's step-down (1979).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eutectic.weights.digest import hash_bytes

__all__ = [
    "Interval",
    "Paired",
    "generator",
    "holm",
    "interval_of",
    "mean_interval",
    "paired_difference",
    "resampled",
    "sign_flips",
    "two_sided",
]

RESAMPLES = 2000
FLIPS = 10_000
DRAWN = 1 << 22  # counts in memory at once


@dataclass(frozen=True)
class Interval:
    """A value with the bounds of its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """The mean difference of two sides measured on the same samples; `p` is two-sided."""

    difference: Interval
    p: float
    n: int


def generator(seed: int, name: str) -> np.random.Generator:
    """Random numbers of their own for each name, the same on every machine (Philox)."""
    return np.random.Generator(np.random.Philox(key=int(hash_bytes(f"{seed} {name}".encode())[:16], 16)))


def resampled(groups: Mapping[str, np.ndarray], seed: int, name: str, count: int = RESAMPLES) -> dict[str, np.ndarray]:
    """Means of `count` resamples of each group's rows: [n, ...] -> [count, ...].

    Rows of one group are drawn together, so columns (models) stay paired.
    """
    found = {}
    for key, rows in groups.items():
        draws = generator(seed, f"{name} {key}")
        n, values = len(rows), rows.astype(np.float64)
        block = max(1, DRAWN // n)
        parts = []
        for at in range(0, count, block):
            counts = draws.multinomial(n, np.full(n, 1 / n), size=min(block, count - at))  # how often each row is drawn
            parts.append(np.tensordot(counts / n, values, axes=(1, 0)))
        found[key] = np.concatenate(parts)
    return found


def interval_of(value: float, replicates: np.ndarray) -> Interval:
    """The 95% percentile interval of bootstrap replicates around a value; NaN marks those without a value."""
    low, high = np.nanquantile(replicates, (0.025, 0.975))
    return Interval(float(value), float(low), float(high))


def mean_interval(samples: np.ndarray, seed: int = 0, name: str = "mean") -> Interval:
    """The mean of samples with its 95% bootstrap interval.

    >>> found = mean_interval(np.arange(100.0))
    >>> found.value, found.low < 49.5 < found.high
    (49.5, True)
    """
    return interval_of(float(np.mean(samples)), resampled({"": samples}, seed, name)[""])


def paired_difference(a: np.ndarray, b: np.ndarray, seed: int = 0, name: str = "paired") -> Paired:
    """The mean of a - b over samples, its interval, and the two-sided p of the bootstrap.

    p = 2 min(P(d* <= 0), P(d* >= 0)) with one pseudo-count, so that it is never zero.

    >>> found = paired_difference(np.ones(50), np.zeros(50))
    >>> found.difference.value, found.p < 0.01
    (1.0, True)
    """
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    replicates = resampled({"": difference}, seed, name)[""]
    return Paired(interval_of(float(difference.mean()), replicates), two_sided(replicates), len(difference))


def two_sided(replicates: np.ndarray) -> float:
    """Two-sided p of bootstrap replicates of a difference; NaN marks those without a value."""
    at_most, at_least = int((replicates <= 0).sum()), int((replicates >= 0).sum())
    return min(1.0, 2 * (min(at_most, at_least) + 1) / (int((~np.isnan(replicates)).sum()) + 1))


def sign_flips(difference: np.ndarray, seed: int = 0, name: str = "signs", count: int = FLIPS) -> float:
    """Two-sided p of a mean paired difference: how often random signs make one as large, itself counted.

    Valid for any number of samples that differ; differences of hits alone are McNemar's exact test, up to the draws.

    >>> sign_flips(np.array([1.0, 1.0, 1.0, 0.0])) > 0.2, sign_flips(np.ones(20)) < 0.001
    (True, True)
    """
    differing = np.asarray(difference, dtype=np.float64)
    differing = differing[differing != 0]
    if not len(differing):
        return 1.0
    random, as_large, total = generator(seed, name), 0, abs(differing.sum()) * (1 - 1e-12)
    block = max(1, DRAWN // len(differing))
    for at in range(0, count, block):
        signs = random.integers(0, 2, size=(min(block, count - at), len(differing)), dtype=np.int8)
        as_large += int((np.abs((2.0 * signs - 1) @ differing) >= total).sum())
    return (as_large + 1) / (count + 1)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down: each p corrected for how many there are.

    p_(i) becomes max over j <= i of min(1, (m - j + 1) p_(j)), in ascending order.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, least = [0.0] * len(ps), 0.0
    for rank, at in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        least = max(least, min(1.0, (len(ps) - rank) * ps[at]))
        corrected[at] = least
    return corrected
