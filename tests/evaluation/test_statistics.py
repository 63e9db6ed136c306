"""Bootstraps: intervals that cover, differences that are paired, numbers that depend on seed and name alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eutectic.evaluation.statistics import (
    holm,
    interval_of,
    mean_interval,
    paired_difference,
    resampled,
    sign_flips,
    two_sided,
)


def test_an_interval_has_the_width_of_the_standard_error() -> None:
    samples = np.random.default_rng(0).standard_normal(400)
    found = mean_interval(samples)
    half = 1.96 * samples.std(ddof=1) / 20
    assert found.value == pytest.approx(samples.mean())
    assert found.high - found.value == pytest.approx(half, rel=0.15)
    assert found.value - found.low == pytest.approx(half, rel=0.15)


def test_intervals_cover() -> None:
    """Of 200 intervals for the mean of 60 numbers about 95% hold the truth."""
    random = np.random.default_rng(1)
    held = [i.low <= 0 <= i.high for i in (mean_interval(random.standard_normal(60), seed=s) for s in range(200))]
    assert 0.88 <= np.mean(held) <= 0.99


def test_pairing_takes_the_common_part_out() -> None:
    random = np.random.default_rng(2)
    common = 10 * random.standard_normal(300)
    a, b = common + 0.1 + 0.01 * random.standard_normal(300), common
    found = paired_difference(a, b)
    assert found.difference.value == pytest.approx(0.1, abs=0.01) and found.p < 0.01
    assert found.difference.high - found.difference.low < 0.01  # unpaired it would be above 3
    assert paired_difference(b, b).p == 1.0


def test_columns_of_a_group_are_drawn_together() -> None:
    rows = np.arange(50.0)[:, None] * np.array([1.0, 2.0])
    found = resampled({"task": rows}, 0, "x")["task"]
    assert found.shape == (2000, 2)
    assert np.allclose(found[:, 1], 2 * found[:, 0])
    assert np.array_equal(found, resampled({"task": rows}, 0, "x")["task"])
    assert not np.array_equal(found, resampled({"task": rows}, 0, "y")["task"])
    assert not np.array_equal(found, resampled({"task": rows}, 1, "x")["task"])


def test_many_samples_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counts of all resamples at once would take gigabytes; the numbers are the same."""
    rows = np.random.default_rng(3).standard_normal(100)
    whole = resampled({"task": rows}, 0, "x")["task"]
    monkeypatch.setattr("eutectic.evaluation.statistics.DRAWN", 700)
    assert np.allclose(resampled({"task": rows}, 0, "x")["task"], whole, rtol=0, atol=1e-14)


def test_two_sided() -> None:
    assert two_sided(np.ones(1999)) == pytest.approx(2 / 2000)
    assert two_sided(np.array([-1.0, 1.0] * 100)) == 1.0


def test_replicates_without_a_value_are_left_out() -> None:
    replicates = np.array([np.nan, *range(1, 100)])
    assert two_sided(replicates) == pytest.approx(2 / 100)
    assert interval_of(50.0, replicates).low == pytest.approx(np.quantile(np.arange(1, 100), 0.025))


def test_random_signs_are_the_exact_sign_test() -> None:
    """Of n differences of 1, k of them negative: p is the two-sided binomial tail."""
    for n, k in ((6, 0), (12, 2), (30, 9)):
        difference = np.zeros(100)
        difference[:n] = 1
        difference[:k] = -1
        exact = min(1.0, 2 * sum(math.comb(n, j) for j in range(k + 1)) / 2**n)
        assert sign_flips(difference) == pytest.approx(exact, abs=0.02)
    assert sign_flips(difference) == sign_flips(difference)


def test_holm_steps_down() -> None:
    assert holm([]) == []
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
