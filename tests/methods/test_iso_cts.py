"""Iso-CTS against full decompositions in numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from eutectic.methods import iso_c, iso_cts

Family = Callable[..., tuple[torch.Tensor, list[torch.Tensor], list[np.ndarray]]]


def polar(columns: np.ndarray) -> np.ndarray:
    u, _, vt = np.linalg.svd(columns, full_matrices=False)
    return u @ vt


def reference(deltas: list[np.ndarray], common: float) -> np.ndarray:
    r, count = min(deltas[0].shape), len(deltas)
    own = round((r - int(r * common)) / count)
    u, s, vt = (part for part in np.linalg.svd(np.sum(deltas, axis=0), full_matrices=False))
    c = r - own * count
    sides = [(u[:, :c], s[:c], vt[:c].T)]
    for delta in deltas:
        p, t, qt = np.linalg.svd(delta - u[:, :c] @ u[:, :c].T @ delta, full_matrices=False)
        sides.append((p[:, :own], t[:own], qt[:own].T))
    left, values, right = (np.concatenate(parts, axis=-1) for parts in zip(*sides, strict=True))
    return values.mean() * polar(left) @ polar(right).T


@pytest.mark.parametrize("shape", [(24, 24), (24, 41), (41, 24)])
@pytest.mark.parametrize(("count", "common"), [(1, 0.8), (3, 0.8), (4, 0.25), (3, 1.0)])
def test_against_numpy(shape: tuple[int, int], count: int, common: float, family: Family) -> None:
    base, tensors, deltas = family(count, shape)
    weight = [1.0, -0.5, 2.0, 0.25][:count]
    expected = reference([w * delta for w, delta in zip(weight, deltas, strict=True)], common)
    merged = iso_cts(tensors, base=base, weight=weight, lambda_=0.7, common=common).numpy()
    np.testing.assert_allclose(merged, base.double().numpy() + 0.7 * expected, rtol=1e-6, atol=1e-6)


def test_many_tasks_and_zero_deltas(family: Family) -> None:
    base, tensors, _ = family(6, (3, 8))
    for common in (0.0, 1.0):  # more tasks than directions: the sum gives them all
        np.testing.assert_allclose(
            iso_cts(tensors, base=base, common=common).numpy(), iso_c(tensors, base=base).numpy(), rtol=1e-6, atol=1e-6
        )
    assert torch.equal(iso_cts([base, base], base=base), base)
    assert iso_cts([tensors[0], base], base=base).isfinite().all()
