"""Task arithmetic against numpy: base plus weighted differences in float64, rounded once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from eutectic.errors import MethodError
from eutectic.methods import task_arithmetic


def reference(
    tensors: list[torch.Tensor], base: torch.Tensor, weight: list[float], lambda_: float, normalize: bool
) -> np.ndarray:
    origin = base.double().numpy()
    scales = [lambda_ * w / (sum(weight) if normalize else 1.0) for w in weight]
    return origin + sum(scale * (t.double().numpy() - origin) for scale, t in zip(scales, tensors, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("weight", [[1.0], [0.3, 0.7], [1, -0.25, 2.5]])
@pytest.mark.parametrize("lambda_", [1.0, 0.4, -1.5])
@pytest.mark.parametrize("normalize", [True, False])
def test_every_element_is_the_float64_sum_rounded_once(
    dtype: torch.dtype, weight: list[float], lambda_: float, normalize: bool, sources: Callable, round_exactly: Callable
) -> None:
    base, *tensors = sources(1 + len(weight), dtype)
    merged = task_arithmetic(tensors, base=base, weight=weight, lambda_=lambda_, normalize=normalize)
    expected = round_exactly(reference(tensors, base, weight, lambda_, normalize), dtype)
    assert merged.dtype == dtype
    assert (merged.double().numpy() == expected).all()


def test_opposite_deltas_cancel_exactly(sources: Callable) -> None:
    base = sources(1)[0].bfloat16().float()
    step = torch.full_like(base, 2.0**-6)
    assert torch.equal(task_arithmetic([base + step, base - step], base=base, weight=0.3), base)


def test_huge_weights_leave_frozen_entries_alone(sources: Callable) -> None:
    base, other = sources(2)
    half = torch.where(torch.arange(base.numel()).reshape(base.shape) % 2 == 0, base, other)
    merged = task_arithmetic([half, half], base=base, weight=[1e6, -3e5])
    assert torch.equal(merged[half == base], base[half == base])


def test_weights_that_sum_to_zero_cannot_be_normalised(sources: Callable) -> None:
    base, *tensors = sources(3)
    with pytest.raises(MethodError, match="normalize: false"):
        task_arithmetic(tensors, base=base, weight=[1, -1], normalize=True)
