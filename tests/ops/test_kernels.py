"""Decoding and encoding in the kernels: every pattern of the narrow types, and every rounding boundary."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eutectic.ops.program import Tile
from eutectic.ops.rounding import round_once
from eutectic.ops.weighted_sum import WeightedSum
from eutectic.weights.dtypes import BY_TORCH

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def through_kernel(values: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, int]:
    """`values` in another type, by a weighted sum of one source; and how many blocks were found not finite."""
    code, out_code = (BY_TORCH[str(kind).removeprefix("torch.")].code for kind in (values.dtype, dtype))
    rows, bad = values.view(torch.uint8).numpy().reshape(1, -1), np.zeros(1, dtype=np.int64)
    out = torch.empty(len(values), dtype=dtype)
    tile = Tile(rows, np.array([code], dtype=np.int64), len(values), 0, 0, bad)
    WeightedSum([1.0]).combine(tile, None, out.view(torch.uint8).numpy(), out_code)
    return out, int(bad[0])


def patterns(dtype: torch.dtype) -> torch.Tensor:
    """Every value of a type of one or two bytes."""
    size = dtype.itemsize
    return torch.arange(1 << 8 * size).to(INTEGERS[size]).view(dtype)


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal bits; any NaN equals any other."""
    assert found.dtype == expected.dtype
    kind = INTEGERS[found.dtype.itemsize]
    nan, expected_nan = found.double().isnan(), expected.double().isnan()
    assert torch.equal(nan, expected_nan)
    assert torch.equal(found.view(kind)[~nan], expected.view(kind)[~nan])


def narrow(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """torch's conversion; for e4m3 NaN beyond its range, where torch saturates from version 2.13 on."""
    found = values.to(dtype)
    if dtype == E4M3:
        found.view(torch.uint8)[values.abs() > 464] = 0x7F
    return found


def nonzero(values: torch.Tensor) -> torch.Tensor:
    return values[values.double() != 0]


@pytest.mark.parametrize("dtype", [BF16, F16, E4M3, E5M2], ids=str)
@pytest.mark.parametrize("wide", [F32, F64], ids=str)
def test_every_pattern_decodes_exactly(dtype: torch.dtype, wide: torch.dtype) -> None:
    values = nonzero(patterns(dtype))
    found, _ = through_kernel(values, wide)
    assert_same(found, values.float().to(wide))
    assert_same(through_kernel(values, dtype)[0], values)


@pytest.mark.parametrize("dtype", [BF16, F16, F32, F64, E4M3, E5M2], ids=str)
def test_what_is_not_finite_is_counted(dtype: torch.dtype) -> None:
    values = torch.zeros(5000).to(dtype)
    assert through_kernel(values, F32)[1] == 0
    for strange in (torch.nan, *([] if dtype == E4M3 else [torch.inf, -torch.inf])):
        spoiled = values.clone()
        spoiled[4321] = strange
        assert through_kernel(spoiled, F32)[1] > 0
    largest = torch.full((3000,), torch.finfo(dtype).max, dtype=F64).to(dtype)
    assert through_kernel(largest, F64)[1] == 0


def dense_floats() -> torch.Tensor:
    """3.1 million float32: every sign, exponent and high 7 mantissa bits, with the low bits around each boundary."""
    low = torch.tensor([(k << 13) | rest for k in range(8) for rest in (0, 1, 0x0FFF, 0x1000, 0x1001, 0x1FFF)])
    bits = (torch.arange(1 << 16)[:, None] << 16) | low
    return nonzero(bits.reshape(-1).to(torch.int32).view(F32))


@pytest.mark.parametrize("dtype", [BF16, F16, F32, F64, E4M3, E5M2], ids=str)
def test_float32_encodes_as_torch_does(dtype: torch.dtype) -> None:
    values = dense_floats()
    assert len(values) > 2_000_000
    assert_same(through_kernel(values, dtype)[0], narrow(values, dtype))


def boundaries(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 at and beside the midpoints between neighbours of a type, and the codes that they round to.

    Codes of values that are not negative ascend with the values; the one after the largest means overflow.
    """
    size, top = dtype.itemsize, torch.tensor([torch.finfo(dtype).max]).to(dtype).view(INTEGERS[dtype.itemsize]).item()
    if size == 4:  # a sample, and the ends of the subnormals and of all
        random = torch.randint(top, (200_000,), generator=torch.Generator().manual_seed(5))
        codes = torch.cat([torch.arange(1000), random, (1 << 23) + torch.arange(-9, 9), top - torch.arange(9)])
    else:
        codes = torch.arange(top + 1)
    low = codes.to(INTEGERS[size]).view(dtype).double()
    high = (codes + 1).clamp(max=top).to(INTEGERS[size]).view(dtype).double()
    below_top = torch.tensor([top - 1]).to(INTEGERS[size]).view(dtype).double()
    middle = torch.where(codes == top, low + (low - below_top) / 2, (low + high) / 2)
    infinity = torch.full_like(middle, torch.inf)
    values = torch.cat([middle, middle.nextafter(-infinity), middle.nextafter(infinity)])
    return values, torch.cat([codes + codes % 2, codes, codes + 1])


@pytest.mark.parametrize("dtype", [BF16, F16, F32, E4M3, E5M2], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_float64_is_rounded_once(dtype: torch.dtype, sign: int) -> None:
    values, codes = boundaries(dtype)
    kind = INTEGERS[dtype.itemsize]
    if sign < 0:
        codes = codes | (1 << 8 * dtype.itemsize - 1)
    expected = codes.to(kind).view(dtype)
    assert_same(through_kernel(sign * values, dtype)[0], expected)
    assert_same(round_once(sign * values, dtype), expected)


@pytest.mark.parametrize("dtype", [BF16, F16, F32, E4M3, E5M2], ids=str)
def test_float64_beyond_every_range(dtype: torch.dtype) -> None:
    values = torch.tensor([1e300, -1e300, torch.inf, -torch.inf, torch.nan, 1e-300, -1e-300, 5e-324], dtype=F64)
    expected = narrow(values.float(), dtype)
    assert_same(through_kernel(values, dtype)[0], expected)
    assert_same(round_once(values, dtype), expected)
    assert_same(round_once(values.float(), dtype), expected)


@pytest.mark.parametrize("count", [1, 2047, 2048, 2049, 70_000])
def test_every_length_is_converted_to_its_end(count: int) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(count))
    assert_same(through_kernel(values, BF16)[0], values.to(BF16))
