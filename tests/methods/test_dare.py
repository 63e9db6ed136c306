"""DARE against numpy, with the masks that Philox gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from eutectic.methods import dare_linear, dare_ties
from eutectic.ops.random import Draws, bound, draw_key, philox_words

SEED, NAME = 9, "model.layers.3.weight"
DENSITIES = [[0.3, 0.6, 0.9], [0.0, 0.5, 1.0], [1e-9, 1.0, 0.01]]


def drop_and_rescale(delta: np.ndarray, source: int, density: float, rescale: bool | str) -> np.ndarray:
    words = philox_words(draw_key(SEED, NAME, source), 0, delta.size).numpy().reshape(delta.shape)
    kept = np.where(words < bound(density), delta, 0.0)
    if rescale in (True, "l1") and np.abs(kept).sum() > 0:
        return kept * np.abs(delta).sum() / np.abs(kept).sum()
    return kept / density if rescale == "inverse_density" and density else kept


def kept_deltas(
    tensors: list[torch.Tensor], base: torch.Tensor, density: list[float], rescale: bool | str
) -> list[np.ndarray]:
    deltas = [(tensor - base).double().numpy() for tensor in tensors]  # the difference is taken in float32
    return [drop_and_rescale(delta, s, d, rescale) for s, (delta, d) in enumerate(zip(deltas, density, strict=True))]


def linear_reference(
    kept: list[np.ndarray], base: torch.Tensor, weight: list[float], lambda_: float, normalize: bool
) -> np.ndarray:
    total = sum(w * k for w, k in zip(weight, kept, strict=True))
    return base.double().numpy() + lambda_ * total / (sum(weight) if normalize else 1.0)


def ties_reference(
    kept: list[np.ndarray], base: torch.Tensor, weight: list[float], lambda_: float, normalize: bool, sign_vote: str
) -> np.ndarray:
    votes = kept if sign_vote == "paper" else [w * k for w, k in zip(weight, kept, strict=True)]
    elected = np.where(sum(votes) >= 0, 1, -1)
    agree = [np.sign(w * k) == elected for w, k in zip(weight, kept, strict=True)]
    total = sum(w * k * a for w, k, a in zip(weight, kept, agree, strict=True))
    share = sum(w * a for w, a in zip(weight, agree, strict=True))
    return base.double().numpy() + lambda_ * (total / np.where(share != 0, share, 1) if normalize else total)


def assert_close(found: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-6, atol=2e-6 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("rescale", [True, False, "l1", "inverse_density"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weight", [[1.0, 1.0, 1.0], [0.3, -0.5, 1.1]])
@pytest.mark.parametrize("density", DENSITIES)
def test_dare_linear(
    rescale: bool | str, normalize: bool, weight: list[float], density: list[float], sources: Callable
) -> None:
    base, *tensors = sources(4)
    options: dict[str, Any] = {"lambda_": 0.7, "normalize": normalize}
    merged = dare_linear(
        tensors, base=base, weight=weight, density=density, rescale=rescale, draws=Draws(SEED, NAME), **options
    )
    assert_close(merged, linear_reference(kept_deltas(tensors, base, density, rescale), base, weight, **options))


@pytest.mark.parametrize("rescale", [True, False, "l1", "inverse_density"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("sign_vote", ["weighted", "paper"])
@pytest.mark.parametrize("weight", [[1.0, 1.0, 1.0], [0.3, -0.5, 1.1]])
@pytest.mark.parametrize("density", DENSITIES)
def test_dare_ties(
    rescale: bool | str, normalize: bool, sign_vote: str, weight: list[float], density: list[float], sources: Callable
) -> None:
    base, *tensors = sources(4)
    options: dict[str, Any] = {"lambda_": 0.7, "normalize": normalize, "sign_vote": sign_vote}
    merged = dare_ties(
        tensors, base=base, weight=weight, density=density, rescale=rescale, draws=Draws(SEED, NAME), **options
    )
    assert_close(merged, ties_reference(kept_deltas(tensors, base, density, rescale), base, weight, **options))


@pytest.mark.parametrize("method", [dare_linear, dare_ties])
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (3, 1)])
def test_tiny_tensors(method: Callable, shape: tuple[int, ...], sources: Callable) -> None:
    base, *tensors = sources(3, shape=shape)
    for density in (0.0, 0.5, 1.0):
        merged = method(tensors, base=base, weight=1.0, density=density, rescale=False, draws=Draws(SEED, NAME))
        kept = kept_deltas(tensors, base, [density] * 2, False)
        reference = linear_reference if method is dare_linear else ties_reference
        more = () if method is dare_linear else ("weighted",)
        expected = reference(kept, base, [1.0, 1.0], 1.0, False, *more)
        np.testing.assert_allclose(merged.numpy(), expected, rtol=2e-6, atol=2e-6)


def test_inverse_density_keeps_the_mean(sources: Callable) -> None:
    base, source = sources(2, shape=(1 << 18,))
    base = torch.zeros_like(base)
    source = source.abs()
    merged = dare_linear([source], base=base, weight=1.0, density=0.25, rescale="inverse_density")
    spread = (source.square().mean() * 3 / source.numel()).sqrt()  # of the mean of x b / p: x^2 (1 - p) / p
    assert abs(merged.mean() - source.mean()) < 5 * spread


@pytest.mark.parametrize("method", [dare_linear, dare_ties])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_types_round_the_float32_result(method: Callable, dtype: torch.dtype, sources: Callable) -> None:
    base, *tensors = sources(4, dtype)
    options: dict[str, Any] = {"weight": [0.3, 0.5, 1.1], "density": 0.3, "draws": Draws(SEED, NAME)}
    wide = method([tensor.float() for tensor in tensors], base=base.float(), **options)
    assert torch.equal(method(tensors, base=base, **options), wide.to(dtype))
