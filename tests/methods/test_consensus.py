"""Consensus against numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from eutectic.errors import MethodError
from eutectic.methods import consensus, task_arithmetic

Family = Callable[..., tuple[torch.Tensor, list[torch.Tensor], list[np.ndarray]]]
WEIGHT = [1.0, -0.5, 2.0]


@pytest.mark.parametrize("agreement", [0, 1, 2, 3])
def test_consensus(agreement: int, family: Family) -> None:
    base, tensors, deltas = family(3, (50, 41))
    own = np.stack([w * delta for w, delta in zip(WEIGHT, deltas, strict=True)])
    masks = np.abs(own) > np.reshape([0.2, 0.4, 0.6], (3, 1, 1)) * np.abs(own.sum(0) - own)
    expected = base.double().numpy() + 0.7 * own.sum(0) * (masks.sum(0) >= agreement)
    options = {"weight": WEIGHT, "lambda_": 0.7, "mask_lambda": [0.2, 0.4, 0.6], "agreement": agreement}
    np.testing.assert_allclose(consensus(tensors, base=base, **options).numpy(), expected, rtol=1e-6, atol=1e-7)
    if not agreement:
        plain = task_arithmetic(tensors, base=base, weight=WEIGHT, lambda_=0.7)
        torch.testing.assert_close(consensus(tensors, base=base, **options), plain, rtol=1e-6, atol=1e-7)


def test_consensus_of_more_sources_than_there_are_is_refused(family: Family) -> None:
    base, tensors, _ = family(2, (3,))
    with pytest.raises(MethodError, match="agreement is 3, and there are 2 sources"):
        consensus(tensors, base=base, agreement=3)
