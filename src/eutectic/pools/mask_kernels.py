"""Bits of masks and signs, compiled: made from deltas, packed little-endian, and applied.

Values are flat float32 or float64 arrays; bit i of a mask is bit i % 8 of byte i // 8, and what is left of the last
byte is zero.
"""

from __future__ import annotations

import numpy as np

from eutectic.ops.codec_kernels import inner, kernel

__all__ = ["add_delta", "add_masked", "add_signed", "add_sizes", "dominant", "negative"]

STEP = 2048  # elements at a time: what is kept of them stays in the first-level cache
GATHER = 0x0102040810204080  # brings bit 0 of eight bytes together in the top byte of a product


@kernel
def add_delta(total, core, expert):  # pragma: no cover - compiled
    """total (float64) += expert - core."""
    for i in range(len(total)):
        total[i] += np.float64(expert[i]) - np.float64(core[i])


@kernel
def add_sizes(core, expert, wide, sums):  # pragma: no cover - compiled
    """sums[row] += sum of |expert - core| over the row, in float64; whole rows of `wide`, from the first."""
    for row in range(len(sums)):
        total = 0.0
        for i in range(row * wide, min((row + 1) * wide, len(core))):
            total += abs(np.float64(expert[i]) - np.float64(core[i]))
        sums[row] += total


@kernel
def dominant(total, core, expert, share, bits):  # pragma: no cover - compiled
    """bits_i = |delta_i| > share |total_i - delta_i|, in float64; delta = expert - core."""
    kept = np.zeros(STEP, np.uint8)
    eight = kept.view(np.uint64)
    for start in range(0, len(core), STEP):
        m = min(STEP, len(core) - start)
        kept[m:] = np.uint8(0)
        whole, low, high = total[start : start + m], core[start : start + m], expert[start : start + m]
        for i in range(m):
            delta = np.float64(high[i]) - np.float64(low[i])
            kept[i] = np.uint8(abs(delta) > share * abs(whole[i] - delta))
        out = bits[start // 8 : (start + m + 7) // 8]
        for i in range(len(out)):
            out[i] = np.uint8((eight[i] * np.uint64(GATHER)) >> np.uint64(56))


@kernel
def negative(core, expert, bits):  # pragma: no cover - compiled
    """bits_i = expert_i < core_i."""
    kept = np.zeros(STEP, np.uint8)
    eight = kept.view(np.uint64)
    for start in range(0, len(core), STEP):
        m = min(STEP, len(core) - start)
        kept[m:] = np.uint8(0)
        low, high = core[start : start + m], expert[start : start + m]
        for i in range(m):
            kept[i] = np.uint8(high[i] < low[i])
        out = bits[start // 8 : (start + m + 7) // 8]
        for i in range(len(out)):
            out[i] = np.uint8((eight[i] * np.uint64(GATHER)) >> np.uint64(56))


@inner
def _spread(bits, kept):  # pragma: no cover - compiled
    """kept (uint8) = the bits, one for each entry."""
    for i in range(len(bits)):
        byte = bits[i]
        for j in range(8):
            kept[8 * i + j] = (byte >> j) & 1


@kernel
def add_masked(core, change, bits, values):  # pragma: no cover - compiled
    """values_i = core_i + change_i where bit i is set, else core_i."""
    kept = np.zeros(STEP, np.uint8)
    for start in range(0, len(core), STEP):
        m = min(STEP, len(core) - start)
        _spread(bits[start // 8 : (start + m + 7) // 8], kept)
        low, more, out = core[start : start + m], change[start : start + m], values[start : start + m]
        for i in range(m):
            out[i] = low[i] + more[i] if kept[i] else low[i]


@kernel
def add_signed(core, scale, wide, skipped, bits, values):  # pragma: no cover - compiled
    """values_i = core_i + scale_row where bit i is clear, core_i - scale_row where it is set.

    Rows are of `wide` elements; the first element is number `skipped` of its row.
    """
    kept = np.zeros(STEP, np.uint8)
    for start in range(0, len(core), STEP):
        m = min(STEP, len(core) - start)
        _spread(bits[start // 8 : (start + m + 7) // 8], kept)
        low, out = core[start : start + m], values[start : start + m]
        first = 0
        while first < m:
            row = (skipped + start + first) // wide
            last = min(m, (row + 1) * wide - start - skipped)
            size = scale[row]
            for i in range(first, last):
                out[i] = low[i] - size if kept[i] else low[i] + size
            first = last
