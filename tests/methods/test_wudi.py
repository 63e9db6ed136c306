"""WUDI against least squares in numpy, and against the objective that it minimises."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from eutectic.methods import wudi

Family = Callable[..., tuple[torch.Tensor, list[torch.Tensor], list[np.ndarray]]]


def reference(deltas: list[np.ndarray], weight: list[float]) -> np.ndarray:
    """The least-norm solution of Δ [B_1' ... B_T'] = [w_1 Δ_1 B_1' ...], B_t = Δ_t / ‖Δ_t‖."""
    units = [delta / np.linalg.norm(delta) for delta in deltas]
    wanted = np.concatenate([w * d @ b.T for w, d, b in zip(weight, deltas, units, strict=True)], 1)
    return np.linalg.lstsq(np.concatenate(units), wanted.T, rcond=1e-5)[0].T


def loss(merged: np.ndarray, deltas: list[np.ndarray]) -> float:
    return sum(float(np.linalg.norm((merged - d) @ d.T) ** 2 / np.linalg.norm(d) ** 2) for d in deltas)


@pytest.mark.parametrize("shape", [(24, 24), (8, 41), (41, 24)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_against_numpy(shape: tuple[int, int], count: int, family: Family) -> None:
    base, tensors, deltas = family(count, shape)
    weight = [1.0, -0.5, 2.0][:count]
    merged = wudi(tensors, base=base, weight=weight, lambda_=0.7).numpy()
    expected = base.double().numpy() + 0.7 * reference(deltas, weight)
    np.testing.assert_allclose(merged, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(24, 24), (8, 41)])
def test_eigenvalues_and_cholesky_agree(
    shape: tuple[int, int], family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tensors, _ = family(3, shape)
    merged = wudi(tensors, base=base)
    monkeypatch.setattr("eutectic.ops.spectrum.well_conditioned_inverse", lambda *_: None)
    torch.testing.assert_close(merged, wudi(tensors, base=base), rtol=1e-7, atol=1e-7)


def test_no_step_away_lowers_the_objective(family: Family) -> None:
    base, tensors, deltas = family(3, (10, 14))
    merged = wudi([t.double() for t in tensors], base=base.double()).numpy() - base.double().numpy()
    lowest = loss(merged, deltas)
    assert lowest < loss(np.sum(deltas, axis=0), deltas)  # where the paper's steps begin
    for seed in range(20):
        step = np.random.default_rng(seed).normal(size=merged.shape)
        assert loss(merged + 1e-3 * step, deltas) > lowest


def test_sources_of_weight_zero_and_copies_of_the_base_take_no_part(family: Family) -> None:
    base, (a, b), _ = family(2, (6, 9))
    alone = wudi([a], base=base)
    assert torch.equal(wudi([a, b], base=base, weight=[1.0, 0.0]), alone)
    assert torch.equal(wudi([a, base], base=base), alone)
    assert torch.equal(wudi([base, base], base=base), base)
    torch.testing.assert_close(alone, a, rtol=1e-6, atol=1e-6)


def test_deltas_of_low_rank(family: Family) -> None:
    base, (a, b), _ = family(2, (10, 12))
    origin = base.double()
    deltas = [(x[:, :2] @ x[:2]).double() for x in (a, b)]
    merged = wudi([origin + d for d in deltas], base=origin).numpy() - origin.numpy()
    np.testing.assert_allclose(merged, reference([d.numpy() for d in deltas], [1.0, 1.0]), rtol=1e-6, atol=1e-6)
