"""The classical methods against plain numpy in float64, written from their formulas."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from eutectic import methods
from eutectic.errors import MethodError
from eutectic.ops.random import Draws, draw_key, philox_words

Sources = Callable[..., list[torch.Tensor]]
CLOSE = {"rtol": 3e-6, "atol": 3e-7}


def arrays(tensors: list[torch.Tensor]) -> list[np.ndarray]:
    return [tensor.double().numpy() for tensor in tensors]


def keep_largest(values: np.ndarray, first: int, last: int) -> np.ndarray:
    """Entries of rank first .. last by magnitude, largest first, the rest zero."""
    order = np.argsort(-np.abs(values).ravel(), kind="stable")[first:last]
    kept = np.zeros(values.size)
    kept[order] = values.ravel()[order]
    return kept.reshape(values.shape)


def elect(deltas: list[np.ndarray], weights: list[float], normalize: bool) -> np.ndarray:
    weighted = np.stack([w * d for w, d in zip(weights, deltas, strict=True)])
    sign = np.where(weighted.sum(0) >= 0, 1, -1)
    agree = np.sign(weighted) == sign
    share = (agree * np.reshape(weights, (-1, *[1] * deltas[0].ndim))).sum(0)
    total = (weighted * agree).sum(0)
    return total / np.where(share == 0, 1, share) if normalize else total


def test_averages(sources: Sources) -> None:
    tensors = sources(3)
    a, b, c = arrays(tensors)
    np.testing.assert_allclose(methods.soup(tensors).numpy(), (a + b + c) / 3, **CLOSE)
    np.testing.assert_allclose(methods.soup(tensors, weight=[1, 0, 3]).numpy(), (a + 3 * c) / 4, **CLOSE)
    moving = 0.9 * (0.9 * a + 0.1 * b) + 0.1 * c
    np.testing.assert_allclose(methods.ema(tensors, decay=0.9).numpy(), moving, **CLOSE)
    np.testing.assert_allclose(
        methods.expo([tensors[1]], base=tensors[0], alpha=0.3).numpy(), b + 0.3 * (b - a), **CLOSE
    )
    with pytest.raises(MethodError, match="above zero"):
        methods.soup(tensors, weight=0.0)


@pytest.mark.parametrize("rows", [False, True])
def test_model_stock(rows: bool, sources: Sources) -> None:
    base, *tensors = sources(4)
    origin, *others = (x if rows else x.reshape(1, -1) for x in arrays([base, *tensors]))
    expected = []
    for r in range(len(origin)):
        deltas = [x[r] - origin[r] for x in others]
        cosine = np.mean([
            deltas[i] @ deltas[j] / np.linalg.norm(deltas[i]) / np.linalg.norm(deltas[j])
            for i in range(3) for j in range(i)
        ])  # fmt: skip
        expected.append(origin[r] + 3 * cosine / (1 + 2 * cosine) * np.mean(deltas, axis=0))
    found = methods.model_stock(tensors, base=base, filter_wise=rows).numpy()
    np.testing.assert_allclose(found, np.reshape(expected, base.shape), **CLOSE)


def test_karcher_is_where_the_logarithms_cancel(sources: Sources) -> None:
    tensors = sources(4)
    merged = methods.karcher(tensors, max_iter=100, tol=1e-12).double().numpy().ravel()
    units = [x.ravel() / np.linalg.norm(x) for x in arrays(tensors)]
    length = np.mean([np.linalg.norm(x) for x in arrays(tensors)])
    assert np.linalg.norm(merged) == pytest.approx(length, rel=1e-6)
    m = merged / np.linalg.norm(merged)
    step = sum(np.arccos(u @ m) / np.sin(np.arccos(u @ m)) * (u - (u @ m) * m) for u in units)
    assert np.linalg.norm(step) < 1e-5


@pytest.mark.parametrize("anchored", [False, True])
def test_multislerp(anchored: bool, sources: Sources) -> None:
    base, *tensors = sources(4)
    origin = base.double().numpy() if anchored else np.zeros(base.shape)
    vectors = [x - origin for x in arrays(tensors)]
    weights = np.array([0.5, 0.2, 0.3])
    lengths = np.array([np.linalg.norm(v) for v in vectors])
    mean = sum(w * v / n for w, v, n in zip(weights, vectors, lengths, strict=True))
    expected = origin + weights @ lengths * mean / np.linalg.norm(mean)
    found = methods.multislerp(tensors, base=base if anchored else None, weight=(5 * weights).tolist())
    np.testing.assert_allclose(found.numpy(), expected, **CLOSE)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_nuslerp(axis: int | None, sources: Sources) -> None:
    base, *tensors = sources(3)
    a, b = (x - base.double().numpy() for x in arrays(tensors))
    cosine = (a * b).sum(axis, keepdims=True) / np.sqrt(
        (a * a).sum(axis, keepdims=True) * (b * b).sum(axis, keepdims=True)
    )
    angle = np.arccos(cosine)
    expected = base.double().numpy() + (np.sin(0.75 * angle) * a + np.sin(0.25 * angle) * b) / np.sin(angle)
    options = {"nuslerp_flatten": axis is None, "nuslerp_row_wise": axis == 0}
    found = methods.nuslerp(tensors, base=base, weight=[3, 1], **options)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("density", [0.3, 0.995])
def test_breadcrumbs(density: float, sources: Sources) -> None:
    base, *tensors = sources(3)
    deltas = arrays([tensor - base for tensor in tensors])
    keep = int(density * base.numel())
    top = min(int(0.1 * base.numel()), base.numel() - keep)
    kept = [keep_largest(delta, top, top + keep) for delta in deltas]
    origin, options = base.double().numpy(), {"base": base, "weight": [0.5, 0.7], "density": density, "gamma": 0.1}
    plain = origin + 0.5 * kept[0] + 0.7 * kept[1]
    np.testing.assert_allclose(methods.breadcrumbs(tensors, **options).numpy(), plain, **CLOSE)
    ties = origin + elect(kept, [0.5, 0.7], normalize=True)
    np.testing.assert_allclose(methods.breadcrumbs_ties(tensors, normalize=True, **options).numpy(), ties, **CLOSE)


def test_small_tensors_keep_their_change() -> None:
    """Fewer than 1 / gamma entries: nothing is an outlier, and something stays."""
    for size in (1, 2, 10):
        merged = methods.breadcrumbs([torch.ones(size)], base=torch.zeros(size), weight=1.0, density=0.5)
        assert merged.count_nonzero() == max(1, size // 2)


@pytest.mark.parametrize("rescale", [True, False, "inverse_probability"])
def test_della(rescale: bool | str, sources: Sources) -> None:
    base, *tensors = sources(3)
    kept = []
    for k, tensor in enumerate(tensors):
        delta = (tensor - base).double().numpy()
        ranks = np.abs(delta).argsort(axis=1, kind="stable").argsort(axis=1)
        p = 0.4 + ranks / (delta.shape[1] - 1) * 0.2
        words = philox_words(draw_key(3, "w", k), 0, delta.size).numpy().reshape(delta.shape)
        chosen = np.where(words / 2**32 < p, delta, 0)
        chosen = chosen / p if rescale == "inverse_probability" else chosen
        kept.append(chosen * (np.abs(delta).sum() / np.abs(chosen).sum() if rescale is True else 1))
    options = {"base": base, "weight": [0.5, 0.7], "density": 0.5, "epsilon": 0.1, "rescale": rescale}
    origin, draws = base.double().numpy(), Draws(3, "w")
    linear = methods.della_linear(tensors, draws=draws, **options)
    np.testing.assert_allclose(linear.numpy(), origin + 0.5 * kept[0] + 0.7 * kept[1], **CLOSE)
    ties = methods.della(tensors, draws=draws, **options)
    np.testing.assert_allclose(ties.numpy(), origin + elect(kept, [0.5, 0.7], normalize=True), **CLOSE)


def test_della_keeps_what_it_says() -> None:
    delta = torch.arange(1.0, 1001.0).repeat(400, 1)
    merged = methods.della_linear([delta], base=torch.zeros_like(delta), weight=1.0, density=0.5, rescale=False)
    share = (merged != 0).double().mean(0)
    assert share[:100].mean().item() == pytest.approx(0.365, abs=0.01)
    assert share[-100:].mean().item() == pytest.approx(0.635, abs=0.01)
    with pytest.raises(MethodError, match=r"choose epsilon below 0\.1"):
        methods.della_linear([delta], base=delta, weight=1.0, density=0.9)


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_sce(share: float, sources: Sources) -> None:
    base, *tensors = sources(4)
    deltas = np.stack(arrays([tensor - base for tensor in tensors]))
    if share < 1:
        variance = keep_largest(deltas.var(0), 0, int(share * base.numel()))
        deltas = np.where(variance > 0, deltas, 0)
    energies = (deltas**2).mean((1, 2))
    agree = np.sign(deltas) == np.where(deltas.sum(0) >= 0, 1, -1)
    weights = (energies / energies.sum())[:, None, None] * agree
    expected = base.double().numpy() + (weights * deltas).sum(0) / np.maximum(weights.sum(0), 1e-6)
    np.testing.assert_allclose(methods.sce(tensors, base=base, select_topk=share).numpy(), expected, **CLOSE)


def test_ram_and_its_correction(sources: Sources) -> None:
    base, *tensors = sources(4)
    deltas = np.stack(arrays([tensor - base for tensor in tensors]))
    active = np.abs(deltas) > 1.0
    count = active.sum(0)
    mean = (deltas * active).sum(0) / np.maximum(count, 1)
    found = methods.ram(tensors, base=base, epsilon=1.0).numpy()
    np.testing.assert_allclose(found, base.double().numpy() + mean, **CLOSE)
    shared, alone = (active & (count > 1)).sum((1, 2)), (active & (count == 1)).sum((1, 2))
    factors = 1 + 0.5 * np.minimum(shared / alone, 2.0)
    single = (deltas * active * factors[:, None, None]).sum(0)
    expected = base.double().numpy() + np.where(count == 1, single, mean)
    found = methods.ramplus_tl(tensors, base=base, epsilon=1.0, r=0.5, alpha=2.0).numpy()
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_magmax_and_nearswap(sources: Sources) -> None:
    base, *tensors = sources(4)
    origin = base.double().numpy()
    deltas = np.stack(arrays([tensor - base for tensor in tensors]))
    largest = np.take_along_axis(deltas, np.abs(deltas).argmax(0)[None], 0)[0]
    np.testing.assert_allclose(methods.magmax(tensors, base=base, lambda_=0.5).numpy(), origin + 0.5 * largest, **CLOSE)
    w = np.minimum(0.3 / np.maximum(np.abs(deltas[0]), 1e-6), 1)
    np.testing.assert_allclose(
        methods.nearswap([tensors[0]], base=base, t=0.3).numpy(), origin + w * deltas[0], **CLOSE
    )


def test_arcee_fusion(sources: Sources) -> None:
    base, other = sources(2)
    x, y = arrays([base, other])
    q, p = (np.exp(v) / np.exp(v).sum(-1, keepdims=True) + 1e-8 for v in (x, y))
    importance = np.abs(y - x) * (p * np.log(p / q)).sum(-1, keepdims=True)
    low, middle, high = (np.sort(importance, axis=None)[int(f * (x.size - 1))] for f in (0.25, 0.5, 0.75))
    taken = importance >= middle + 1.5 * (high - low)
    assert 0 < taken.sum() < x.size / 2
    np.testing.assert_allclose(methods.arcee_fusion([other], base=base).numpy(), np.where(taken, y, x), **CLOSE)
