"""The sums of a pass: the same whatever is read at a time, equal to plain float64 products, solved at any rank."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eutectic.evaluation.gram import BLOCK, solve, sum_tensor
from eutectic.weights.checkpoint import open_checkpoint


def test_sums_do_not_depend_on_what_is_read_at_a_time(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(2)
    paths = [make_model(n, {"w": random.standard_normal(3 * BLOCK + 17).astype("f4")}) for n in "abc"]
    a, b, c = (open_checkpoint(path)["w"] for path in paths)
    whole = sum_tensor(c, [a, b])
    monkeypatch.setattr("eutectic.evaluation.gram.READ", 1)
    again = sum_tensor(c, [a, b])
    assert whole.gram.tobytes() == again.gram.tobytes() and whole.cross.tobytes() == again.cross.tobytes()
    assert (whole.square, whole.change, whole.rounding) == (again.square, again.change, again.rounding)


def test_sums_are_the_products_of_sized_elements(make_model: Callable[..., Path]) -> None:
    random = np.random.default_rng(6)
    values = [random.standard_normal(2 * BLOCK + 5).astype("f4") for _ in range(3)]
    c, a, b = (open_checkpoint(make_model(n, {"w": v}))["w"] for n, v in zip("cab", values, strict=True))
    found = sum_tensor(c, [a, b])
    child, first, second = (v.astype(np.float64) for v in values)
    rows = np.stack([first, second - first])
    y = child - first
    binade = lambda v: 2.0 ** np.floor(np.log2(np.maximum(np.abs(v), 2.0**-126)))  # noqa: E731
    size = np.maximum(binade(child), binade(np.abs([rows[1], y]).max(axis=0)) / 2)
    rows, y = rows / size, y / size
    np.testing.assert_allclose(found.gram, rows @ rows.T, rtol=1e-12)
    e = y - found.guess @ rows
    np.testing.assert_allclose(found.cross, rows @ e, atol=1e-9 * len(e))
    assert found.change == pytest.approx(y @ y, rel=1e-12)
    assert found.left(found.guess) == pytest.approx(e @ e, rel=1e-9)
    assert found.left(np.zeros(2)) == pytest.approx(y @ y, rel=1e-9)


def test_solve_finds_the_least_solution_and_the_null_space() -> None:
    x = np.array([[1.0, 0.0, 1.0, 2.0], [0.0, 3.0, 0.0, 1.0]])
    x = np.stack([x[0], x[1], 2 * x[0] - x[1]])  # of rank two
    right = x @ np.array([1.0, 2.0, 3.0, 4.0])
    b, pseudo, null, condition = solve(x @ x.T, right)
    np.testing.assert_allclose(x @ x.T @ b, right, rtol=1e-9)
    assert null.shape == (3, 1) and condition >= 1
    np.testing.assert_allclose(null[:, 0] @ x, 0, atol=1e-9)
    gram = x @ x.T
    np.testing.assert_allclose(gram @ pseudo @ gram, gram, rtol=1e-9)


def test_solve_of_nothing_is_nothing() -> None:
    b, _, null, condition = solve(np.zeros((2, 2)), np.zeros(2))
    assert b.tolist() == [0, 0] and null.shape == (2, 2) and condition == 1
