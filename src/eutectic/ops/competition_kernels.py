"""Kernels of PCB-Merging: sizes and scores as keys of order statistics, and the merge. Legend: `codec_kernels.py`.

Scores are float64. `sizes` and `levels` float64 [sources, 4] say how values are spread over 0 to 1: (low, high,
high - low or 0 where they count as equal, what all of them are then).
"""

from __future__ import annotations

import numpy as np
from numba import types

from eutectic.ops.codec_kernels import _intrinsic, decode, inner, kernel, narrow, subtract

__all__ = ["PAPER", "SIZES", "compete", "count_keys", "list_keys"]

COMPILED_IN = "127f3f7b12d1f1e0"
SIZES, PAPER, VISION, MAIN = -1, 0, 1, 2  # keys of |delta|, or of the score in one of its forms
LITTLE = 512  # elements at a time: the float64 arrays of a few sources stay in the nearest caches
LOG2E, LN2_HIGH, LN2_LOW = 1.4426950408889634, 0.693147180369123816490, 1.90821492927058770002e-10
MAGIC = 6755399441055744.0  # 1.5 * 2^52: adding it leaves the nearest whole number in the low bits
ALL, SIGN, ONE = np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(1 << 63), np.float64(1.0)


@_intrinsic
def _bits_of(typing_context, value):  # pragma: no cover - compiled
    """The bits of a float64."""

    def generate(context, builder, signature, values):
        return builder.bitcast(values[0], context.get_value_type(types.uint64))

    return types.uint64(types.float64), generate


@_intrinsic
def _float_of(typing_context, value):  # pragma: no cover - compiled
    """The float64 of these bits."""

    def generate(context, builder, signature, values):
        return builder.bitcast(values[0], context.get_value_type(types.float64))

    return types.float64(types.uint64), generate


@inner
def _exp(x):  # pragma: no cover - compiled
    """e^x for x >= 0, to the last bits: 2^k times the series of the rest, |rest| <= ln(2) / 2."""
    shifted = x * LOG2E + MAGIC
    k = shifted - MAGIC
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    p = 1.6059043836821613e-10
    p = p * r + 2.08767569878681e-09
    p = p * r + 2.505210838544172e-08
    p = p * r + 2.755731922398589e-07
    p = p * r + 2.7557319223985893e-06
    p = p * r + 2.48015873015873e-05
    p = p * r + 0.0001984126984126984
    p = p * r + 0.001388888888888889
    p = p * r + 0.008333333333333333
    p = p * r + 0.041666666666666664
    p = p * r + 0.16666666666666666
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    power = _float_of((_bits_of(shifted) + np.uint64(1023)) << np.uint64(52))
    return np.inf if x > 709.0 else p * power


@inner
def _tanh(x):  # pragma: no cover - compiled
    """tanh(x) for |x| <= 1, to the last bits: the ninth convergent of Lambert's continued fraction."""
    y = x * x
    above = (((y + 990.0) * y + 135135.0) * y + 4729725.0) * y + 34459425.0
    below = (((45.0 * y + 13860.0) * y + 945945.0) * y + 16216200.0) * y + 34459425.0
    return x * above / below


@inner
def _deltas(rows, codes, start, m, base_bits, decoded, bad):  # pragma: no cover - compiled
    """Decode elements start .. start+m, and subtract the base from every source, in float32."""
    base, deltas = base_bits.view(np.float32), decoded.view(np.float32)
    bad[0] += decode(rows[0], codes[0], start, m, base_bits)
    for s in range(decoded.shape[0]):
        bad[s + 1] += decode(rows[s + 1], codes[s + 1], start, m, decoded[s])
        subtract(deltas[s], base, m)


@inner
def _score(deltas, m, variant, sizes, units, others, scores):  # pragma: no cover - compiled
    """scores[k] = exp(N units[k]^2) times what its form makes of all units, float64 [sources, m]."""
    count = deltas.shape[0]
    for k in range(count):
        low, high, span, flat = sizes[k, 0], sizes[k, 1], sizes[k, 2], sizes[k, 3]
        values, unit, score = deltas[k], units[k], scores[k]
        for i in range(m):
            size = np.float64(abs(values[i]))
            size = low if size < low else size
            size = high if size > high else size
            spread = (size - low) / span if span > 0.0 else flat
            unit[i] = spread if values[i] > 0 else (-spread if values[i] < 0 else 0.0 * spread)
            score[i] = 0.0
    if variant == PAPER:
        for k in range(count):
            left, mine = units[k], scores[k]
            for other in range(k, count):
                right, theirs = units[other], scores[other]
                if other == k:
                    for i in range(m):
                        mine[i] += _tanh(left[i] * right[i])
                else:
                    for i in range(m):
                        both = _tanh(left[i] * right[i])
                        mine[i] += both
                        theirs[i] += both
    else:
        for i in range(m):
            others[i] = 0.0
        for k in range(count):
            values, unit = deltas[k], units[k]
            if variant == MAIN:
                for i in range(m):
                    others[i] += np.float64(values[i])
            else:
                for i in range(m):
                    others[i] += unit[i]
        for k in range(count):
            values, score = deltas[k], scores[k]
            largest = 0.0
            for i in range(m):
                x = np.float64(values[i]) * others[i]
                score[i] = _tanh(x)
                largest = max(largest, abs(x))
            if not largest <= 1.0:
                for i in range(m):
                    x = np.float64(values[i]) * others[i]
                    score[i] = score[i] if abs(x) <= 1.0 else np.tanh(x)
    for k in range(count):
        unit, score = units[k], scores[k]
        for i in range(m):
            score[i] = _exp(np.float64(count) * (unit[i] * unit[i])) * score[i]


