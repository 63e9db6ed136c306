"""The arithmetic of an adapter, compiled: values plus a scaled product of two factors, and DoRA's lengths of rows.

An element is the same sum in the same order whatever range is asked for: over the rank in its order, in float32, each
product and each sum rounded (numba's `fastmath` is off, so that nothing is contracted or reordered).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

__all__ = ["add_product", "rescale"]

ROWS, COLUMNS = 8, 512  # of the result at a time: their sums and their part of `right` stay in the nearest cache
LANES = 64  # independent partial sums of a row's length; a fixed order that the compiler can vectorise

_kernel: Any = njit(nogil=True, cache=True)


@_kernel
def add_product(halves, values, left, right, scale, start):  # pragma: no cover - compiled
    """values_i = x_i + scale sum_r left[row_i, r] right[r, column_i], elements start .. start+n of a whole matrix.

    x is what `values` (float32 or float64 [n]) holds, or `halves` (uint16 [n], the bits of bfloat16) unless that is
    empty. left float32 [rows, rank], right float32 [rank, width].
    """
    n, (rank, width) = len(values), right.shape
    last = (start + n + width - 1) // width
    total, bits = np.empty((ROWS, COLUMNS), np.float32), np.empty(COLUMNS, np.uint32)
    wide = bits.view(np.float32)
    for row in range(start // width, last, ROWS):
        rows = min(ROWS, last - row)
        for column in range(0, width, COLUMNS):
            columns = min(COLUMNS, width - column)
            total[:] = np.float32(0)
            for r in range(0, rank - rank % 4, 4):
                a0, a1 = right[r, column : column + columns], right[r + 1, column : column + columns]
                a2, a3 = right[r + 2, column : column + columns], right[r + 3, column : column + columns]
                for i in range(rows):
                    sums, l0, l1 = total[i, :columns], left[row + i, r], left[row + i, r + 1]
                    l2, l3 = left[row + i, r + 2], left[row + i, r + 3]
                    for j in range(columns):
                        sums[j] = (((sums[j] + l0 * a0[j]) + l1 * a1[j]) + l2 * a2[j]) + l3 * a3[j]
            for r in range(rank - rank % 4, rank):
                a0 = right[r, column : column + columns]
                for i in range(rows):
                    sums, l0 = total[i, :columns], left[row + i, r]
                    for j in range(columns):
                        sums[j] += l0 * a0[j]
            for i in range(rows):
                at = (row + i) * width + column - start  # of this piece of a row in `values`; its ends may lie outside
                begin, end = max(0, -at), min(columns, n - at)
                if begin >= end:
                    continue
                out, sums = values[at + begin : at + end], total[i, begin:end]
                if len(halves):
                    half = halves[at + begin : at + end]
                    for j in range(end - begin):
                        bits[j] = np.uint32(half[j]) << np.uint32(16)
                    for j in range(end - begin):
                        out[j] = wide[j] + scale * sums[j]
                else:
                    for j in range(end - begin):
                        out[j] += scale * sums[j]


@_kernel
def rescale(values, magnitude):  # pragma: no cover - compiled
    """Every row of `values` (float32 or float64 [rows, width]) brought to the length in `magnitude` [rows]."""
    rows, width = values.shape
    lanes = np.empty(LANES, np.float64)
    for row in range(rows):
        lanes[:] = 0.0
        for first in range(0, width, LANES):
            part = values[row, first : first + LANES]
            for j in range(len(part)):
                lanes[j] += np.float64(part[j]) * np.float64(part[j])
        squares = 0.0
        for j in range(LANES):
            squares += lanes[j]
        length = np.sqrt(squares)
        factor = np.float64(magnitude[row]) / (length if length > 0.0 else 1.0)
        whole = values[row]
        for j in range(width):
            whole[j] = np.float64(whole[j]) * factor
