"""What a task measured: the mean over samples, its standard error, and the samples themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from eutectic.errors import NonFiniteError

__all__ = ["Failure", "Outcome", "Scores", "scored"]


@dataclass(frozen=True)
class Scores:
    """One task's measurement: `value` with its standard error, from `n` samples, in `seconds`.

    `samples` holds one number per sample, in the order of the data; empty where a task reports its mean alone.
    """

    value: float
    stderr: float
    n: int
    seconds: float = 0.0
    samples: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.float64), repr=False, compare=False)


@dataclass(frozen=True)
class Failure:
    """A measurement that could not be made, and why, in one sentence."""

    reason: str


Outcome = Scores | Failure


def scored(samples: Sequence[float] | np.ndarray, seconds: float = 0.0) -> Scores:
    """The mean of at least one sample, with the standard error sd / sqrt(n) (NaN for a single sample).

    Raises:
        NonFiniteError: a sample is NaN or infinite.

    >>> scored([1, 0, 1, 1])
    Scores(value=0.75, stderr=0.25, n=4, seconds=0.0)
    """
    found = np.asarray(samples, dtype=np.float64).reshape(-1)
    if not len(found):
        raise NonFiniteError("no sample was measured; is the data empty?")
    bad = np.flatnonzero(~np.isfinite(found))
    if len(bad):
        raise NonFiniteError(
            f"sample {bad[0]} scored {found[bad[0]]} ({len(bad)} of {len(found)} are not finite); look at the model's "
            "weights"
        )
    spread = float(found.std(ddof=1)) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    return Scores(float(found.mean()), spread, len(found), seconds, found)
