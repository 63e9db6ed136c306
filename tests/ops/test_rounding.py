"""`round_once`: types that need no care, shapes, gradients. Its boundaries are in test_kernels, beside the kernel's."""

from __future__ import annotations

import pytest
import torch

from eutectic.ops.rounding import round_once

NARROW = (torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_float32_is_torchs_own_conversion(dtype: torch.dtype) -> None:
    values = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)) * 100
    assert torch.equal(round_once(values, dtype).double(), values.to(dtype).double())


def test_float64_to_bfloat16_is_not_rounded_twice() -> None:
    value = torch.tensor([1 + 2.0**-8 + 2.0**-40], dtype=torch.float64)
    assert value.to(torch.float32).to(torch.bfloat16).item() == 1
    assert round_once(value, torch.bfloat16).item() == 1 + 2.0**-7


@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_shape_is_kept(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    rounded = round_once(torch.ones(shape, dtype=torch.float64), dtype)
    assert (rounded.shape, rounded.dtype) == (shape, dtype)


def test_gradients_pass() -> None:
    values = torch.tensor([0.1, 0.2], dtype=torch.float64, requires_grad=True)
    round_once(values, torch.bfloat16).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1, 1]
