"""Slerp against numpy: Shoemake's formula on whole tensors in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from eutectic.methods import slerp


def reference(a: torch.Tensor, b: torch.Tensor, t: float) -> np.ndarray:
    x, y = a.double().numpy().ravel(), b.double().numpy().ravel()
    lengths = np.linalg.norm(x), np.linalg.norm(y)
    cosine = 0.0 if min(lengths) <= 1e-8 else x @ y / (lengths[0] * lengths[1])
    if abs(cosine) > 0.9995:
        return ((1 - t) * x + t * y).reshape(a.shape)
    angle = np.arccos(cosine)
    return ((np.sin((1 - t) * angle) * x + np.sin(t * angle) * y) / np.sin(angle)).reshape(a.shape)


def ends(kind: str, sources: Callable) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = sources(2)
    near = a + 0.9 * b
    return {
        "random": (a, b),
        "near": (a, near),
        "lengths": (a, 1000 * b),
        "parallel": (a, 3 * a),
        "opposite": (a, -a),
        "almost parallel": (a, a + 0.01 * b),
        "zero": (a, torch.zeros_like(a)),
        "both zero": (torch.zeros_like(a), torch.zeros_like(a)),
    }[kind]


KINDS = ["random", "near", "lengths", "parallel", "opposite", "almost parallel", "zero", "both zero"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", [-0.2, 0.0, 0.3, 0.5, 1.0, 1.5])
def test_float32(kind: str, t: float, sources: Callable) -> None:
    a, b = ends(kind, sources)
    expected = reference(a, b, t)
    np.testing.assert_allclose(slerp([a, b], t=t).numpy(), expected, rtol=2e-7, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["random", "near", "parallel"])
def test_narrow_types_are_rounded_once(
    dtype: torch.dtype, kind: str, sources: Callable, round_exactly: Callable
) -> None:
    a, b = (end.to(dtype) for end in ends(kind, sources))
    assert (slerp([a, b], t=0.3).double().numpy() == round_exactly(reference(a, b, 0.3), dtype)).all()


@pytest.mark.parametrize(("t", "at"), [(0.0, 0), (1.0, 1)])
def test_the_ends_are_given_back(t: float, at: int, sources: Callable) -> None:
    tensors = sources(2)
    assert torch.equal(slerp(tensors, t=t), tensors[at])


def test_a_base_by_keyword_comes_first(sources: Callable) -> None:
    a, b = sources(2)
    assert torch.equal(slerp([b], base=a, t=0.25), slerp([a, b], t=0.25))


def test_lengths_are_kept_between_unit_vectors(sources: Callable) -> None:
    a, b = (tensor.double() / tensor.double().norm() for tensor in sources(2))
    for t in (0.1, 0.5, 0.9):
        assert slerp([a, b], t=t).norm().item() == pytest.approx(1.0, abs=1e-12)


def test_the_gradient_is_the_derivative() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 3, generator=generator).double().requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(lambda x, y: slerp([x, y], t=0.3), (a, b))
