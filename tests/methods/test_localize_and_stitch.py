"""Localize-and-Stitch without data against numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from eutectic.methods import localize_and_stitch

Family = Callable[..., tuple[torch.Tensor, list[torch.Tensor], list[np.ndarray]]]
WEIGHT = [1.0, -0.5, 2.0]


def test_localize_and_stitch(family: Family) -> None:
    base, tensors, deltas = family(3, (50, 41))
    density = [0.1, 0.3, 0.5]
    ranked = [np.sort(np.abs(delta).ravel())[-int(d * delta.size)] for d, delta in zip(density, deltas, strict=True)]
    masks = np.stack([np.abs(delta) >= least for delta, least in zip(deltas, ranked, strict=True)])
    total = (masks * np.stack([w * delta for w, delta in zip(WEIGHT, deltas, strict=True)])).sum(0)
    expected = base.double().numpy() + 0.7 * total / np.maximum(masks.sum(0), 1)
    merged = localize_and_stitch(tensors, base=base, weight=WEIGHT, density=density, lambda_=0.7).numpy()
    np.testing.assert_allclose(merged, expected, rtol=1e-6, atol=1e-6)


def test_no_density_gives_the_base(family: Family) -> None:
    base, tensors, _ = family(2, (6, 9))
    assert torch.equal(localize_and_stitch(tensors, base=base, density=0.0), base)
