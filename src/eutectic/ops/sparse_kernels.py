"""Kernels of families C and D: keep entries by magnitude or at random, elect signs, add. Legend: `codec_kernels.py`."""

from __future__ import annotations

import numpy as np

from eutectic.ops.codec_kernels import LANES, STEP, decode, encode, inner, kernel, subtract
from eutectic.ops.program import BLOCK

__all__ = [
    "count_ties",
    "elect",
    "histogram",
    "l1_sums",
    "magnitudes",
    "philox",
    "refine",
    "sparse_sum",
    "trim",
]

COMPILED_IN = "127f3f7b12d1f1e0"
TRIM, DROP = 0, 1  # which elements a sparse sum keeps: the largest, or random ones
VOTE_NONE, VOTE_WEIGHTED, VOTE_PLAIN = 0, 1, 2


# ---------------------------------------------------------------- C: selection by magnitude


@kernel
def magnitudes(rows, codes, n, sizes, bad):  # pragma: no cover - compiled
    """sizes[s, i] = bits of |x_s - base| at element i (uint32 [sources, n])."""
    base_bits, bits = np.empty(STEP, np.uint32), np.empty(STEP, np.uint32)
    base, values = base_bits.view(np.float32), bits.view(np.float32)
    for start in range(0, n, STEP):
        m = min(STEP, n - start)
        bad[0] += decode(rows[0], codes[0], start, m, base_bits)
        for s in range(1, rows.shape[0]):
            bad[s] += decode(rows[s], codes[s], start, m, bits)
            subtract(values, base, m)
            out = sizes[s - 1, start : start + m]
            for i in range(m):
                out[i] = bits[i] & np.uint32(0x7FFFFFFF)


@kernel
def histogram(rows, codes, n, counts, bad):  # pragma: no cover - compiled
    """counts[s, h] += elements whose |x_s - base| has h as the high 15 bits of its float32 magnitude."""
    base_bits, bits = np.empty(STEP, np.uint32), np.empty(STEP, np.uint32)
    base, values = base_bits.view(np.float32), bits.view(np.float32)
    for start in range(0, n, STEP):
        m = min(STEP, n - start)
        bad[0] += decode(rows[0], codes[0], start, m, base_bits)
        for s in range(1, rows.shape[0]):
            bad[s] += decode(rows[s], codes[s], start, m, bits)
            subtract(values, base, m)
            for i in range(m):
                bits[i] = (bits[i] & np.uint32(0x7FFFFFFF)) >> np.uint32(16)
            for i in range(m):
                counts[s - 1, bits[i]] += 1


@kernel
def refine(rows, codes, n, high, counts):  # pragma: no cover - compiled
    """counts[r, l] += elements of source r % sources in bin high[r] with l as low 16 bits (high < 0: none)."""
    base_bits, bits = np.empty(STEP, np.uint32), np.empty(STEP, np.uint32)
    base, values = base_bits.view(np.float32), bits.view(np.float32)
    for start in range(0, n, STEP):
        m = min(STEP, n - start)
        decode(rows[0], codes[0], start, m, base_bits)
        for s in range(1, rows.shape[0]):
            decode(rows[s], codes[s], start, m, bits)
            subtract(values, base, m)
            for r in range(s - 1, high.shape[0], rows.shape[0] - 1):
                if high[r] < 0:
                    continue
                wanted = np.uint32(high[r])
                for i in range(m):
                    if (bits[i] & np.uint32(0x7FFFFFFF)) >> np.uint32(16) == wanted:
                        counts[r, bits[i] & np.uint32(0xFFFF)] += 1


@kernel
def count_ties(rows, codes, n, thresholds, partial):  # pragma: no cover - compiled
    """partial[b, r] = elements of source r % sources in block b of magnitude bits thresholds[r] (0: not counted)."""
    base_bits, bits = np.empty(STEP, np.uint32), np.empty(STEP, np.uint32)
    base, values = base_bits.view(np.float32), bits.view(np.float32)
    for b in range(partial.shape[0]):
        first, last = b * BLOCK, min((b + 1) * BLOCK, n)
        partial[b] = 0
        for start in range(first, last, STEP):
            m = min(STEP, last - start)
            decode(rows[0], codes[0], start, m, base_bits)
            for s in range(1, rows.shape[0]):
                decode(rows[s], codes[s], start, m, bits)
                subtract(values, base, m)
                for r in range(s - 1, thresholds.shape[0], rows.shape[0] - 1):
                    wanted = np.uint32(thresholds[r])
                    if wanted == 0:
                        continue
                    found = 0
                    for i in range(m):
                        found += np.int64((bits[i] & np.uint32(0x7FFFFFFF)) == wanted)
                    partial[b, r] += found


