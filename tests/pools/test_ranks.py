"""Bytes shared out among layers: the best there is for what is spent, never worse for more."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from eutectic.pools.ranks import Point, allot, hull


def layers(seed: int) -> list[list[Point]]:
    rng = np.random.default_rng(seed)
    found = []
    for layer in range(4):
        errors = np.sort(rng.exponential(size=5) * rng.integers(1, 20))[::-1]
        nbytes = np.cumsum(rng.integers(1, 30, size=5))
        found.append(
            [Point(int(n), float(e), (layer, at)) for at, (n, e) in enumerate(zip(nbytes, errors, strict=True))]
        )
    return found


def spent(points: list[Point]) -> tuple[int, float]:
    return sum(point.nbytes for point in points), math.fsum(point.error for point in points)


@pytest.mark.parametrize("seed", range(5))
def test_a_larger_budget_is_never_worse_and_never_overspent(seed: int) -> None:
    offers = layers(seed)
    least = sum(min(point.nbytes for point in points) for points in offers)
    most = sum(points[-1].nbytes for points in offers)
    before = math.inf
    for budget in range(least, most + 10):
        nbytes, error = spent(allot(offers, most_bytes=budget))
        assert nbytes <= budget
        assert error <= before
        before = error
    assert spent(allot(offers, most_bytes=most)) == (most, math.fsum(points[-1].error for points in offers))


@pytest.mark.parametrize("seed", range(5))
def test_it_is_as_good_as_the_best_for_a_budget_smaller_by_one_step(seed: int) -> None:
    offers = layers(seed)
    every = [spent(list(choice)) for choice in itertools.product(*offers)]
    step = max(b.nbytes - a.nbytes for points in offers for a, b in itertools.pairwise(hull(points)))
    least = sum(points[0].nbytes for points in offers)
    for budget in range(least + step, sum(points[-1].nbytes for points in offers) + step, 3):
        _, error = spent(allot(offers, most_bytes=budget))
        assert error <= min(found for cost, found in every if cost <= budget - step) + 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_an_error_is_reached_within_a_step_of_the_fewest_bytes(seed: int) -> None:
    offers = layers(seed)
    every = [spent(list(choice)) for choice in itertools.product(*offers)]
    step = max(b.nbytes - a.nbytes for points in offers for a, b in itertools.pairwise(hull(points)))
    least = math.fsum(points[-1].error for points in offers)
    for wanted in (4 * least, 2 * least, 1.1 * least):
        nbytes, error = spent(allot(offers, most_error=wanted))
        assert error <= wanted
        assert nbytes <= min(cost for cost, found in every if found <= wanted) + step


def test_layers_without_error_take_the_cheapest_point_and_points_above_the_hull_none() -> None:
    zero = [Point(3, 0.0, "mean"), Point(9, 0.0, "more")]
    assert [point.choice for point in allot([zero, zero])] == ["mean", "mean"]
    assert [point.nbytes for point in hull([Point(5, 1.0), Point(4, 2.0), Point(4, 1.5), Point(6, 1.0)])] == [4, 5]
    assert allot([]) == []
