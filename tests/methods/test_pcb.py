"""PCB-Merging against numpy, in the three forms that its authors published."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from eutectic.methods import pcb

Family = Callable[..., tuple[torch.Tensor, list[torch.Tensor], list[np.ndarray]]]


def spread(values: np.ndarray) -> np.ndarray:
    low, high = values.min(-1, keepdims=True), values.max(-1, keepdims=True)
    return (values - low) / (high - low)


def reference(deltas: np.ndarray, weight: list[float], density: float, variant: str) -> np.ndarray:
    count, d = deltas.shape
    cut = int({"main": 1e-4}.get(variant, 1e-2) * d)
    ranked = np.sort(np.abs(deltas), 1)
    sizes = np.clip(np.abs(deltas), ranked[:, [cut]], ranked[:, [d - 1 - cut]])
    units = np.sign(deltas) * spread(sizes)
    inter = {
        "main": np.tanh(deltas * deltas.sum(0)),
        "vision": np.tanh(deltas * units.sum(0)),
        "paper": np.tanh(units[:, None] * units).sum(1),
    }[variant]
    score = np.exp(count * units**2) * inter
    least = np.sort(score, 1)[:, [min(int(d * (1 - density)), d - 1)]]
    share = spread(np.maximum(score, least))
    return (np.reshape(weight, (-1, 1)) * np.sign(deltas) * sizes * share).sum(0) / np.maximum(share.sum(0), 1e-12)


@pytest.mark.parametrize("variant", ["paper", "main", "vision"])
@pytest.mark.parametrize("density", [0.1, 0.5])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_against_numpy(variant: str, density: float, count: int, family: Family) -> None:
    base, tensors, _ = family(count, (50, 41))
    deltas = [(tensor - base).double().numpy() for tensor in tensors]  # the difference is taken in float32
    weight = [1.0, -0.5, 2.0, 0.25][:count]
    expected = reference(np.stack([d.ravel() for d in deltas]), weight, density, variant).reshape(base.shape)
    merged = pcb(tensors, base=base, weight=weight, density=density, lambda_=0.7, variant=variant).numpy()
    np.testing.assert_allclose(merged, base.double().numpy() + 0.7 * expected, rtol=1e-6, atol=1e-6)


def test_a_source_without_change_takes_no_part(family: Family) -> None:
    base, (a,), _ = family(1, (20, 30))
    merged = pcb([a, base], base=base, density=0.3)
    kept = merged != base
    assert 0 < kept.sum() < 0.3 * kept.numel()
    assert torch.isclose(merged[kept], a[kept]).sum() > 0.9 * kept.sum()  # all but those that are clipped
    assert torch.equal(pcb([base, base], base=base), base)


def test_one_entry_and_equal_entries_are_kept(family: Family) -> None:
    assert pcb([torch.tensor(3.0)], base=torch.tensor(1.0)) == 3.0
    merged = pcb([torch.full((4,), 3.0)], base=torch.ones(4))
    assert torch.equal(merged, torch.full((4,), 3.0))
