"""Kernels of methods that decide entry by entry: nearswap, MagMax, RAM, and SCE's variance selection.

Legend: `codec_kernels.py`.
"""

from __future__ import annotations

import numpy as np

from eutectic.ops.codec_kernels import LANES, STEP, decode, encode, inner, kernel, subtract
from eutectic.ops.program import BLOCK
from eutectic.ops.sparse_kernels import trim

__all__ = ["count_touched", "magmax", "nearswap", "sce_squares", "sce_sum", "touched_sum", "variances"]

COMPILED_IN = "d6d3f3606b6e556b"


@kernel
def nearswap(rows, codes, n, t, out, out_code, bad):  # pragma: no cover - compiled
    """out = w b + (1 - w) a with w = clip(t / max(|a - b|, 1e-6), 0, 1); a is row 0, b row 1; float32."""
    base_bits, bits = np.empty(STEP, np.uint32), np.empty(STEP, np.uint32)
    base, values = base_bits.view(np.float32), bits.view(np.float32)
    one = np.float32(1.0)
    for start in range(0, n, STEP):
        m = min(STEP, n - start)
        bad[0] += decode(rows[0], codes[0], start, m, base_bits)
        bad[1] += decode(rows[1], codes[1], start, m, bits)
        for i in range(m):
            w = min(t / max(abs(base[i] - values[i]), np.float32(1e-6)), one)
            base[i] = w * values[i] + (one - w) * base[i]
        encode(base_bits, m, out, out_code, start)


@kernel
def magmax(rows, codes, n, scale, out, out_code, bad):  # pragma: no cover - compiled
    """out = base + scale * (the delta of largest magnitude, the first of equals); float32."""
    base_bits, bits, best_bits = np.empty(STEP, np.uint32), np.empty(STEP, np.uint32), np.empty(STEP, np.uint32)
    base, values, best = base_bits.view(np.float32), bits.view(np.float32), best_bits.view(np.float32)
    for start in range(0, n, STEP):
        m = min(STEP, n - start)
        bad[0] += decode(rows[0], codes[0], start, m, base_bits)
        for s in range(1, rows.shape[0]):
            bad[s] += decode(rows[s], codes[s], start, m, bits)
            subtract(values, base, m)
            for i in range(m):
                best[i] = values[i] if s == 1 or abs(values[i]) > abs(best[i]) else best[i]
        for i in range(m):
            base[i] = base[i] + scale * best[i]
        encode(base_bits, m, out, out_code, start)


@kernel
def count_touched(rows, codes, n, epsilon, counts, bad):  # pragma: no cover - compiled
    """counts[s] += (entries that source s and others change, entries that it alone changes) by more than epsilon."""
    k = rows.shape[0] - 1
    base_bits, decoded = np.empty(STEP, np.uint32), np.empty((k, STEP), np.uint32)
    base, touching = base_bits.view(np.float32), np.empty(STEP, np.int64)
    for start in range(0, n, STEP):
        m = min(STEP, n - start)
        bad[0] += decode(rows[0], codes[0], start, m, base_bits)
        touching[:] = 0
        for s in range(k):
            bits = decoded[s]
            values = bits.view(np.float32)
            bad[s + 1] += decode(rows[s + 1], codes[s + 1], start, m, bits)
            subtract(values, base, m)
            for i in range(m):
                bits[i] = np.uint32(abs(values[i]) > epsilon)
                touching[i] += np.int64(bits[i])
        for s in range(k):
            bits = decoded[s]
            for i in range(m):
                counts[s, 0] += np.int64(bits[i] == 1 and touching[i] > 1)
                counts[s, 1] += np.int64(bits[i] == 1 and touching[i] == 1)


@kernel
def touched_sum(rows, codes, n, epsilon, factors, out, out_code, bad):  # pragma: no cover - compiled
    """out = base + the mean of the deltas above epsilon, or factors[s] times the only one; float32."""
    base_bits, bits = np.empty(STEP, np.uint32), np.empty(STEP, np.uint32)
    base, values = base_bits.view(np.float32), bits.view(np.float32)
    total, count, alone = np.empty(STEP, np.float32), np.empty(STEP, np.float32), np.empty(STEP, np.float32)
    zero, one = np.float32(0.0), np.float32(1.0)
    for start in range(0, n, STEP):
        m = min(STEP, n - start)
        bad[0] += decode(rows[0], codes[0], start, m, base_bits)
        for i in range(m):
            total[i], count[i], alone[i] = zero, zero, one
        for s in range(1, rows.shape[0]):
            bad[s] += decode(rows[s], codes[s], start, m, bits)
            subtract(values, base, m)
            factor = factors[s - 1]
            for i in range(m):
                active = abs(values[i]) > epsilon
                total[i] += values[i] if active else zero
                count[i] += one if active else zero
                alone[i] = factor if active else alone[i]
        for i in range(m):
            mean = total[i] / (count[i] if count[i] > one else one)
            base[i] = base[i] + (mean * alone[i] if count[i] == one else mean)
        encode(base_bits, m, out, out_code, start)


# ---------------------------------------------------------------- SCE


