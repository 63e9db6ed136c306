"""What the tests of single methods share: sources of any type, and correct rounding in plain float64 arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

PRECISION = {torch.bfloat16: (8, -133), torch.float16: (11, -24), torch.float32: (24, -149)}  # bits, lowest exponent


@pytest.fixture
def round_exactly() -> Callable[[np.ndarray, torch.dtype], np.ndarray]:
    """``round_exactly(values, dtype)``: float64 to the nearest value of a type, ties to even, as float64."""

    def nearest(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
        bits, lowest = PRECISION[dtype]
        unit = np.ldexp(1.0, np.maximum(np.frexp(values)[1] - bits, lowest))
        rounded = np.rint(values / unit) * unit
        return np.where(np.abs(rounded) > torch.finfo(dtype).max, np.copysign(np.inf, rounded), rounded)

    return nearest


@pytest.fixture
def sources() -> Callable[..., list[torch.Tensor]]:
    """``sources(count, dtype, shape=(50, 41))``: normal numbers, the same ones every time."""

    def make(count: int, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (50, 41)) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(count)
        return [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]

    return make


@pytest.fixture
def family(sources: Callable[..., list[torch.Tensor]]) -> Callable[..., tuple[torch.Tensor, list[torch.Tensor], list]]:
    """``family(count, shape)``: a base, so many fine-tunes in float32, and their deltas in float64."""

    def make(count: int, shape: tuple[int, ...]) -> tuple[torch.Tensor, list[torch.Tensor], list[np.ndarray]]:
        base, *tensors = sources(count + 1, torch.float32, shape)
        return base, tensors, [tensor.double().numpy() - base.double().numpy() for tensor in tensors]

    return make
