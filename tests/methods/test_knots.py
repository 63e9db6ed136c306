"""KnOTS with TIES against a full decomposition in numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from eutectic.methods import knots_ties, task_arithmetic

Family = Callable[..., tuple[torch.Tensor, list[torch.Tensor], list[np.ndarray]]]


def reference(deltas: list[np.ndarray], weight: list[float], density: float) -> np.ndarray:
    u, s, vt = np.linalg.svd(np.concatenate(deltas, 1), full_matrices=False)
    parts = []
    for part in np.split(s[:, None] * vt, len(deltas), 1):
        smallest = np.sort(np.abs(part).ravel())[-int(density * part.size)]
        parts.append(np.where(np.abs(part) >= smallest, part, 0))
    weighted = np.stack([w * part for w, part in zip(weight, parts, strict=True)])
    agree = np.sign(weighted) == np.where(weighted.sum(0) >= 0, 1, -1)
    share = (agree * np.reshape(weight, (-1, 1, 1))).sum(0)
    return u @ ((weighted * agree).sum(0) / np.where(share == 0, 1, share))


@pytest.mark.parametrize("shape", [(24, 24), (9, 41), (41, 9)])
@pytest.mark.parametrize(("count", "density"), [(1, 1.0), (3, 1.0), (3, 0.3)])
def test_against_numpy(shape: tuple[int, int], count: int, density: float, family: Family) -> None:
    base, tensors, deltas = family(count, shape)
    weight = [1.0, 0.5, 2.0][:count]
    merged = knots_ties(tensors, base=base, weight=weight, density=density, lambda_=0.7).numpy()
    expected = base.double().numpy() + 0.7 * reference(deltas, weight, density)
    np.testing.assert_allclose(merged, expected, rtol=1e-6, atol=2e-6)


def test_one_source_whole_is_itself_and_no_change_is_none(family: Family) -> None:
    base, (a,), _ = family(1, (7, 5))
    torch.testing.assert_close(knots_ties([a], base=base), a, rtol=1e-6, atol=1e-6)
    assert torch.equal(knots_ties([base, base], base=base), base)
    torch.testing.assert_close(
        knots_ties([a, a], base=base, lambda_=0.5), task_arithmetic([a], base=base, weight=0.5), rtol=1e-6, atol=1e-6
    )
