"""Kernels of methods that look at whole rows: DELLA's ranks, Gram matrices per row, divergences of rows.

Legend: `codec_kernels.py`; `row` is the number of elements of a row, and tiles are whole rows.
"""

from __future__ import annotations

import math

import numpy as np

from eutectic.ops.codec_kernels import STEP, decode, encode, inner, kernel, narrow, subtract
from eutectic.ops.sparse_kernels import elect, philox

__all__ = ["importances", "rank_sum", "row_divergences", "row_gram_sum", "threshold_sum"]

COMPILED_IN = "d6d3f3606b6e556b"
BINS = 512  # sixty-four per binade, of the eight binades below a row's largest magnitude
SHIFT = 17  # bits of a float32 below a bin
LONGEST = 8192  # longer rows are sorted
DIGIT = 2048  # values of a digit of the radix sort: 11 of 31 bits
EMPTY = np.int64(-1)


# ---------------------------------------------------------------- DELLA: keep with a probability that grows with rank


@inner
def _words(first, n, key0, key1, out):  # pragma: no cover - compiled
    """Random words first .. first+n of a stream, wherever a group begins."""
    group_words = np.empty(1024, np.uint32)
    at = 0
    while at < n:
        place = first + at
        philox(place // 1024, key0, key1, group_words)
        skip = place % 1024
        count = min(1024 - skip, n - at)
        here, there = group_words[skip : skip + count], out[at : at + count]
        for i in range(count):
            there[i] = here[i]
        at += count


@inner
def _rank(sizes, n, i):  # pragma: no cover - compiled
    """How many entries are smaller than entry i, or equal and before it."""
    mine = sizes[i]
    before, after = sizes[:i], sizes[i:n]
    count = np.int32(0)
    for j in range(before.shape[0]):
        count += np.int32(before[j] <= mine)
    for j in range(after.shape[0]):
        count += np.int32(after[j] < mine)
    return np.int64(count)


@inner
def _sorted(sizes, n):  # pragma: no cover - compiled
    """The indices of a row's entries from the smallest to the largest, equal ones in order: a radix sort."""
    order, other = np.empty(n, np.int32), np.empty(n, np.int32)
    places = np.empty(DIGIT + 1, np.int32)
    for i in range(n):
        order[i] = np.int32(i)
    for shift in range(0, 33, 11):
        places[:] = 0
        for i in range(n):
            places[((sizes[i] >> np.int32(shift)) & np.int32(DIGIT - 1)) + 1] += np.int32(1)
        for digit in range(DIGIT):
            places[digit + 1] += places[digit]
        for at in range(n):
            i = order[at]
            digit = (sizes[i] >> np.int32(shift)) & np.int32(DIGIT - 1)
            other[places[digit]] = i
            places[digit] += np.int32(1)
        order, other = other, order
    return order


@inner
def _keep_by_rank(bits, n, words, bounds, gains, sizes, counts, undecided):  # pragma: no cover - compiled
    """Zero the entries of a row whose word is not below bounds[rank]; multiply the others by gains[rank], if any.

    Most words decide alone: they lie below the least bound, or not below the greatest. For the others a histogram of
    magnitudes bounds the rank, and only where the word lies between the bounds of the ends of an entry's bin is the
    rank counted out. Long rows, gains, and rows whose bins say little are sorted instead.
    """
    values = bits.view(np.float32)
    largest = np.int32(0)
    for i in range(n):
        sizes[i] = np.int32(bits[i] & np.uint32(0x7FFFFFFF))
        largest = max(largest, sizes[i])
    top = (largest >> np.int32(SHIFT)) - np.int32(BINS - 1)
    sort = n > LONGEST or gains.shape[0] > 0
    if not sort:
        for b in range(BINS + 1):
            counts[b] = 0
        for i in range(n):
            counts[max((sizes[i] >> np.int32(SHIFT)) - top, np.int32(0)) + 1] += np.int32(1)
        sort = counts[1] > 64 + n // 4
    if sort:
        order = _sorted(sizes, n)
        for rank in range(n):
            i = np.int64(order[rank])
            if np.int64(words[i]) >= bounds[rank]:
                values[i] = np.float32(0.0)
            elif gains.shape[0] > 0:
                values[i] *= gains[rank]
        return
    for b in range(BINS):  # counts[b]: the first rank of bin b
        counts[b + 1] += counts[b]
    low, high = bounds[0], bounds[n - 1]
    for i in range(n):
        bits[i] = bits[i] if np.int64(words[i]) < high else np.uint32(0)
    count = 0
    for i in range(n):
        undecided[count] = np.int32(i)
        word = np.int64(words[i])
        count += np.int64((word >= low) & (word < high))
    for u in range(count):
        i = np.int64(undecided[u])
        word = np.int64(words[i])
        b = max((sizes[i] >> np.int32(SHIFT)) - top, np.int32(0))
        if word >= bounds[counts[b]] and (
            word >= bounds[counts[b + 1] - 1] or word >= bounds[_rank(sizes, n, i)]  # one in a thousand
        ):
            bits[i] = np.uint32(0)


@inner
def _hold(bits, n, mask):  # pragma: no cover - compiled
    """mask: one bit for every entry that is not +0, the lowest bit first."""
    for byte in range(n // 8):
        found = np.uint32(0)
        for bit in range(8):
            found |= np.uint32(bits[byte * 8 + bit] != 0) << np.uint32(bit)
        mask[byte] = np.uint8(found)
    if n % 8:
        found = np.uint32(0)
        for bit in range(n % 8):
            found |= np.uint32(bits[n // 8 * 8 + bit] != 0) << np.uint32(bit)
        mask[n // 8] = np.uint8(found)


@inner
def _keep_held(bits, n, mask):  # pragma: no cover - compiled
    """Zero the entries whose bit is not set."""
    for byte in range(n // 8):
        found = np.uint32(mask[byte])
        for bit in range(8):
            bits[byte * 8 + bit] *= (found >> np.uint32(bit)) & np.uint32(1)
    for i in range(n // 8 * 8, n):
        bits[i] *= (np.uint32(mask[i // 8]) >> np.uint32(i % 8)) & np.uint32(1)


@inner
def _l1(values, n):  # pragma: no cover - compiled
    """Sum of magnitudes in float64, in eight lanes."""
    a0, a1, a2, a3, a4, a5, a6, a7 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    whole = n // 8 * 8
    for i in range(0, whole, 8):
        a0 += abs(np.float64(values[i]))
        a1 += abs(np.float64(values[i + 1]))
        a2 += abs(np.float64(values[i + 2]))
        a3 += abs(np.float64(values[i + 3]))
        a4 += abs(np.float64(values[i + 4]))
        a5 += abs(np.float64(values[i + 5]))
        a6 += abs(np.float64(values[i + 6]))
        a7 += abs(np.float64(values[i + 7]))
    for i in range(whole, n):
        a0 += abs(np.float64(values[i]))
    return ((a0 + a1) + (a2 + a3)) + ((a4 + a5) + (a6 + a7))


@kernel
def rank_sum(
    rows,
    codes,
    n,
    row,
    first,
    keys,
    bounds,
    gains,
    unit,
    partial,
    held,
    factors,
    weights,
    vote,
    normalize,
    scale,
    out,
    out_code,
    bad,
):  # pragma: no cover - compiled
    """out = base + scale * sum_s w_s kept(delta_s) [sign agrees], as `sparse_sum`; bounds int64 [sources, row].

    Where `partial` has rows, instead: partial[b, s] = (sum |delta_s|, sum |kept delta_s|) over part b of the tile,
    `unit` elements, in float64. One kernel does both, for most of its code, and of its compilation, is shared.
    Where `held` has columns, uint8 [parts, sources x rows x bytes], that pass writes a bit for every kept entry and
    the combination reads them instead of ranking again.
    """
    k, measures, holds = rows.shape[0] - 1, partial.shape[0] > 0, held.shape[1] > 0
    base_bits, decoded = np.empty(row, np.uint32), np.empty((k, row), np.uint32)
    base, deltas = base_bits.view(np.float32), decoded.view(np.float32)
    ballot, total, share = np.empty(row, np.float32), np.empty(row, np.float32), np.empty(row, np.float32)
    words, sizes, counts = np.empty(row, np.uint32), np.empty(row, np.int32), np.empty(BINS + 1, np.int32)
    undecided = np.empty(row + 1, np.int32)
    for start in range(0, n, row):
        bad[0] += decode(rows[0], codes[0], start, row, base_bits)
        for s in range(k):
            bits, values = decoded[s], deltas[s]
            bad[s + 1] += decode(rows[s + 1], codes[s + 1], start, row, bits)
            subtract(values, base, row)
            if measures:
                partial[start // unit, s, 0] += _l1(values, row)
            place = (s * (unit // row) + start % unit // row) * (-(-row // 8))
            mask = held[start // unit, place : place + -(-row // 8)]
            if holds and not measures:
                _keep_held(bits, row, mask)
            elif bounds[s, 0] < np.int64(1) << 32:
                _words(first + start, row, keys[s, 0], keys[s, 1], words)
                _keep_by_rank(bits, row, words, bounds[s], gains[s], sizes, counts, undecided)
            if measures:
                partial[start // unit, s, 1] += _l1(values, row)
                if holds:
                    _hold(bits, row, mask)
        if not measures:
            elect(deltas, factors, weights, vote, normalize, scale, base, ballot, total, share, row)
            encode(base_bits, row, out, out_code, start)


# ---------------------------------------------------------------- Gram matrices per row


@inner
def _clip(cosine):  # pragma: no cover - compiled
    """Between -1 and 1; NaN stays."""
    return 1.0 if cosine > 1.0 else (-1.0 if cosine < -1.0 else cosine)


@inner
def _slerp_pair(aa, ab, bb, t):  # pragma: no cover - compiled
    """NuSLERP's coefficients of one row: `sphere.nuslerp_coefficients`."""
    long_a, long_b = math.sqrt(aa), math.sqrt(bb)
    length = (1e-7 if long_a < 1e-7 else long_a) * (1e-7 if long_b < 1e-7 else long_b)
    cosine = _clip(ab / length)
    if 1.0 - cosine * cosine <= 1e-12:
        return 1.0 - t, t
    angle = math.acos(cosine)
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


@kernel
def row_gram_sum(rows, codes, n, row, anchored, solver, t, out, out_code, bad):  # pragma: no cover - compiled
    """out = sum_s c_s x_s row by row (anchored: base + sum c_s (x_s - base)), c from the row's Gram matrix; float64.

    solver 0: NuSLERP at t. solver 1: Model Stock's ratio for every source.
    """
    first = 1 if anchored else 0
    k = rows.shape[0] - first
    bits = np.empty(max(row, STEP), np.uint32)
    single = bits.view(np.float32)
    base, values = np.zeros(row, np.float64), np.empty((k, row), np.float64)
    gram = np.empty((k, k), np.float64)
    total = np.empty(row, np.float64)
    for start in range(0, n, row):
        for s in range(rows.shape[0]):
            into = base if s < first else values[s - first]
            bad[s] += decode(rows[s], codes[s], start, row, bits)
            for i in range(row):
                into[i] = np.float64(single[i])
            if s >= first:
                for i in range(row):
                    into[i] -= base[i]
        for a in range(k):
            for b in range(a, k):
                gram[a, b] = _dot(values[a], values[b], row)
        total[:] = -0.0
        if solver == 0:
            c0, c1 = _slerp_pair(gram[0, 0], gram[0, 1], gram[1, 1], t)
            for i in range(row):
                total[i] = (total[i] + c0 * values[0, i]) + c1 * values[1, i]
        else:
            cosines, pairs = 0.0, 0
            for a in range(k):
                for b in range(a + 1, k):
                    length = math.sqrt(gram[a, a]) * math.sqrt(gram[b, b])
                    length = 1e-6 if length < 1e-6 else length
                    cosines += _clip(gram[a, b] / length)
                    pairs += 1
            cosine = cosines / pairs
            denominator = 1.0 + (k - 1) * cosine
            ratio = 0.0 if abs(denominator) < 1e-6 else k * cosine / denominator
            for s in range(k):
                for i in range(row):
                    total[i] += ratio / k * values[s, i]
        if anchored:
            for i in range(row):
                total[i] += base[i]
        for part in range(0, row, STEP):
            m = min(STEP, row - part)
            narrow(total[part : part + m], m, out, out_code, start + part, bits)


@inner
def _dot(x, y, n):  # pragma: no cover - compiled
    """<x, y> in float64, in eight lanes."""
    a0, a1, a2, a3, a4, a5, a6, a7 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    whole = n // 8 * 8
    for i in range(0, whole, 8):
        a0 += x[i] * y[i]
        a1 += x[i + 1] * y[i + 1]
        a2 += x[i + 2] * y[i + 2]
        a3 += x[i + 3] * y[i + 3]
        a4 += x[i + 4] * y[i + 4]
        a5 += x[i + 5] * y[i + 5]
        a6 += x[i + 6] * y[i + 6]
        a7 += x[i + 7] * y[i + 7]
    for i in range(whole, n):
        a0 += x[i] * y[i]
    return ((a0 + a1) + (a2 + a3)) + ((a4 + a5) + (a6 + a7))


# ---------------------------------------------------------------- Arcee fusion: importance of every change


@kernel
def row_divergences(rows, codes, n, row, found, bad):  # pragma: no cover - compiled
    """found[r] = KL(softmax(row r of x_1) || softmax(row r of x_0)), 1e-8 added to both, in float64."""
    base_bits, bits = np.empty(row, np.uint32), np.empty(row, np.uint32)
    base, values = base_bits.view(np.float32), bits.view(np.float32)
    for start in range(0, n, row):
        bad[0] += decode(rows[0], codes[0], start, row, base_bits)
        bad[1] += decode(rows[1], codes[1], start, row, bits)
        high_p, high_q = np.float64(values[0]), np.float64(base[0])
        for i in range(row):
            high_p, high_q = max(high_p, np.float64(values[i])), max(high_q, np.float64(base[i]))
        sum_p, sum_q = 0.0, 0.0
        for i in range(row):
            sum_p += math.exp(np.float64(values[i]) - high_p)
            sum_q += math.exp(np.float64(base[i]) - high_q)
        total = 0.0
        for i in range(row):
            p = math.exp(np.float64(values[i]) - high_p) / sum_p + 1e-8
            q = math.exp(np.float64(base[i]) - high_q) / sum_q + 1e-8
            total += p * math.log(p / q)
        found[start // row] = total


@kernel
def importances(rows, codes, n, row, divergences, found, bad):  # pragma: no cover - compiled
    """found[i] = |x_1 - x_0| times the divergence of the row, float32 [n]."""
    base_bits, bits = np.empty(row, np.uint32), np.empty(row, np.uint32)
    base, values = base_bits.view(np.float32), bits.view(np.float32)
    for start in range(0, n, row):
        bad[0] += decode(rows[0], codes[0], start, row, base_bits)
        bad[1] += decode(rows[1], codes[1], start, row, bits)
        divergence = np.float32(divergences[start // row])
        here = found[start : start + row]
        for i in range(row):
            here[i] = abs(values[i] - base[i]) * divergence


@kernel
def threshold_sum(rows, codes, n, row, divergences, threshold, out, out_code, bad):  # pragma: no cover - compiled
    """out = x_1 - x_0 added to x_0 where its importance is at least the threshold; float32."""
    base_bits, bits = np.empty(row, np.uint32), np.empty(row, np.uint32)
    base, values = base_bits.view(np.float32), bits.view(np.float32)
    for start in range(0, n, row):
        bad[0] += decode(rows[0], codes[0], start, row, base_bits)
        bad[1] += decode(rows[1], codes[1], start, row, bits)
        divergence = np.float32(divergences[start // row])
        for i in range(row):
            delta = values[i] - base[i]
            base[i] = base[i] + (delta if abs(delta) * divergence >= threshold else np.float32(0.0))
        encode(base_bits, row, out, out_code, start)