@inner
def trim(bits, m, threshold, quota):  # pragma: no cover - compiled
    """Zero what lies below the threshold; of what equals it keep the first `quota`; returns the quota left."""
    limit = np.uint32(threshold)
    equal = np.uint32(0)
    for i in range(m):
        size = bits[i] & np.uint32(0x7FFFFFFF)
        equal += np.uint32(1) if size == limit else np.uint32(0)
        bits[i] = bits[i] if size >= limit else np.uint32(0)
    if threshold > 0 and equal > quota:
        for i in range(m):
            if (bits[i] & np.uint32(0x7FFFFFFF)) == limit:
                if quota > 0:
                    quota -= 1
                else:
                    bits[i] = np.uint32(0)
        return quota
    return quota - equal


@inner
def _crop(bits, m, threshold, quota):  # pragma: no cover - compiled
    """Zero what lies above the threshold, and the first `quota` of what equals it; returns the quota left."""
    limit = np.uint32(threshold)
    for i in range(m):
        size = bits[i] & np.uint32(0x7FFFFFFF)
        if size >= limit and size > np.uint32(0):
            if size > limit:
                bits[i] = np.uint32(0)
            elif quota > 0:
                quota -= 1
                bits[i] = np.uint32(0)
    return quota


# ---------------------------------------------------------------- D: random selection (Philox 4x32-10)


@kernel
def philox(group, key0, key1, words):  # pragma: no cover - compiled
    """1024 random uint32: words[256 lane + i] is word `lane` of the block with counter 256 group + i.

    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011), Philox-4x32 with 10 rounds.
    The lanes lie apart in memory so that the loop vectorises.
    """
    mask = np.uint64(0xFFFFFFFF)
    words0, words1, words2, words3 = words[:256], words[256:512], words[512:768], words[768:1024]
    for i in range(256):
        counter = np.uint64(group) * np.uint64(256) + np.uint64(i)
        c0, c1 = counter & mask, counter >> np.uint64(32)
        c2, c3 = np.uint64(0), np.uint64(0)
        k0, k1 = np.uint64(key0) & mask, np.uint64(key1) & mask
        for _ in range(10):
            p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
            c0, c1, c2, c3 = (
                (p1 >> np.uint64(32)) ^ c1 ^ k0,
                p1 & mask,
                (p0 >> np.uint64(32)) ^ c3 ^ k1,
                p0 & mask,
            )
            k0, k1 = (k0 + np.uint64(0x9E3779B9)) & mask, (k1 + np.uint64(0xBB67AE85)) & mask
        words0[i] = np.uint32(c0)
        words1[i] = np.uint32(c1)
        words2[i] = np.uint32(c2)
        words3[i] = np.uint32(c3)


