"""Iso-C against a full decomposition in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from eutectic.methods import iso_c

Family = Callable[..., tuple[torch.Tensor, list[torch.Tensor], list[np.ndarray]]]
CLOSE: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6}


def reference(delta: np.ndarray) -> np.ndarray:
    u, s, vt = np.linalg.svd(delta, full_matrices=False)
    return s.mean() * u @ vt


@pytest.mark.parametrize("shape", [(24, 24), (24, 41), (41, 24)])
@pytest.mark.parametrize("count", [1, 3])
def test_against_numpy(shape: tuple[int, int], count: int, family: Family) -> None:
    base, tensors, deltas = family(count, shape)
    weight = [1.0, -0.5, 2.0][:count]
    total = sum(w * delta for w, delta in zip(weight, deltas, strict=True))
    merged = iso_c(tensors, base=base, weight=weight, lambda_=0.7).numpy()
    np.testing.assert_allclose(merged, base.double().numpy() + 0.7 * reference(np.asarray(total)), **CLOSE)


def test_a_sum_of_low_rank_keeps_its_rank(family: Family) -> None:
    base, (tensor,), _ = family(1, (6, 9))
    left, right = tensor[:, :2].double(), tensor[:2].double()
    u, s, vt = np.linalg.svd((left @ right).numpy(), full_matrices=False)
    origin = base.double()
    merged = iso_c([origin + left @ right], base=origin).numpy()
    np.testing.assert_allclose(merged, origin.numpy() + s[:2].sum() / 6 * u[:, :2] @ vt[:2], **CLOSE)
    assert torch.equal(iso_c([base, base], base=base), base)


def test_deltas_that_cancel_give_the_base(family: Family) -> None:
    base, (tensor,), _ = family(1, (5, 7))
    assert torch.equal(iso_c([tensor, tensor], base=base, weight=[1.0, -1.0]), base)
