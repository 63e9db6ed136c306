"""R-TSVM against full decompositions in numpy: weights from outliers, ranks from density."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from eutectic.methods import r_tsvm, tsv_m

Family = Callable[..., tuple[torch.Tensor, list[torch.Tensor], list[np.ndarray]]]


def polar(columns: np.ndarray) -> np.ndarray:
    u, _, vt = np.linalg.svd(columns, full_matrices=False)
    return u @ vt


def reference(deltas: list[np.ndarray], weight: list[float], outlier: str, epsilon: float, eta: float) -> np.ndarray:
    r, count = min(deltas[0].shape), len(deltas)
    limits = [np.abs(d).mean(1, keepdims=True) + 3 * np.abs(d).std(1, keepdims=True) for d in deltas]
    sums = np.array([np.abs(d)[np.abs(d) > limit].sum() for d, limit in zip(deltas, limits, strict=True)])
    shares = np.array([np.mean(np.abs(d) > epsilon * np.abs(d).max()) * r / count * (1 + eta) for d in deltas])
    shares *= min(1, r / shares.sum())
    if outlier == "clip":
        deltas = [np.clip(d, -limit, limit) for d, limit in zip(deltas, limits, strict=True)]
    else:
        weight = list(weight * sums / sums.mean())
    spectra = [np.linalg.svd(w * d, full_matrices=False) for w, d in zip(weight, deltas, strict=True)]
    ranks = np.floor(shares + 1e-9).astype(int)
    for at in np.argsort([-s[1][k] for s, k in zip(spectra, ranks, strict=True)])[: round(shares.sum()) - ranks.sum()]:
        ranks[at] += 1
    left = np.concatenate([s[0][:, :k] for s, k in zip(spectra, ranks, strict=True)], 1)
    values = np.concatenate([s[1][:k] for s, k in zip(spectra, ranks, strict=True)])
    right = np.concatenate([s[2][:k].T for s, k in zip(spectra, ranks, strict=True)], 1)
    return polar(left) * values @ polar(right).T


@pytest.mark.parametrize("shape", [(24, 24), (24, 41), (41, 24)])
@pytest.mark.parametrize("outlier", ["weight", "clip"])
@pytest.mark.parametrize(("epsilon", "eta"), [(0.01, 0.25), (0.5, 0.0), (0.3, 1.0)])
def test_against_numpy(shape: tuple[int, int], outlier: str, epsilon: float, eta: float, family: Family) -> None:
    base, tensors, deltas = family(3, shape)
    weight = [1.0, -0.5, 2.0]
    options = {"outlier": outlier, "epsilon": epsilon, "eta": eta}
    merged = r_tsvm(tensors, base=base, weight=weight, lambda_=0.7, **options).numpy()
    expected = base.double().numpy() + 0.7 * reference(deltas, weight, outlier, epsilon, eta)
    np.testing.assert_allclose(merged, expected, rtol=1e-6, atol=2e-6)


def test_equal_magnitudes_have_no_outliers(family: Family) -> None:
    base, tensors, _ = family(3, (6, 9))
    signs = [base + torch.where(tensor > 0, 1.0, -1.0) for tensor in tensors]  # rows without deviation
    torch.testing.assert_close(
        r_tsvm(signs, base=base, eta=0.0), tsv_m(signs, base=base), rtol=1e-5, atol=1e-5
    )  # no outlier, no negligible entry: plain TSV-M


def test_clipping_bounds_what_one_broken_entry_does(family: Family) -> None:
    base, tensors, _ = family(3, (30, 400))
    broken = [tensors[0].clone(), *tensors[1:]]
    broken[0][3, 5] += 1000.0
    clean = r_tsvm(tensors, base=base, outlier="clip", epsilon=0.0)
    moved = (r_tsvm(broken, base=base, outlier="clip", epsilon=0.0) - clean).norm()
    plain = (tsv_m(broken, base=base) - tsv_m(tensors, base=base)).norm()
    assert moved < 0.25 * plain


def test_zero_deltas_and_many_tasks(family: Family) -> None:
    base, tensors, _ = family(7, (3, 8))
    assert torch.equal(r_tsvm([base, base], base=base), base)
    for outlier in ("weight", "clip"):
        assert r_tsvm(tensors, base=base, outlier=outlier).isfinite().all()