@inner
def _drop(values, m, first, key0, key1, bound, words):  # pragma: no cover - compiled
    """Keep element e (global index first + i, a multiple of 1024 at i = 0) where its random word < bound."""
    for part in range(0, m, 1024):
        philox((first + part) // 1024, key0, key1, words)
        here = values[part : min(part + 1024, m)]
        for i in range(here.shape[0]):
            here[i] = here[i] if np.uint64(words[i]) < np.uint64(bound) else np.float32(0.0)


# ---------------------------------------------------------------- C and D: combine what was kept


@kernel
def l1_sums(rows, codes, n, mode, limits, quotas, keys, first, partial, bad):  # pragma: no cover - compiled
    """partial[b, s] = (sum |delta_s|, sum |kept delta_s|) over block b of the tile, in float64."""
    base_bits, bits = np.empty(STEP, np.uint32), np.empty(STEP, np.uint32)
    base, values = base_bits.view(np.float32), bits.view(np.float32)
    k = rows.shape[0] - 1
    crops = limits.shape[0] > k
    folded = values.reshape((STEP // LANES, LANES))
    words, lanes = np.empty(1024, np.uint32), np.empty((2, LANES), np.float64)
    for b in range(partial.shape[0]):
        begin, end = b * BLOCK, min((b + 1) * BLOCK, n)
        for s in range(1, rows.shape[0]):
            quota = quotas[b, s - 1]
            outliers = quotas[b, k + s - 1] if crops else np.int64(0)
            lanes[:] = 0.0
            for start in range(begin, end, STEP):
                m = min(STEP, end - start)
                bad[0] += decode(rows[0], codes[0], start, m, base_bits)
                bad[s] += decode(rows[s], codes[s], start, m, bits)
                subtract(values, base, m)
                bits[m:] = np.uint32(0)
                for after in range(2):
                    sums = lanes[after]
                    for row in range(STEP // LANES):
                        for lane in range(LANES):
                            sums[lane] += abs(np.float64(folded[row, lane]))
                    if after == 0 and mode == TRIM:
                        quota = trim(bits, m, limits[s - 1], quota)
                        if crops:
                            outliers = _crop(bits, m, limits[k + s - 1], outliers)
                    elif after == 0:
                        _drop(values, m, first + start, keys[s - 1, 0], keys[s - 1, 1], limits[s - 1], words)
            for after in range(2):
                total = 0.0
                for lane in range(LANES):
                    total += lanes[after, lane]
                partial[b, s - 1, after] = total


@kernel
def sparse_sum(
    rows,
    codes,
    n,
    mode,
    limits,
    quotas,
    keys,
    first,
    factors,
    weights,
    vote,
    normalize,
    scale,
    out,
    out_code,
    bad,
):  # pragma: no cover - compiled
    """out = base + scale * sum_s w_s kept(delta_s) [sign agrees] (/ sum_s w_s [sign agrees and kept]).

    ``mode`` TRIM keeps by magnitude (limits: threshold bits; quotas int64 [blocks, sources]: how many equal to
    it; twice as many limits: the second half says above which outliers are dropped), DROP at random
    (limits: 32-bit bounds; keys uint32 [sources, 2]; first: index of the tile's first element).
    ``factors`` float32 [sources] rescale what was kept. ``vote`` chooses the elected sign. float32 throughout.
    """
    k = rows.shape[0] - 1
    crops = limits.shape[0] > k
    base_bits, decoded = np.empty(STEP, np.uint32), np.empty((k, STEP), np.uint32)
    base, deltas = base_bits.view(np.float32), decoded.view(np.float32)
    ballot, total, share = np.empty(STEP, np.float32), np.empty(STEP, np.float32), np.empty(STEP, np.float32)
    words = np.empty(1024, np.uint32)
    quota = np.empty(limits.shape[0], np.int64)
    for start in range(0, n, STEP):
        m = min(STEP, n - start)
        if start % BLOCK == 0:
            for s in range(limits.shape[0]):  # a loop: assigning a slice compiles numba's error messages, two seconds
                quota[s] = quotas[start // BLOCK, s]
        bad[0] += decode(rows[0], codes[0], start, m, base_bits)
        for s in range(k):
            values, bits = deltas[s], decoded[s]
            bad[s + 1] += decode(rows[s + 1], codes[s + 1], start, m, bits)
            subtract(values, base, m)
            if mode == TRIM:
                quota[s] = trim(bits, m, limits[s], quota[s])
                if crops:
                    quota[k + s] = _crop(bits, m, limits[k + s], quota[k + s])
            else:
                _drop(values, m, first + start, keys[s, 0], keys[s, 1], limits[s], words)
        elect(deltas, factors, weights, vote, normalize, scale, base, ballot, total, share, m)
        encode(base_bits, m, out, out_code, start)


@inner
def elect(
    deltas, factors, weights, vote, normalize, scale, base, ballot, total, share, m
):  # pragma: no cover - compiled
    """base += scale * sum_s w_s factor_s delta_s where the sign agrees (/ sum_s w_s of those); deltas are spent."""
    k = deltas.shape[0]
    zero = np.float32(0.0)
    ballot[:m], total[:m], share[:m] = zero, zero, zero
    for s in range(k):
        values, w, factor = deltas[s], weights[s], factors[s]
        if factor != np.float32(1.0):
            for i in range(m):
                values[i] *= factor
        if vote == VOTE_PLAIN:
            for i in range(m):
                ballot[i] += values[i]
        for i in range(m):
            values[i] *= w
        if vote == VOTE_WEIGHTED:
            for i in range(m):
                ballot[i] += values[i]
    for s in range(k):
        values, w = deltas[s], weights[s]
        if vote == VOTE_NONE:
            for i in range(m):
                total[i] += values[i]
                share[i] += w
        else:
            for i in range(m):
                agrees = (values[i] > zero) if ballot[i] >= zero else (values[i] < zero)
                total[i] += values[i] if agrees else zero
                share[i] += w if agrees else zero
    for i in range(m):
        if normalize:
            total[i] = total[i] / (share[i] if share[i] != zero else np.float32(1.0))
        base[i] = base[i] + scale * total[i]
