"""TSV-M against full decompositions in numpy, and the traps: many tasks, equal tasks, low rank, zero deltas."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from eutectic.methods import task_arithmetic, tsv_m
from eutectic.methods.mean_delta import mean_delta

Sources = Callable[..., list[torch.Tensor]]
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def polar(columns: np.ndarray) -> np.ndarray:
    u, _, vt = np.linalg.svd(columns, full_matrices=False)
    return u @ vt


def reference(deltas: list[np.ndarray]) -> np.ndarray:
    """U, S, V of the largest min / T directions each; the rest to the largest next values."""
    spectra = [np.linalg.svd(delta, full_matrices=False) for delta in deltas]
    r, count = min(deltas[0].shape), len(deltas)
    ranks = [r // count] * count
    for at in sorted(range(count), key=lambda at: -spectra[at][1][min(ranks[at], r - 1)])[: r % count]:
        ranks[at] += 1
    u = np.concatenate([s[0][:, :k] for s, k in zip(spectra, ranks, strict=True)], 1)
    s = np.concatenate([s[1][:k] for s, k in zip(spectra, ranks, strict=True)])
    v = np.concatenate([s[2][:k].T for s, k in zip(spectra, ranks, strict=True)], 1)
    return polar(u) * s @ polar(v).T


@pytest.mark.parametrize("shape", [(24, 24), (24, 41), (41, 24), (5, 7)])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_against_numpy(shape: tuple[int, int], count: int, sources: Sources) -> None:
    base, *tensors = sources(count + 1, torch.float32, shape)
    weight = [1.0, -0.5, 2.0, 0.25][:count]
    origin = base.double().numpy()
    deltas = [w * (x.double().numpy() - origin) for w, x in zip(weight, tensors, strict=True)]
    merged = tsv_m(tensors, base=base, weight=weight, lambda_=0.7).numpy()
    np.testing.assert_allclose(merged, origin + 0.7 * reference(deltas), **CLOSE)


def test_more_tasks_than_directions(sources: Sources) -> None:
    base, *tensors = sources(6, torch.float32, (3, 8))
    deltas = [x.double().numpy() - base.double().numpy() for x in tensors]
    np.testing.assert_allclose(tsv_m(tensors, base=base).numpy(), base.numpy() + reference(deltas), **CLOSE)


def test_equal_tasks_share_their_directions(sources: Sources) -> None:
    base, tensor = sources(2, torch.float32, (6, 9))
    u, s, vt = np.linalg.svd(tensor.double().numpy() - base.double().numpy(), full_matrices=False)
    merged = tsv_m([tensor, tensor], base=base).numpy()
    np.testing.assert_allclose(merged, base.numpy() + u[:, :3] * s[:3] @ vt[:3], **CLOSE)


def test_deltas_of_low_rank_and_zero_deltas(sources: Sources) -> None:
    base, a, b = sources(3, torch.float64, (10, 12))
    left, right = base + a[:, :1] @ a[:1], base + b[:, :1] @ b[:1]  # one direction each
    u, v = (np.concatenate([m[:, :1].numpy() for m in (a, b)], 1), np.concatenate([m[:1].T.numpy() for m in (a, b)], 1))
    s = np.linalg.norm(u, axis=0) * np.linalg.norm(v, axis=0)
    merged = tsv_m([left, right, base], base=base).numpy()
    units = (side / np.linalg.norm(side, axis=0) for side in (u, v))
    pu, pv = map(polar, units)
    np.testing.assert_allclose(merged, base.numpy() + pu * s @ pv.T, **CLOSE)
    assert torch.equal(tsv_m([base, base], base=base), base)


def test_vectors_stacks_and_kernels(sources: Sources) -> None:
    base, *tensors = sources(3, torch.float32, (24,))
    merged = tsv_m(tensors, base=base, weight=[1.0, 0.5], lambda_=0.5)
    assert torch.equal(merged, task_arithmetic(tensors, base=base, weight=[0.25, 0.125]))
    assert torch.equal(merged, mean_delta(tensors, base=base, weight=[1.0, 0.5], lambda_=0.5))
    base, *tensors = sources(3, torch.float32, (2, 5, 12))
    parts = [tsv_m([x[at] for x in tensors], base=base[at]) for at in range(2)]
    assert torch.equal(tsv_m(tensors, base=base), torch.stack(parts))
    base, *tensors = sources(3, torch.float32, (6, 2, 3, 3))
    flat = tsv_m([x.reshape(6, 18) for x in tensors], base=base.reshape(6, 18))
    assert torch.equal(tsv_m(tensors, base=base), flat.reshape(6, 2, 3, 3))
