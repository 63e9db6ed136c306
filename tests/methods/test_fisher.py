"""Fisher merging against its formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eutectic.errors import MethodError
from eutectic.methods import fisher, linear, merge_method
from eutectic.methods.state_dicts import merge_state_dicts


def draw(count: int, *shape: int) -> list[torch.Tensor]:
    return list(torch.randn((count, *shape), generator=torch.Generator().manual_seed(0)))


def test_the_formula() -> None:
    tensors, found = draw(3, 4, 5), [f**2 * 1e-3 for f in draw(4, 4, 5)[1:]]
    weight = [0.5, 1.0, 2.0]
    merged = fisher(tensors, statistics=found, weight=weight, floor=1e-4)
    shares = [w * np.maximum(f.double().numpy(), 1e-4) for w, f in zip(weight, found, strict=True)]
    wanted = sum(s * t.double().numpy() for s, t in zip(shares, tensors, strict=True)) / sum(shares)
    assert np.abs(merged.numpy() - wanted).max() < 1e-6


def test_without_statistics_or_information_it_is_the_mean() -> None:
    tensors, weight = draw(2, 6), [1.0, 3.0]
    mean = linear(tensors, weight=weight)
    for found in ([None, None], [torch.zeros(6), torch.full((6,), 1e-9)]):
        assert torch.allclose(fisher(tensors, statistics=found, weight=weight), mean, atol=1e-6)


def test_what_is_refused() -> None:
    tensors = draw(2, 3)
    with pytest.raises(MethodError, match="needs the fisher of each of 2 sources as statistics, not none"):
        fisher(tensors)
    with pytest.raises(MethodError, match="of every source or of none; source 1 has none"):
        fisher(tensors, statistics=[torch.ones(3), None])
    with pytest.raises(MethodError, match="weights of all sources are 0"):
        fisher(tensors, statistics=[torch.ones(3)] * 2, weight=0.0)
    with pytest.raises(MethodError, match="linear needs no statistics"):
        linear(tensors, statistics=[None, None], weight=1.0)
    with pytest.raises(MethodError, match='has scope="tensor" and no fast twin'):
        merge_method(name="odd", needs="fisher")(lambda tensors, *, statistics: tensors[0])


def test_state_dicts() -> None:
    (a, b), (f, g) = draw(2, 3), [torch.tensor([3.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 4.0])]
    models = [{"w": a, "b": a}, {"w": b, "b": b}]
    merged = merge_state_dicts(models, "fisher", statistics=[{"w": f}, {"w": g}])
    assert torch.equal(merged["w"], fisher([a, b], statistics=[f, g]))
    assert torch.equal(merged["b"], fisher([a, b], statistics=[None, None]))
    with pytest.raises(MethodError, match="needs the fisher"):
        merge_state_dicts(models, "fisher")
    with pytest.raises(MethodError, match="of every source or of none"):
        merge_state_dicts(models, "fisher", statistics=[{"w": f}, {}])
