"""EMR's unified vector against numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from eutectic.methods import emr

Family = Callable[..., tuple[torch.Tensor, list[torch.Tensor], list[np.ndarray]]]
WEIGHT = [1.0, -0.5, 2.0]


def test_emr(family: Family) -> None:
    base, tensors, deltas = family(3, (50, 41))
    own = np.stack([w * delta for w, delta in zip(WEIGHT, deltas, strict=True)])
    sign = np.sign(own.sum(0))
    expected = base.double().numpy() + 0.7 * sign * np.max(np.abs(own) * (np.sign(own) == sign), 0)
    merged = emr(tensors, base=base, weight=WEIGHT, lambda_=0.7).numpy()
    np.testing.assert_allclose(merged, expected, rtol=1e-6, atol=1e-7)


def test_copies_and_no_change(family: Family) -> None:
    base, (a,), _ = family(1, (6, 9))
    torch.testing.assert_close(emr([a, a], base=base), a, rtol=1e-6, atol=1e-7)
    assert torch.equal(emr([base], base=base), base)
