"""Kernels of families A and B: weighted sums, and Gram matrices. Legend: `codec_kernels.py`."""

from __future__ import annotations

import numpy as np

from eutectic.ops.codec_kernels import F64, LANES, STEP, decode, kernel, narrow
from eutectic.ops.program import BLOCK

__all__ = ["gram", "weighted_sum"]

COMPILED_IN = "127f3f7b12d1f1e0"
FOLD = 4  # rows of LANES that a Gram matrix holds in float64 at a time


# ---------------------------------------------------------------- A: weighted sum


@kernel
def weighted_sum(rows, codes, coefficients, anchored, n, out, out_code, bad):  # pragma: no cover - compiled
    """out = sum_s c_s x_s, or anchored at row 0: x_0 + sum_(s>0) c_s (x_s - x_0); float64, rounded once.

    Sources are added one after another; of differences four at a time share a walk over sums and base.
    """
    k, origin = rows.shape[0], 1 if anchored else 0
    total, base = np.empty(STEP, np.float64), np.empty(STEP, np.float64)
    b0, b1 = np.empty(STEP, np.uint32), np.empty(STEP, np.uint32)
    b2, b3 = np.empty(STEP, np.uint32), np.empty(STEP, np.uint32)
    x0, x1, x2, x3 = b0.view(np.float32), b1.view(np.float32), b2.view(np.float32), b3.view(np.float32)
    for start in range(0, n, STEP):
        m = min(STEP, n - start)
        total[:] = -0.0  # the one start that keeps the sign of a sum of negative zeros
        if anchored and codes[0] == F64:
            first = rows[0].view(np.float64)[start : start + m]
            for i in range(m):
                base[i] = first[i]
                bad[0] += np.int64(not np.isfinite(first[i]))
        elif anchored:
            bad[0] += decode(rows[0], codes[0], start, m, b0)
            for i in range(m):
                base[i] = np.float64(x0[i])
        s = origin
        while s < k:
            if codes[s] == F64:
                wide = rows[s].view(np.float64)[start : start + m]
                c0 = coefficients[s]
                for i in range(m):
                    bad[s] += np.int64(not np.isfinite(wide[i]))
                if anchored:
                    for i in range(m):
                        total[i] += c0 * (wide[i] - base[i])
                else:
                    for i in range(m):
                        total[i] += c0 * wide[i]
                s += 1
                continue
            together = 4 if anchored and s + 4 <= k else 1
            for more in range(1, together):
                together = 1 if codes[s + more] == F64 else together
            bad[s] += decode(rows[s], codes[s], start, m, b0)
            c0 = coefficients[s]
            if together == 4:
                bad[s + 1] += decode(rows[s + 1], codes[s + 1], start, m, b1)
                bad[s + 2] += decode(rows[s + 2], codes[s + 2], start, m, b2)
                bad[s + 3] += decode(rows[s + 3], codes[s + 3], start, m, b3)
                c1, c2, c3 = coefficients[s + 1], coefficients[s + 2], coefficients[s + 3]
                for i in range(m):
                    sums, at = total[i], base[i]
                    sums += c0 * (np.float64(x0[i]) - at)
                    sums += c1 * (np.float64(x1[i]) - at)
                    sums += c2 * (np.float64(x2[i]) - at)
                    total[i] = sums + c3 * (np.float64(x3[i]) - at)
            elif anchored:
                for i in range(m):
                    total[i] += c0 * (np.float64(x0[i]) - base[i])
            else:
                for i in range(m):
                    total[i] += c0 * np.float64(x0[i])
            s += together
        if anchored:
            for i in range(m):
                total[i] += base[i]
        narrow(total, m, out, out_code, start, b0)


# ---------------------------------------------------------------- B: Gram matrix


@kernel
def gram(rows, codes, n, anchored, partial, bad):  # pragma: no cover - compiled
    """partial[b, i, j] = <x_i, x_j> over block b of the tile, in float64 (i <= j; the rest is left alone).

    Anchored: of the differences x_(i+1) - x_0.
    """
    origin = 1 if anchored else 0
    k = rows.shape[0] - origin
    base_bits = np.empty(STEP, np.uint32)
    base = base_bits.view(np.float32).reshape((STEP // LANES, LANES))
    decoded = np.empty((k, STEP), np.uint32)
    values = decoded.view(np.float32).reshape((k, STEP // LANES, LANES))
    wide = np.empty((k, FOLD, LANES), np.float64)  # converted once for all pairs; small enough for the nearest cache
    lanes = np.empty((k, k, LANES), np.float64)
    for b in range(partial.shape[0]):
        first, last = b * BLOCK, min((b + 1) * BLOCK, n)
        lanes[:] = 0.0
        for start in range(first, last, STEP):
            m = min(STEP, last - start)
            if anchored:
                bad[0] += decode(rows[0], codes[0], start, m, base_bits)
            for s in range(k):
                bad[s + origin] += decode(rows[s + origin], codes[s + origin], start, m, decoded[s])
                decoded[s, m:] = np.uint32(0)
            base_bits[m:] = np.uint32(0)
            for fold in range(0, STEP // LANES, FOLD):
                for i in range(k):
                    for row in range(FOLD):
                        x, z, y = values[i, fold + row], base[fold + row], wide[i, row]
                        if anchored:
                            for lane in range(LANES):
                                y[lane] = np.float64(x[lane]) - np.float64(z[lane])
                        else:
                            for lane in range(LANES):
                                y[lane] = np.float64(x[lane])
                for i in range(k):
                    for j in range(i, k):
                        left, right, sums = wide[i], wide[j], lanes[i, j]
                        for row in range(FOLD):
                            for lane in range(LANES):
                                sums[lane] += left[row, lane] * right[row, lane]
        for i in range(k):
            for j in range(i, k):
                total = 0.0
                for lane in range(LANES):
                    total += lanes[i, j, lane]
                partial[b, i, j] = total
