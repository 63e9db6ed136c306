"""Weighted sums and Gram matrices: torch, kernel and numpy say the same, wherever tiles are cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from eutectic.ops.program import BLOCK, Program, Tile
from eutectic.ops.weighted_sum import GramSum, WeightedSum, add_weighted, sum_weighted

CODES = {np.dtype(np.float16): 1, np.dtype(np.float32): 2, np.dtype(np.float64): 3}
COEFFICIENTS = [0.3, -1.7, 1e-3]


def numbers(count: int, dtypes: Sequence[Any]) -> list[np.ndarray]:
    random = np.random.default_rng(count)
    return [random.standard_normal(count).astype(dtype) for dtype in dtypes]


def tile_of(arrays: Sequence[np.ndarray], first: int, n: int) -> Tile:
    width = n * max(array.itemsize for array in arrays)
    rows = np.zeros((len(arrays), width), dtype=np.uint8)
    for row, array in zip(rows, arrays, strict=True):
        row[: n * array.itemsize] = array[first : first + n].view(np.uint8)
    codes = np.array([CODES[array.dtype] for array in arrays], dtype=np.int64)
    return Tile(rows, codes, n, first, first // BLOCK, np.zeros(len(arrays), dtype=np.int64))


def combine(program: Program, found: Any, arrays: Sequence[np.ndarray], cuts: Sequence[int]) -> np.ndarray:
    """The whole result in float64, tile by tile."""
    parts = []
    for first, last in zip(cuts, [*cuts[1:], len(arrays[0])], strict=True):
        out = np.empty(8 * (last - first), dtype=np.uint8)
        program.combine(tile_of(arrays, first, last - first), found, out, 3)
        parts.append(out.view(np.float64))
    return np.concatenate(parts)


@pytest.mark.parametrize("dtypes", [["f4"] * 3, ["f2", "f8", "f4"], ["f8"] * 3])
@pytest.mark.parametrize("cuts", [[0], [0, 1], [0, 2048, 5000], [0, BLOCK]])
def test_a_weighted_sum_is_numpys_in_float64(dtypes: list[str], cuts: list[int]) -> None:
    arrays = numbers(70_001, dtypes)
    wide = [array.astype(np.float64) for array in arrays]
    expected = COEFFICIENTS[0] * wide[0] + COEFFICIENTS[1] * wide[1] + COEFFICIENTS[2] * wide[2]
    assert (combine(WeightedSum(COEFFICIENTS), None, arrays, cuts) == expected).all()
    assert (sum_weighted([torch.from_numpy(a) for a in arrays], COEFFICIENTS).numpy() == expected).all()


@pytest.mark.parametrize("dtypes", [["f4"] * 3, ["f2", "f8", "f4"], ["f8"] * 3])
@pytest.mark.parametrize("cuts", [[0], [0, 2048, 5000], [0, BLOCK]])
def test_an_anchored_sum_adds_differences_to_the_base(dtypes: list[str], cuts: list[int]) -> None:
    arrays = numbers(70_001, dtypes)
    base, *others = (array.astype(np.float64) for array in arrays)
    expected = (0.3 * (others[0] - base) + -1.7 * (others[1] - base)) + base
    assert (combine(WeightedSum([0.3, -1.7], anchored=True), None, arrays, cuts) == expected).all()
    tensors = [torch.from_numpy(array) for array in arrays]
    assert (add_weighted(tensors[0], tensors[1:], [0.3, -1.7]).numpy() == expected).all()


def test_an_anchored_sum_is_exact_where_sources_are_the_base() -> None:
    base = numbers(3000, ["f4"])[0]
    merged = combine(WeightedSum([1e6, 1e-6], anchored=True), None, [base, base, base], [0])
    assert (merged == base).all()


def gram_of(arrays: Sequence[np.ndarray], tiles: Sequence[int]) -> np.ndarray:
    """The Gram matrix that reaches the solver, from tiles that begin at these blocks."""
    seen: list[np.ndarray] = []

    def solver(matrix: np.ndarray) -> list[float]:
        seen.append(matrix)
        return [1.0] * len(arrays)

    count = len(arrays[0])
    program, blocks = GramSum(len(arrays), solver), -(-count // BLOCK)
    reduction = program.wants(program.begin(count, blocks))
    assert reduction is not None
    total = np.zeros((blocks, *reduction.shape))
    for first, last in reversed(list(zip(tiles, [*tiles[1:], blocks], strict=True))):
        n = min(last * BLOCK, count) - first * BLOCK
        program.reduce(reduction, tile_of(arrays, first * BLOCK, n), None, total[first:last])
    program.solve(reduction, total, None)
    return seen[0]


@pytest.mark.parametrize("count", [1, 63, 2049, 3 * BLOCK + 77])
@pytest.mark.parametrize("sources", [1, 2, 3])
def test_the_gram_matrix_is_numpys_and_does_not_depend_on_tiles(count: int, sources: int) -> None:
    arrays = numbers(count, ["f4"] * sources)
    whole = gram_of(arrays, [0])
    wide = np.stack(arrays).astype(np.float64)
    np.testing.assert_allclose(whole, wide @ wide.T, rtol=1e-12, atol=1e-12 * count)
    if count > BLOCK:
        for tiles in ([0, 1, 2, 3], [0, 2], [0, 1, 3]):
            assert (gram_of(arrays, tiles) == whole).all()
