"""Subspace Boosting after task arithmetic and after TIES, against a full decomposition in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from eutectic.methods import task_arithmetic, task_arithmetic_sb, ties, ties_sb

Family = Callable[..., tuple[torch.Tensor, list[torch.Tensor], list[np.ndarray]]]
CLOSE: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6}


def reference(delta: np.ndarray, threshold: float) -> np.ndarray:
    u, s, vt = np.linalg.svd(delta, full_matrices=False)
    at = int(np.argmax(np.cumsum(s) / s.sum() >= threshold))
    return u * np.maximum(s, s[at]) @ vt


@pytest.mark.parametrize("shape", [(24, 24), (24, 41), (41, 24)])
@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.3, 0.9])
def test_against_numpy(shape: tuple[int, int], threshold: float, family: Family) -> None:
    base, tensors, deltas = family(3, shape)
    weight, origin = [1.0, -0.5, 2.0], base.double().numpy()
    total = np.sum([w * delta for w, delta in zip(weight, deltas, strict=True)], axis=0)
    merged = task_arithmetic_sb(tensors, base=base, weight=weight, lambda_=0.7, threshold=threshold).numpy()
    np.testing.assert_allclose(merged, origin + 0.7 * reference(total, threshold), **CLOSE)
    wide = [tensor.double() for tensor in tensors]
    chosen: dict[str, Any] = {"weight": weight, "density": 0.4, "normalize": False}
    elected = ties(wide, base=base.double(), **chosen).numpy() - origin
    merged = ties_sb(tensors, base=base, lambda_=0.7, threshold=threshold, **chosen).numpy()
    np.testing.assert_allclose(merged, origin + 0.7 * reference(elected, threshold), **CLOSE)


def test_nothing_is_lifted_at_one(family: Family) -> None:
    base, tensors, _ = family(2, (12, 9))
    plain = task_arithmetic(tensors, base=base, weight=1.0)
    torch.testing.assert_close(task_arithmetic_sb(tensors, base=base, threshold=1.0), plain, **CLOSE)


def test_a_low_rank_stays_and_no_change_stays_none(family: Family) -> None:
    base, (tensor,), _ = family(1, (6, 9))
    origin, delta = base.double(), (tensor[:, :2] @ tensor[:2]).double()
    u, s, vt = np.linalg.svd(delta.numpy(), full_matrices=False)
    merged = task_arithmetic_sb([origin + delta], base=origin, threshold=0.0).numpy()
    np.testing.assert_allclose(merged - origin.numpy(), s[0] * u[:, :2] @ vt[:2], **CLOSE)
    assert torch.equal(task_arithmetic_sb([base], base=base), base)
    assert torch.equal(ties_sb([base], base=base), base)


def test_vectors_are_those_of_the_plain_methods(family: Family) -> None:
    base, tensors, _ = family(3, (40,))
    assert torch.equal(
        task_arithmetic_sb(tensors, base=base, weight=0.3), task_arithmetic(tensors, base=base, weight=0.3)
    )
    assert torch.equal(ties_sb(tensors, base=base, density=0.3), ties(tensors, base=base, weight=1.0, density=0.3))