@kernel
def variances(rows, codes, n, found, bad):  # pragma: no cover - compiled
    """found[i] = variance of the deltas over the sources (divided by their number), float32 [n]."""
    k = rows.shape[0] - 1
    base_bits, decoded = np.empty(STEP, np.uint32), np.empty((k, STEP), np.uint32)
    base, deltas = base_bits.view(np.float32), decoded.view(np.float32)
    mean = np.empty(STEP, np.float32)
    for start in range(0, n, STEP):
        m = min(STEP, n - start)
        bad[0] += decode(rows[0], codes[0], start, m, base_bits)
        for s in range(k):
            bad[s + 1] += decode(rows[s + 1], codes[s + 1], start, m, decoded[s])
            subtract(deltas[s], base, m)
        _variance(deltas, mean, found[start : start + m], m)


@inner
def _variance(deltas, mean, found, m):  # pragma: no cover - compiled
    k = deltas.shape[0]
    count = np.float32(k)
    for i in range(m):
        mean[i] = np.float32(0.0)
        found[i] = np.float32(0.0)
    for s in range(k):
        values = deltas[s]
        for i in range(m):
            mean[i] += values[i]
    for i in range(m):
        mean[i] = mean[i] / count
    for s in range(k):
        values = deltas[s]
        for i in range(m):
            found[i] += (values[i] - mean[i]) * (values[i] - mean[i])
    for i in range(m):
        found[i] = found[i] / count


@kernel
def sce_squares(rows, codes, n, selects, limit, quotas, partial, bad):  # pragma: no cover - compiled
    """partial[b, s] = sum of delta_s^2 over the selected entries of block b of the tile, in float64."""
    k = rows.shape[0] - 1
    base_bits, decoded = np.empty(STEP, np.uint32), np.empty((k, STEP), np.uint32)
    base, deltas = base_bits.view(np.float32), decoded.view(np.float32)
    mean, chosen_bits = np.empty(STEP, np.float32), np.empty(STEP, np.uint32)
    chosen = chosen_bits.view(np.float32)
    lanes = np.empty((k, LANES), np.float64)
    for b in range(partial.shape[0]):
        first, last = b * BLOCK, min((b + 1) * BLOCK, n)
        quota = quotas[b, 0]
        lanes[:] = 0.0
        for start in range(first, last, STEP):
            m = min(STEP, last - start)
            bad[0] += decode(rows[0], codes[0], start, m, base_bits)
            for s in range(k):
                bad[s + 1] += decode(rows[s + 1], codes[s + 1], start, m, decoded[s])
                subtract(deltas[s], base, m)
            quota = _select(deltas, decoded, mean, chosen, chosen_bits, m, selects, limit, quota)
            for s in range(k):
                values, sums = deltas[s], lanes[s]
                values[m:] = np.float32(0.0)
                for row in range(STEP // LANES):
                    for lane in range(LANES):
                        value = np.float64(values[row * LANES + lane])
                        sums[lane] += value * value
        for s in range(k):
            total = 0.0
            for lane in range(LANES):
                total += lanes[s, lane]
            partial[b, s] = total


@inner
def _select(deltas, decoded, mean, chosen, chosen_bits, m, selects, limit, quota):  # pragma: no cover - compiled
    """Zero the deltas outside the selection; returns the quota left."""
    if selects == 0:
        return quota
    _variance(deltas, mean, chosen, m)
    quota = trim(chosen_bits, m, limit, quota)
    for s in range(deltas.shape[0]):
        bits = decoded[s]
        for i in range(m):
            bits[i] = bits[i] if chosen_bits[i] != np.uint32(0) else np.uint32(0)
    return quota


@kernel
def sce_sum(rows, codes, n, selects, limit, quotas, weights, out, out_code, bad):  # pragma: no cover - compiled
    """out = base + sum_s w_s delta_s [agrees] / max(sum_s w_s [agrees], 1e-6) over the selected entries; float32."""
    k = rows.shape[0] - 1
    base_bits, decoded = np.empty(STEP, np.uint32), np.empty((k, STEP), np.uint32)
    base, deltas = base_bits.view(np.float32), decoded.view(np.float32)
    mean, chosen_bits = np.empty(STEP, np.float32), np.empty(STEP, np.uint32)
    chosen = chosen_bits.view(np.float32)
    ballot, total, share = np.empty(STEP, np.float32), np.empty(STEP, np.float32), np.empty(STEP, np.float32)
    zero = np.float32(0.0)
    quota = np.int64(0)
    for start in range(0, n, STEP):
        m = min(STEP, n - start)
        if start % BLOCK == 0:
            quota = quotas[start // BLOCK, 0]
        bad[0] += decode(rows[0], codes[0], start, m, base_bits)
        for s in range(k):
            bad[s + 1] += decode(rows[s + 1], codes[s + 1], start, m, decoded[s])
            subtract(deltas[s], base, m)
        quota = _select(deltas, decoded, mean, chosen, chosen_bits, m, selects, limit, quota)
        for i in range(m):
            ballot[i], total[i], share[i] = zero, zero, zero
        for s in range(k):
            values = deltas[s]
            for i in range(m):
                ballot[i] += values[i]
        for s in range(k):
            values, w = deltas[s], weights[s]
            for i in range(m):
                agrees = (values[i] > zero) if ballot[i] >= zero else (values[i] < zero)
                total[i] += values[i] * w if agrees else zero
                share[i] += w if agrees else zero
        for i in range(m):
            base[i] = base[i] + total[i] / max(share[i], np.float32(1e-6))
        encode(base_bits, m, out, out_code, start)
