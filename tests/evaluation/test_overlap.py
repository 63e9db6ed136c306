"""Overlap of subspaces against dense SVD, by chance, and where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eutectic.errors import SourceError
from eutectic.evaluation.overlap import compare_deltas
from eutectic.weights.checkpoint import Checkpoint, open_checkpoint

Tensors = dict[str, np.ndarray]


@pytest.fixture
def open_(make_model: Callable[..., Path]) -> Callable[[str, Tensors], Checkpoint]:
    return lambda name, tensors: open_checkpoint(make_model(name, tensors))


def spiked(random: np.random.Generator, shape: tuple[int, int], rank: int = 4) -> np.ndarray:
    """A change of a few strong directions and some noise."""
    u, v = random.standard_normal((shape[0], rank)), random.standard_normal((rank, shape[1]))
    return (u * np.arange(rank, 0, -1) @ v + 0.05 * random.standard_normal(shape)).astype(np.float32)


def dense(a: np.ndarray, b: np.ndarray, rank: int) -> tuple[float, float]:
    """Left and right overlaps by SVD in float64."""
    sides = [np.linalg.svd(d.astype(np.float64), full_matrices=False) for d in (a, b)]
    left = np.linalg.norm(sides[0][0][:, :rank].T @ sides[1][0][:, :rank]) ** 2 / rank
    right = np.linalg.norm(sides[0][2][:rank] @ sides[1][2][:rank].T) ** 2 / rank
    return float(left), float(right)


@pytest.mark.parametrize("shape", [(40, 90), (300, 25), (600, 33), (32, 32)])
def test_equal_to_svd(open_: Callable[..., Checkpoint], shape: tuple[int, int]) -> None:
    random = np.random.default_rng(1)
    base = np.zeros(shape, np.float32)  # so that the deltas are exact
    a, b = spiked(random, shape), spiked(random, shape)
    b = (b + 0.7 * a).astype(np.float32)
    found = compare_deltas(*(open_(n, {"w": v}) for n, v in (("base", base), ("a", a), ("b", b))), rank=3)
    (w,) = found.tensors
    assert (w.left, w.right) == pytest.approx(dense(a, b, 3), abs=1e-6)
    assert (w.rank, w.left_chance, w.right_chance) == (3, 3 / shape[0], 3 / shape[1])
    flat = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    assert w.cosine == pytest.approx(flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1]))
    assert w.sign_conflict == pytest.approx(np.mean(flat[0] * flat[1] < 0))


def test_the_same_change_overlaps_wholly_and_another_by_chance(open_: Callable[..., Checkpoint]) -> None:
    random = np.random.default_rng(2)
    base = random.standard_normal((64, 80)).astype(np.float32)
    a, other = (random.standard_normal((64, 80)).astype(np.float32) for _ in range(2))
    models = {"base": base, "a": base + a, "twice": base + 2 * a, "other": base + other}
    opened = {name: open_(name, {"w": value}) for name, value in models.items()}
    same = compare_deltas(opened["base"], opened["a"], opened["twice"]).tensors[0]
    assert same.left == pytest.approx(1, abs=1e-4) and same.right == pytest.approx(1, abs=1e-4)
    apart = compare_deltas(opened["base"], opened["a"], opened["other"]).tensors[0]
    assert apart.left is not None and abs(apart.left - 8 / 64) < 0.1 and abs(apart.cosine or 0) < 0.1


def test_directions_that_are_not_there_are_not_compared(open_: Callable[..., Checkpoint]) -> None:
    base = np.zeros((10, 12), np.float32)
    a, b = (
        np.outer(np.arange(10), np.ones(12)).astype(np.float32),
        np.outer(np.ones(10), np.arange(12)).astype(np.float32),
    )
    found = compare_deltas(*(open_(n, {"w": v}) for n, v in (("base", base), ("a", a), ("b", b))))
    assert found.tensors[0].rank == 1


def test_what_is_no_matrix_has_a_reason(open_: Callable[..., Checkpoint]) -> None:
    base = {"bias": np.zeros(4, np.float32), "same": np.ones((3, 3), np.float32), "nan": np.zeros((3, 3), np.float32)}
    base["conv"] = np.zeros((4, 3, 2, 2), np.float32)
    base["steps"] = np.zeros(1, np.int64)
    a = {**base, "bias": np.ones(4, np.float32), "nan": np.full((3, 3), np.nan, np.float32), "more": np.ones(1)}
    a["conv"] = np.random.default_rng(0).standard_normal((4, 3, 2, 2)).astype(np.float32)
    found = compare_deltas(open_("base", base), open_("a", a), open_("b", a))
    reasons = {t.name: t.reason for t in found.tensors}
    assert reasons == {"bias": "no matrix", "same": "a delta is zero", "nan": "NaN or infinity", "conv": ""}
    assert set(found.skipped) == {"steps", "more"} and found.skipped["more"] == "not in the base"
    none = compare_deltas(open_("base2", base), open_("a2", a), open_("b2", a), rank=0)
    assert {t.reason for t in none.tensors} == {"not asked for"} and none.total.elements == found.total.elements
    with pytest.raises(SourceError, match="nothing to compare"):
        compare_deltas(open_("base3", {"x": np.ones(1)}), open_("a3", a), open_("b3", a))
