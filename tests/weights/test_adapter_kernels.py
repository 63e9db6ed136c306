"""Compiled sums of an adapter: the sum that their docstring names, to the bit, for any range, rank and type of base."""

from __future__ import annotations

import numpy as np
import pytest

from eutectic.weights.adapter_kernels import add_product, rescale

NONE = np.empty(0, dtype=np.uint16)
ROWS, WIDTH = 37, 600  # neither a multiple of what a kernel holds at a time
SCALE = np.float32(0.7)


def factors(rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(rank)
    left, right = random.standard_normal((ROWS, rank), np.float32), random.standard_normal((rank, WIDTH), np.float32)
    return left, right, random.standard_normal((ROWS, WIDTH), np.float32)


def in_order(values: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The sum over the rank in its order, every product and sum rounded to float32."""
    total = np.zeros((ROWS, WIDTH), dtype=np.float32)
    for r in range(left.shape[1]):
        total += left[:, r : r + 1] * right[r]
    return values + SCALE * total


@pytest.mark.parametrize("rank", [1, 3, 4, 5, 8, 16, 17])
def test_the_sum_is_the_one_in_order_to_the_bit(rank: int) -> None:
    left, right, base = factors(rank)
    values = base.copy().reshape(-1)
    add_product(NONE, values, left, right, SCALE, 0)
    np.testing.assert_array_equal(values.view(np.uint32), in_order(base, left, right).reshape(-1).view(np.uint32))
    exact = base + np.float64(SCALE) * (left.astype(np.float64) @ right)
    np.testing.assert_allclose(values.reshape(ROWS, WIDTH), exact, rtol=0, atol=2e-6 * np.abs(exact).max())


@pytest.mark.parametrize("kind", ["bfloat16", "float32", "float64"])
def test_any_range_has_the_same_bits(kind: str) -> None:
    left, right, base = factors(7)
    halves = (base.view(np.uint32) >> 16).astype(np.uint16).reshape(-1) if kind == "bfloat16" else NONE
    before = (halves.astype(np.uint32) << 16).view(np.float32) if kind == "bfloat16" else base.reshape(-1)
    before = before.astype(np.float64 if kind == "float64" else np.float32)
    whole = in_order(before.reshape(ROWS, WIDTH), left, right).reshape(-1)
    n = ROWS * WIDTH
    for start, stop in ((0, n), (0, 1), (n - 1, n), (599, 601), (250, 260), (17 * 600 + 3, 34 * 600 - 5), (600, 1200)):
        values = np.full(stop - start, np.nan) if len(halves) else before[start:stop].copy()
        values = values.astype(before.dtype)
        add_product(halves[start:stop], values, left, right, SCALE, start)
        assert values.tobytes() == whole[start:stop].tobytes(), (start, stop)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_are_brought_to_their_lengths(dtype: type[np.floating]) -> None:
    values = factors(2)[2].astype(dtype)
    values[3] = 0.0
    magnitude = np.linspace(0.5, 2.0, ROWS, dtype=np.float32)
    lengths = np.sqrt((values.astype(np.float64) ** 2).sum(axis=1))
    expected = values * (magnitude / np.where(lengths > 0, lengths, 1.0))[:, None]
    found = values.copy()
    rescale(found, magnitude)
    np.testing.assert_allclose(found, expected, rtol=1e-6 if dtype is np.float32 else 1e-13)
    part = values[5:9].copy()
    rescale(part, magnitude[5:9])
    assert part.tobytes() == found[5:9].tobytes()
