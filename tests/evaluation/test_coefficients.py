"""Coefficients and errors against numpy's own least squares; what cannot be told apart; when rounding explains it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eutectic.evaluation.coefficients import explained, fit
from eutectic.evaluation.gram import Sums
from eutectic.evaluation.trace import trace
from eutectic.weights.checkpoint import open_checkpoint


def test_least_squares_in_float64(make_model: Callable[..., Path]) -> None:
    """Coefficients and errors of a noisy mixture, against numpy's own weighted least squares."""
    random = np.random.default_rng(9)
    parents = random.standard_normal((3, 500)).astype(np.float32)
    child = (0.2 * parents[0] + 0.5 * parents[1] + 0.3 * parents[2] + 0.1 * random.standard_normal(500)).astype("f4")
    paths = {n: make_model(n, {"w": v}) for n, v in zip("abcx", [*parents, child], strict=True)}
    opened = {n: open_checkpoint(path) for n, path in paths.items()}
    found = trace(opened["x"], {n: opened[n] for n in "abc"})
    assert found.kind == "not_linear"
    p, y = parents.astype(np.float64), child.astype(np.float64) - parents[0]
    x = np.array([p[1] - p[0], p[2] - p[0]])
    binade = lambda v: 2.0 ** np.floor(np.log2(np.abs(v)))  # noqa: E731
    size = np.maximum(binade(child.astype(np.float64)), binade(np.max(np.abs([*x, y]), axis=0)) / 2)
    x, y = x / size, y / size
    b, (square,), *_ = np.linalg.lstsq(x.T, y, rcond=None)
    inverse = np.linalg.inv(x @ x.T)
    alike = square / (500 - 2) * np.diagonal(inverse)
    free = np.stack([p[0] / size, *x])  # the guess's own residual is that of a free sum
    e = y - np.linalg.lstsq(free.T, y, rcond=None)[0] @ free
    errors = np.sqrt(np.maximum(alike, np.diagonal(inverse @ ((x * e) @ (x * e).T) @ inverse)))
    assert np.allclose(found.whole.coefficients, [1 - b.sum(), *b], rtol=1e-10)
    assert np.allclose(np.array(found.whole.errors[1:], float), errors, rtol=1e-8)
    assert found.whole.residual == pytest.approx(np.sqrt(square / (y @ y)), rel=1e-8)


def sums(x: np.ndarray, y: np.ndarray) -> Sums:
    """The sums of columns `x` (the reference's, then changes) and of the change `y`, without rounding."""
    guess = np.linalg.lstsq(x.T, y, rcond=None)[0]
    e = y - guess @ x
    scatter = (x * e) @ (x * e).T
    differing = (y.size,) * len(x)
    return Sums("w", y.size, 0, x @ x.T, x @ e, float(e @ e), guess, float(y @ y), 0.0, 1e-12, differing, scatter)


def test_a_sum_of_one_and_a_free_one() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((3, 400))
    y = 0.25 * x[1] + 0.5 * x[2]
    found = fit([sums(x, y)])
    np.testing.assert_allclose(np.array(found.coefficients, float), [0.25, 0.25, 0.5], atol=1e-12)
    assert not found.free and found.residual < 1e-6 and found.spare == 398
    free = fit([sums(x, y + 0.5 * x[0])], free=True)  # c = 1.5 p_0 + 0.25 (p_1 - p_0) + 0.5 (p_2 - p_0)
    np.testing.assert_allclose(np.array(free.coefficients, float), [0.75, 0.25, 0.5], atol=1e-12)
    assert free.free and fit([sums(x, y + 0.5 * x[0])]).residual > 0.1


def test_parts_are_weighed_by_their_noise() -> None:
    random = np.random.default_rng(1)
    x = random.standard_normal((2, 300))
    loud, quiet = sums(x, 0.9 * x[1]), sums(x, 0.1 * x[1])
    assert fit([replace(loud, noise=1e6), quiet]).coefficients[1] == pytest.approx(0.1, abs=1e-6)


def test_twins_are_known_by_their_sum_only() -> None:
    random = np.random.default_rng(2)
    x = random.standard_normal((2, 300))
    found = fit([sums(np.stack([x[0], x[1], x[1]]), 0.6 * x[1])])
    assert found.coefficients[0] == pytest.approx(0.4) and found.coefficients[1:] == (None, None)
    (group,) = found.together
    assert group.members == (1, 2) and group.total == pytest.approx(0.6)


def test_no_spare_elements_test_nothing() -> None:
    found = fit([sums(np.array([[1.0], [2.0]]), np.array([1.0]))])
    assert found.spare == 0 and found.errors == (None, None) and found.over_rounding == 0


def test_fits_differ_beyond_their_errors() -> None:
    random = np.random.default_rng(3)
    x = random.standard_normal((2, 1000))
    one, same, other = (fit([sums(x, w * x[1] + 1e-4 * random.standard_normal(1000))]) for w in (0.3, 0.3, 0.32))
    assert not one.differ(same) and one.differ(other)


def test_few_elements_may_stray_further() -> None:
    assert explained(2.005, 10**6) and not explained(2.02, 10**6) and explained(3.9, 16) and not explained(4.1, 16)
