"""Kernels of Consensus, EMR and Localize-and-Stitch: what several changes of an entry come to, in float64.

Legend: `codec_kernels.py`.
"""

from __future__ import annotations

import numpy as np

from eutectic.ops.codec_kernels import STEP, decode, inner, kernel, narrow, subtract
from eutectic.ops.program import BLOCK
from eutectic.ops.sparse_kernels import trim

__all__ = ["agreed_sum", "stitched_mean", "unified"]

COMPILED_IN = "d6d3f3606b6e556b"


@inner
def _weigh(rows, codes, start, m, weights, base_bits, bits, origin, own, total, bad):  # pragma: no cover - compiled
    """own[k] = (x_k - base) w_k and total = their sum in order, float64; origin is the base."""
    base, values = base_bits.view(np.float32), bits.view(np.float32)
    bad[0] += decode(rows[0], codes[0], start, m, base_bits)
    for i in range(m):
        origin[i], total[i] = np.float64(base[i]), -0.0
    for k in range(own.shape[0]):
        mine, w = own[k], weights[k]
        bad[k + 1] += decode(rows[k + 1], codes[k + 1], start, m, bits)
        for i in range(m):
            mine[i] = (np.float64(values[i]) - origin[i]) * w
            total[i] += mine[i]


@kernel
def agreed_sum(rows, codes, n, weights, selective, fewest, scale, out, out_code, bad):  # pragma: no cover - compiled
    """out = base + scale * total where |own_k| > selective_k |total - own_k| for `fewest` sources, else base."""
    count = rows.shape[0] - 1
    base_bits, bits = np.empty(STEP, np.uint32), np.empty(STEP, np.uint32)
    origin, total, own = np.empty(STEP), np.empty(STEP), np.empty((count, STEP))
    votes = np.empty(STEP, np.int64)
    for start in range(0, n, STEP):
        m = min(STEP, n - start)
        _weigh(rows, codes, start, m, weights, base_bits, bits, origin, own, total, bad)
        for i in range(m):
            votes[i] = 0
        for k in range(count):
            mine, factor = own[k], selective[k]
            for i in range(m):
                votes[i] += np.int64(abs(mine[i]) > factor * abs(total[i] - mine[i]))
        for i in range(m):
            total[i] = origin[i] + (scale * total[i] if votes[i] >= fewest else 0.0)
        narrow(total, m, out, out_code, start, bits)


@kernel
def unified(rows, codes, n, weights, scale, out, out_code, bad):  # pragma: no cover - compiled
    """out = base + scale * sign * max(0, largest own_k of that sign), sign that of the sum."""
    count = rows.shape[0] - 1
    base_bits, bits = np.empty(STEP, np.uint32), np.empty(STEP, np.uint32)
    origin, total, own, largest = np.empty(STEP), np.empty(STEP), np.empty((count, STEP)), np.empty(STEP)
    for start in range(0, n, STEP):
        m = min(STEP, n - start)
        _weigh(rows, codes, start, m, weights, base_bits, bits, origin, own, total, bad)
        for i in range(m):
            total[i] = 1.0 if total[i] > 0 else (-1.0 if total[i] < 0 else 0.0)
            largest[i] = 0.0
        for k in range(count):
            mine = own[k]
            for i in range(m):
                size = mine[i] * total[i]
                largest[i] = size if size > largest[i] or size != size else largest[i]
        for i in range(m):
            total[i] = origin[i] + scale * largest[i] * total[i]
        narrow(total, m, out, out_code, start, bits)


@kernel
def stitched_mean(rows, codes, n, limits, quotas, weights, scale, out, out_code, bad):  # pragma: no cover - compiled
    """out = base + scale * the mean of w_k (x_k - base) over the sources that keep an entry (limits: threshold bits;
    quotas int64 [blocks, sources]: how many equal to it); entries without change are not kept."""
    count = rows.shape[0] - 1
    base_bits, bits, kept = np.empty(STEP, np.uint32), np.empty(STEP, np.uint32), np.empty(STEP, np.uint32)
    base, values, deltas = base_bits.view(np.float32), bits.view(np.float32), kept.view(np.float32)
    total, share = np.empty(STEP), np.empty(STEP)
    quota = np.empty(count, np.int64)
    for start in range(0, n, STEP):
        m = min(STEP, n - start)
        if start % BLOCK == 0:
            for k in range(count):
                quota[k] = quotas[start // BLOCK, k]
        bad[0] += decode(rows[0], codes[0], start, m, base_bits)
        for i in range(m):
            total[i], share[i] = 0.0, 0.0
        for k in range(count):
            w = weights[k]
            bad[k + 1] += decode(rows[k + 1], codes[k + 1], start, m, bits)
            for i in range(m):
                deltas[i] = values[i]
            subtract(deltas, base, m)
            quota[k] = trim(kept, m, limits[k], quota[k])
            for i in range(m):
                marked = (kept[i] & np.uint32(0x7FFFFFFF)) != np.uint32(0)
                total[i] += (np.float64(values[i]) - np.float64(base[i])) * w if marked else 0.0
                share[i] += 1.0 if marked else 0.0
        for i in range(m):
            total[i] = np.float64(base[i]) + scale * total[i] / max(share[i], 1.0)
        narrow(total, m, out, out_code, start, bits)
