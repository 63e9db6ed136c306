"""Linear against numpy: the float64 average, rounded once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from eutectic.errors import MethodError
from eutectic.methods import linear


def reference(tensors: list[torch.Tensor], weight: list[float], normalize: bool) -> np.ndarray:
    shares = [w / sum(weight) if normalize else w for w in weight]
    return np.asarray(sum(share * t.double().numpy() for share, t in zip(shares, tensors, strict=True)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("weight", [[1.0], [0.5, 0.5], [0.3, 0.7], [1, -0.25, 2.5], [3, 1, 4, 1, 5]])
@pytest.mark.parametrize("normalize", [True, False])
def test_every_element_is_the_float64_sum_rounded_once(
    dtype: torch.dtype, weight: list[float], normalize: bool, sources: Callable, round_exactly: Callable
) -> None:
    tensors = sources(len(weight), dtype)
    merged = linear(tensors, weight=weight, normalize=normalize)
    expected = round_exactly(reference(tensors, weight, normalize), dtype)
    assert merged.dtype == dtype
    assert (merged.double().numpy() == expected).all()


def test_float64_keeps_its_precision(sources: Callable) -> None:
    tensors = [tensor.double() / 3 for tensor in sources(3)]
    merged = linear(tensors, weight=[0.1, 0.2, 0.3])
    np.testing.assert_allclose(merged.numpy(), reference(tensors, [0.1, 0.2, 0.3], True), rtol=1e-14, atol=1e-15)


def test_the_result_overflows_and_underflows_as_rounding_says(round_exactly: Callable) -> None:
    edges = torch.tensor([65504, 65504, 6e-8, -6e-8, 0.0, 40000], dtype=torch.float16)
    with np.errstate(invalid="ignore"):
        for weight in (1.0002, 1.001, 0.4, 0.6):
            merged = linear([edges], weight=weight, normalize=False)
            expected = round_exactly(reference([edges], [weight], False), torch.float16)
            assert (merged.double().numpy() == expected).all()


@pytest.mark.parametrize("weight", [[1, -1], [0.0, 0.0], [1e-9, 1e-9]])
def test_weights_that_sum_to_zero_cannot_be_normalised(weight: list[float], sources: Callable) -> None:
    with pytest.raises(MethodError, match="normalize: false"):
        linear(sources(2), weight=weight)
    assert linear(sources(2), weight=weight, normalize=False).isfinite().all()
