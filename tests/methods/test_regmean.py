"""RegMean against least squares in float64, with and without full rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eutectic.errors import MethodError
from eutectic.methods import linear, regmean


def draw(rows: int, sources: int = 3) -> tuple[list[torch.Tensor], list[np.ndarray], list[torch.Tensor]]:
    """Layers [4, 6], inputs [rows, 6] and their Gram matrices."""
    random = np.random.default_rng(rows)
    tensors = [torch.from_numpy(random.normal(size=(4, 6)).astype(np.float32)) for _ in range(sources)]
    inputs = [random.normal(size=(rows, 6)) * [3, 1, 1, 1, 1, 0.1] for _ in range(sources)]
    return tensors, inputs, [torch.from_numpy((x.T @ x / len(x)).astype(np.float32)) for x in inputs]


def test_it_is_the_least_squares_of_all_inputs() -> None:
    tensors, inputs, grams = draw(50)
    weight = [1.0, 2.0, 0.5]
    merged = regmean(tensors, statistics=grams, weight=weight, ratio=1.0)
    x = np.concatenate([np.sqrt(w) * x for w, x in zip(weight, inputs, strict=True)])
    y = np.concatenate([
        np.sqrt(w) * x @ t.double().numpy().T for w, x, t in zip(weight, inputs, tensors, strict=True)
    ])  # fmt: skip
    wanted = np.linalg.lstsq(x, y, rcond=None)[0].T
    assert np.abs(merged.numpy() - wanted).max() < 1e-5


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.9])
def test_the_formula_of_the_paper(ratio: float) -> None:
    tensors, _, grams = draw(50)
    merged = regmean(tensors, statistics=grams, ratio=ratio)
    g = [f.double().numpy() * ratio + np.diag(np.diag(f.double().numpy())) * (1 - ratio) for f in grams]
    wanted = np.linalg.solve(sum(g), sum(a @ t.double().numpy().T for a, t in zip(g, tensors, strict=True))).T
    assert np.abs(merged.numpy() - wanted).max() < 1e-5


def test_directions_without_inputs_keep_the_mean() -> None:
    tensors, inputs, grams = draw(1, sources=2)  # together two directions of six
    merged, mean = regmean(tensors, statistics=grams, ratio=1.0), linear(tensors, weight=1.0)
    rest = np.linalg.svd(np.concatenate(inputs))[2][2:].T
    assert np.abs((merged - mean).double().numpy() @ rest).max() < 1e-5
    for x, tensor in zip(inputs, tensors, strict=True):  # and what each source's inputs become is kept
        assert np.abs(x @ (merged - tensor).double().numpy().T).max() < 1e-4
    zero = [torch.zeros(6, 6)] * 2
    assert torch.allclose(regmean(tensors, statistics=zero), mean, atol=1e-6)


def test_convolutions_and_tensors_without_a_gram() -> None:
    tensors, _, grams = draw(50)
    flat = regmean(tensors, statistics=grams)
    assert torch.equal(regmean([t.reshape(4, 2, 3) for t in tensors], statistics=grams).flatten(1), flat)
    mean = linear(tensors, weight=1.0)
    assert torch.allclose(regmean(tensors, statistics=[None] * 3), mean, atol=1e-6)


def test_the_weights_must_not_all_be_zero() -> None:
    tensors, _, grams = draw(50)
    with pytest.raises(MethodError, match="weights of all sources are 0"):
        regmean(tensors, statistics=grams, weight=0.0)
