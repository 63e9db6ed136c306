"""Scores: the mean, its error, and no number from samples that are none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eutectic.errors import NonFiniteError
from eutectic.evaluation.scores import scored


def test_mean_and_standard_error() -> None:
    samples = np.array([0.1, 0.4, 0.9, 0.3])
    found = scored(samples, 2.0)
    assert found.value == pytest.approx(samples.mean()) and found.n == 4 and found.seconds == 2.0
    assert found.stderr == pytest.approx(samples.std(ddof=1) / 2)
    assert math.isnan(scored([0.5]).stderr)


@pytest.mark.parametrize(("samples", "words"), [([], "empty"), ([1.0, math.nan], "sample 1 scored nan")])
def test_no_number_from_nothing(samples: list[float], words: str) -> None:
    with pytest.raises(NonFiniteError, match=words):
        scored(samples)
