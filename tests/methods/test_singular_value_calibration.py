"""Singular value calibration against a full decomposition in numpy, direction by direction."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from eutectic.methods import task_arithmetic, task_arithmetic_svc

Family = Callable[..., tuple[torch.Tensor, list[torch.Tensor], list[np.ndarray]]]


def reference(total: np.ndarray, deltas: list[np.ndarray], alpha: float) -> np.ndarray:
    u, s, vt = np.linalg.svd(total, full_matrices=False)
    for r in range(len(s)):
        whole, parts = u[:, r] @ total, [u[:, r] @ delta for delta in deltas]
        s[r] *= len(deltas) / sum(max(alpha, whole @ part / (part @ part)) for part in parts)
    return u * s @ vt


@pytest.mark.parametrize("shape", [(24, 24), (24, 41), (41, 24)])
@pytest.mark.parametrize("alpha", [0.001, 0.1, 0.5])
def test_against_numpy(shape: tuple[int, int], alpha: float, family: Family) -> None:
    base, tensors, deltas = family(3, shape)
    weight = [1.0, -0.5, 2.0]
    total = 0.3 * np.sum([w * delta for w, delta in zip(weight, deltas, strict=True)], axis=0)
    merged = task_arithmetic_svc(tensors, base=base, weight=weight, alpha=alpha).numpy()
    expected = reference(total, deltas, alpha)
    scale = np.abs(expected).max()  # where no task responds much, a small alpha lifts a direction a lot
    np.testing.assert_allclose(merged, base.double().numpy() + expected, rtol=1e-6, atol=1e-6 * scale)


def test_copies_count_once_and_zero_deltas_as_alpha(family: Family) -> None:
    base, (a,), _ = family(1, (8, 6))
    torch.testing.assert_close(task_arithmetic_svc([a, a, a], base=base), a, rtol=1e-6, atol=1e-6)
    expected = task_arithmetic([a], base=base, weight=2 / 1.25)  # s = 1 and alpha = 0.25 of two tasks
    merged = task_arithmetic_svc([a, base], base=base, lambda_=1.0, alpha=0.25)
    torch.testing.assert_close(merged, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(task_arithmetic_svc([base, base], base=base), base)
    uncounted = task_arithmetic_svc([a, base], base=base, weight=[1.0, 0.0])
    torch.testing.assert_close(uncounted, a, rtol=1e-6, atol=1e-6)