@inner
def _keys(decoded, m, variant, sizes, units, others, scores, keys):  # pragma: no cover - compiled
    """keys[k] = what orders like |delta_k|, or like its score; NaN is the largest."""
    if variant == SIZES:
        for k in range(decoded.shape[0]):
            bits, key = decoded[k], keys[k]
            for i in range(m):
                key[i] = np.uint64(bits[i] & np.uint32(0x7FFFFFFF))
        return
    _score(decoded.view(np.float32), m, variant, sizes, units, others, scores)
    for k in range(decoded.shape[0]):
        score, key = scores[k], keys[k]
        for i in range(m):
            bits = _bits_of(score[i])
            turned = ~bits if bits >= SIGN else bits | SIGN
            key[i] = turned if score[i] == score[i] else ALL


@kernel
def list_keys(rows, codes, n, variant, sizes, found, bad):  # pragma: no cover - compiled
    """found[k, i] = the key of element i of source k (uint64 [sources, n])."""
    count = rows.shape[0] - 1
    base_bits, decoded = np.empty(LITTLE, np.uint32), np.empty((count, LITTLE), np.uint32)
    units, scores = np.empty((count, LITTLE), np.float64), np.empty((count, LITTLE), np.float64)
    others, keys = np.empty(LITTLE, np.float64), np.empty((count, LITTLE), np.uint64)
    for start in range(0, n, LITTLE):
        m = min(LITTLE, n - start)
        _deltas(rows, codes, start, m, base_bits, decoded, bad)
        _keys(decoded, m, variant, sizes, units, others, scores, keys)
        for k in range(count):
            for i in range(m):
                found[k, start + i] = keys[k, i]


@kernel
def count_keys(rows, codes, n, variant, sizes, prefix, level, digits, counts, bad):  # pragma: no cover - compiled
    """counts[r, d] += keys of source r % sources that begin with prefix[r] and have d as their next 16 bits."""
    count = rows.shape[0] - 1
    base_bits, decoded = np.empty(LITTLE, np.uint32), np.empty((count, LITTLE), np.uint32)
    units, scores = np.empty((count, LITTLE), np.float64), np.empty((count, LITTLE), np.float64)
    others, keys = np.empty(LITTLE, np.float64), np.empty((count, LITTLE), np.uint64)
    shift = np.uint64(16 * (digits - 1 - level))
    above, low = shift + np.uint64(16), np.uint64(0xFFFF)
    for start in range(0, n, LITTLE):
        m = min(LITTLE, n - start)
        _deltas(rows, codes, start, m, base_bits, decoded, bad)
        _keys(decoded, m, variant, sizes, units, others, scores, keys)
        for r in range(counts.shape[0]):
            key, into = keys[r % count], counts[r]
            if level == 0:
                for i in range(m):
                    into[key[i] >> shift] += 1
            else:
                wanted = prefix[r]
                for i in range(m):
                    if key[i] >> above == wanted:
                        into[(key[i] >> shift) & low] += 1


@kernel
def compete(
    rows, codes, n, variant, sizes, levels, weights, scale, least, out, out_code, bad
):  # pragma: no cover - compiled
    """out = base + scale * sum_k w_k share_k clipped_k / sum_k share_k where that sum exceeds least; float64."""
    count = rows.shape[0] - 1
    base_bits, decoded = np.empty(LITTLE, np.uint32), np.empty((count, LITTLE), np.uint32)
    base, deltas = base_bits.view(np.float32), decoded.view(np.float32)
    units, scores = np.empty((count, LITTLE), np.float64), np.empty((count, LITTLE), np.float64)
    total, shares, others = np.empty(LITTLE, np.float64), np.empty(LITTLE, np.float64), np.empty(LITTLE, np.float64)
    for start in range(0, n, LITTLE):
        m = min(LITTLE, n - start)
        _deltas(rows, codes, start, m, base_bits, decoded, bad)
        _score(deltas, m, variant, sizes, units, others, scores)
        for i in range(m):
            total[i], shares[i] = 0.0, 0.0
        for k in range(count):
            low, high = sizes[k, 0], sizes[k, 1]
            lowest, span, flat, w = levels[k, 0], levels[k, 2], levels[k, 3], weights[k]
            values, score = deltas[k], scores[k]
            for i in range(m):
                size = np.float64(abs(values[i]))
                size = low if size < low else size
                size = high if size > high else size
                level = lowest if score[i] < lowest else score[i]
                share = (level - lowest) / span if span > 0.0 else flat
                sign = ONE if values[i] > 0 else (-ONE if values[i] < 0 else 0.0)
                total[i] += w * share * sign * size
                shares[i] += share
        for i in range(m):
            won = shares[i] > least
            total[i] = np.float64(base[i]) + scale * (total[i] / shares[i] if won else 0.0)
        narrow(total, m, out, out_code, start, base_bits)
