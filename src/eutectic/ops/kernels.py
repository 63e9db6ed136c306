"""The fast twins: numba kernels over raw bytes of any float type, float32 or float64 arithmetic, one rounding.

Legend: ``rows`` uint8 [inputs, bytes], one contiguous tile of raw tensor bytes per input; ``codes`` int64
[inputs], the element type of each row (`weights/dtypes.py`); ``n`` elements in the tile; ``out`` uint8 [bytes].
Every kernel walks the tile in STEP elements that stay in the first-level cache: decode, combine, encode.
``bad`` int64 [inputs] counts non-finite elements per input. Row 0 is the base where a kernel takes deltas.
Kernels release the interpreter lock and are compiled once per machine (numba's on-disk cache). They are one file on
purpose: that cache notices a change only in the file of the function itself, not in what it calls.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from eutectic.ops.program import BLOCK

__all__ = [
    "STEP",
    "count_ties",
    "gram",
    "histogram",
    "l1_sums",
    "magnitudes",
    "refine",
    "sparse_sum",
    "weighted_sum",
]

STEP = 2048  # elements decoded at a time: 8 KB of float32 per input
FOLD = 4  # rows of LANES that a Gram matrix holds in float64 at a time
LANES = 64  # independent partial sums inside a block; a fixed order that the compiler can vectorise

BF16, F16, F32, F64, E4M3, E5M2 = 0, 1, 2, 3, 4, 5  # codes of weights/dtypes.py, frozen into the kernels

_kernel: Any = njit(nogil=True, cache=True)
_inner: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # called by kernels only
_part: Any = njit(nogil=True, cache=True, **_inner)
_intrinsic: Any = intrinsic

TRIM, DROP = 0, 1  # which elements a sparse sum keeps: the largest, or random ones
VOTE_NONE, VOTE_WEIGHTED, VOTE_PLAIN = 0, 1, 2


# ---------------------------------------------------------------- decoding: bytes -> float32


@_part
def _fp8_to_f32(value, exponent_bits):  # pragma: no cover - compiled
    """One fp8 element as float32 bits. E4M3 has one NaN and no infinity; E5M2 is IEEE-like."""
    mantissa_bits = 7 - exponent_bits
    sign = np.uint32(value >> 7) << np.uint32(31)
    exponent = (value >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = value & ((1 << mantissa_bits) - 1)
    bias = (1 << (exponent_bits - 1)) - 1
    if exponent_bits == 4 and (value & 0x7F) == 0x7F:
        return sign | np.uint32(0x7FC00000)
    if exponent_bits == 5 and exponent == 31:
        return sign | np.uint32(0x7FC00000 if mantissa else 0x7F800000)
    if exponent == 0:
        if mantissa == 0:
            return sign
        exponent = 1
        while mantissa < (1 << mantissa_bits):  # subnormal: shift until the leading one is implied
            mantissa <<= 1
            exponent -= 1
        mantissa &= (1 << mantissa_bits) - 1
    return sign | (np.uint32(exponent - bias + 127) << np.uint32(23)) | np.uint32(mantissa << (23 - mantissa_bits))


@_part
def _decode(row, code, start, n, bits):  # pragma: no cover - compiled
    """Elements start .. start+n of a row as float32 bits (uint32 [n]); returns 1 if any is not finite.

    Slices are taken first: an index that is the loop variable alone is what lets the compiler vectorise.
    """
    largest = np.uint32(0)
    if code == BF16:
        bf16 = row.view(np.uint16)[start : start + n]
        for i in range(n):
            value = np.uint32(bf16[i]) << np.uint32(16)
            bits[i] = value
            largest = max(largest, value & np.uint32(0x7F800000))
    elif code == F32:
        f32 = row.view(np.uint32)[start : start + n]
        for i in range(n):
            value = f32[i]
            bits[i] = value
            largest = max(largest, value & np.uint32(0x7F800000))
    elif code == F16:
        f16 = row.view(np.uint16)[start : start + n]
        scaled = bits.view(np.float32)
        for i in range(n):
            bits[i] = (np.uint32(f16[i]) & np.uint32(0x7FFF)) << np.uint32(13)
        for i in range(n):  # scaled by 2^112: right for normals and subnormals
            scaled[i] = scaled[i] * np.float32(5.192296858534828e33)
        for i in range(n):
            value = np.uint32(f16[i])
            special = (value & np.uint32(0x7C00)) == np.uint32(0x7C00)
            size = bits[i] | (np.uint32(0x7F800000) if special else np.uint32(0))
            bits[i] = size | ((value & np.uint32(0x8000)) << np.uint32(16))
            largest = max(largest, size & np.uint32(0x7F800000))
    elif code == F64:
        f64 = row.view(np.float64)[start : start + n]
        narrow = bits.view(np.float32)
        for i in range(n):
            narrow[i] = np.float32(f64[i])
        for i in range(n):
            largest = max(largest, bits[i] & np.uint32(0x7F800000))
    else:
        f8 = row[start : start + n]
        for i in range(n):
            bits[i] = _fp8_to_f32(np.int64(f8[i]), 4 if code == E4M3 else 5)
            largest = max(largest, bits[i] & np.uint32(0x7F800000))
    return np.int64(largest == np.uint32(0x7F800000))


# ---------------------------------------------------------------- encoding: float32 bits -> bytes


@_part
def _f32_to_fp8(bits, exponent_bits):  # pragma: no cover - compiled
    """One float32 to fp8, round to nearest even; overflow is NaN (E4M3) or infinity (E5M2), as in torch."""
    mantissa_bits = 7 - exponent_bits
    sign = np.int64((bits >> np.uint32(24)) & np.uint32(0x80))
    magnitude = np.int64(bits & np.uint32(0x7FFFFFFF))
    overflow = 0x7F if mantissa_bits == 3 else 0x7C
    largest = 0x7E if mantissa_bits == 3 else 0x7B
    if magnitude > 0x7F800000:
        return sign | 0x7F
    bias = (1 << (exponent_bits - 1)) - 1
    exponent = (magnitude >> 23) - 127
    mantissa = (magnitude & 0x7FFFFF) | 0x800000
    drop = 23 - mantissa_bits
    if exponent < 1 - bias:
        drop += 1 - bias - exponent
        exponent = 0
    else:
        exponent += bias
        mantissa &= 0x7FFFFF
    if drop > 25:
        return sign
    kept = mantissa >> drop
    rest = mantissa & ((1 << drop) - 1)
    half = 1 << (drop - 1)
    value = (exponent << mantissa_bits) + kept if exponent else kept
    if rest > half or (rest == half and (value & 1)):
        value += 1
    return sign | (overflow if value > largest else value)


@_part
def _encode(bits, n, out, code, start):  # pragma: no cover - compiled
    """float32 bits (uint32 [n]) to elements start .. start+n of `out`, rounded to nearest even."""
    if code == BF16:
        bf16 = out.view(np.uint16)[start : start + n]
        for i in range(n):
            value = bits[i]
            rounded = (value + np.uint32(0x7FFF) + ((value >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            nan = (value & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
            bf16[i] = np.uint16(((value >> np.uint32(16)) | np.uint32(0x40)) if nan else rounded)
    elif code == F32:
        f32 = out.view(np.uint32)[start : start + n]
        for i in range(n):
            f32[i] = bits[i]
    elif code == F16:
        f16 = out.view(np.uint16)[start : start + n]
        magic = np.empty(1, np.float32)
        magic_bits = magic.view(np.uint32)
        for i in range(n):
            value = bits[i]
            sign = (value >> np.uint32(16)) & np.uint32(0x8000)
            size = value & np.uint32(0x7FFFFFFF)
            if size > np.uint32(0x7F800000):
                half = np.uint32(0x7E00)
            elif size >= np.uint32(0x477FF000):  # 65520 and above
                half = np.uint32(0x7C00)
            elif size < np.uint32(0x38800000):  # below 2^-14: adding 0.5 aligns the last place to 2^-24
                magic_bits[0] = size
                magic[0] = magic[0] + np.float32(0.5)
                half = magic_bits[0] - np.uint32(0x3F000000)
            else:
                odd = (size >> np.uint32(13)) & np.uint32(1)
                half = (size - np.uint32(0x38000000) + np.uint32(0x0FFF) + odd) >> np.uint32(13)
            f16[i] = np.uint16(sign | half)
    elif code == F64:
        f64 = out.view(np.float64)[start : start + n]
        wide = bits.view(np.float32)
        for i in range(n):
            f64[i] = np.float64(wide[i])
    else:
        f8 = out[start : start + n]
        for i in range(n):
            f8[i] = np.uint8(_f32_to_fp8(bits[i], 4 if code == E4M3 else 5))


@_intrinsic
def _bits_of(typing_context, value):  # pragma: no cover - compiled
    """The bits of a float32: what a view does for arrays, without going through memory."""

    def generate(context, builder, signature, values):
        return builder.bitcast(values[0], context.get_value_type(types.uint32))

    return types.uint32(types.float32), generate


@_part
def _narrow(total, n, out, code, start, bits):  # pragma: no cover - compiled
    """float64 [n] to elements of `out`, rounded once; `bits` uint32 [n] is room to work in.

    Narrower types go through float32 rounded to odd (the last bit sticky), which makes the second rounding
    exact: Boldo and Melquiond, "When double rounding is odd" (2005).
    """
    if code == F64:
        f64 = out.view(np.float64)[start : start + n]
        for i in range(n):
            f64[i] = total[i]
    elif code == F32:
        f32 = out.view(np.float32)[start : start + n]
        for i in range(n):
            f32[i] = np.float32(total[i])
    else:
        for i in range(n):
            exact = total[i]
            single = np.float32(exact)
            near, near_bits = np.float64(single), _bits_of(single)
            down = near_bits - (np.uint32(1) if abs(near) > abs(exact) else np.uint32(0))
            bits[i] = (down | np.uint32(1)) if near != exact else near_bits
        _encode(bits, n, out, code, start)


# ---------------------------------------------------------------- A: weighted sum


@_kernel
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
            bad[0] += _decode(rows[0], codes[0], start, m, b0)
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
            bad[s] += _decode(rows[s], codes[s], start, m, b0)
            c0 = coefficients[s]
            if together == 4:
                bad[s + 1] += _decode(rows[s + 1], codes[s + 1], start, m, b1)
                bad[s + 2] += _decode(rows[s + 2], codes[s + 2], start, m, b2)
                bad[s + 3] += _decode(rows[s + 3], codes[s + 3], start, m, b3)
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
        _narrow(total, m, out, out_code, start, b0)


# ---------------------------------------------------------------- B: Gram matrix


@_kernel
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
                bad[0] += _decode(rows[0], codes[0], start, m, base_bits)
            for s in range(k):
                bad[s + origin] += _decode(rows[s + origin], codes[s + origin], start, m, decoded[s])
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


# ---------------------------------------------------------------- C: selection by magnitude


@_part
def _subtract(values, base, m):  # pragma: no cover - compiled
    """values -= base, in float32."""
    for i in range(m):
        values[i] = values[i] - base[i]


@_kernel
def magnitudes(rows, codes, n, sizes, bad):  # pragma: no cover - compiled
    """sizes[s, i] = bits of |x_s - base| at element i (uint32 [sources, n])."""
    base_bits, bits = np.empty(STEP, np.uint32), np.empty(STEP, np.uint32)
    base, values = base_bits.view(np.float32), bits.view(np.float32)
    for start in range(0, n, STEP):
        m = min(STEP, n - start)
        bad[0] += _decode(rows[0], codes[0], start, m, base_bits)
        for s in range(1, rows.shape[0]):
            bad[s] += _decode(rows[s], codes[s], start, m, bits)
            _subtract(values, base, m)
            out = sizes[s - 1, start : start + m]
            for i in range(m):
                out[i] = bits[i] & np.uint32(0x7FFFFFFF)


@_kernel
def histogram(rows, codes, n, counts, bad):  # pragma: no cover - compiled
    """counts[s, h] += elements whose |x_s - base| has h as the high 15 bits of its float32 magnitude."""
    base_bits, bits = np.empty(STEP, np.uint32), np.empty(STEP, np.uint32)
    base, values = base_bits.view(np.float32), bits.view(np.float32)
    for start in range(0, n, STEP):
        m = min(STEP, n - start)
        bad[0] += _decode(rows[0], codes[0], start, m, base_bits)
        for s in range(1, rows.shape[0]):
            bad[s] += _decode(rows[s], codes[s], start, m, bits)
            _subtract(values, base, m)
            for i in range(m):
                bits[i] = (bits[i] & np.uint32(0x7FFFFFFF)) >> np.uint32(16)
            for i in range(m):
                counts[s - 1, bits[i]] += 1


@_kernel
def refine(rows, codes, n, high, counts):  # pragma: no cover - compiled
    """counts[r, l] += elements of source r % sources in bin high[r] with l as low 16 bits (high < 0: none)."""
    base_bits, bits = np.empty(STEP, np.uint32), np.empty(STEP, np.uint32)
    base, values = base_bits.view(np.float32), bits.view(np.float32)
    for start in range(0, n, STEP):
        m = min(STEP, n - start)
        _decode(rows[0], codes[0], start, m, base_bits)
        for s in range(1, rows.shape[0]):
            _decode(rows[s], codes[s], start, m, bits)
            _subtract(values, base, m)
            for r in range(s - 1, high.shape[0], rows.shape[0] - 1):
                if high[r] < 0:
                    continue
                wanted = np.uint32(high[r])
                for i in range(m):
                    if (bits[i] & np.uint32(0x7FFFFFFF)) >> np.uint32(16) == wanted:
                        counts[r, bits[i] & np.uint32(0xFFFF)] += 1


@_kernel
def count_ties(rows, codes, n, thresholds, partial):  # pragma: no cover - compiled
    """partial[b, r] = elements of source r % sources in block b of magnitude bits thresholds[r] (0: not counted)."""
    base_bits, bits = np.empty(STEP, np.uint32), np.empty(STEP, np.uint32)
    base, values = base_bits.view(np.float32), bits.view(np.float32)
    for b in range(partial.shape[0]):
        first, last = b * BLOCK, min((b + 1) * BLOCK, n)
        partial[b] = 0
        for start in range(first, last, STEP):
            m = min(STEP, last - start)
            _decode(rows[0], codes[0], start, m, base_bits)
            for s in range(1, rows.shape[0]):
                _decode(rows[s], codes[s], start, m, bits)
                _subtract(values, base, m)
                for r in range(s - 1, thresholds.shape[0], rows.shape[0] - 1):
                    wanted = np.uint32(thresholds[r])
                    if wanted == 0:
                        continue
                    found = 0
                    for i in range(m):
                        found += np.int64((bits[i] & np.uint32(0x7FFFFFFF)) == wanted)
                    partial[b, r] += found


@_part
def _trim(bits, m, threshold, quota):  # pragma: no cover - compiled
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


@_part
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


@_kernel
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


@_part
def _drop(values, m, first, key0, key1, bound, words):  # pragma: no cover - compiled
    """Keep element e (global index first + i, a multiple of 1024 at i = 0) where its random word < bound."""
    for part in range(0, m, 1024):
        philox((first + part) // 1024, key0, key1, words)
        here = values[part : min(part + 1024, m)]
        for i in range(here.shape[0]):
            here[i] = here[i] if np.uint64(words[i]) < np.uint64(bound) else np.float32(0.0)


# ---------------------------------------------------------------- C and D: combine what was kept


@_kernel
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
                bad[0] += _decode(rows[0], codes[0], start, m, base_bits)
                bad[s] += _decode(rows[s], codes[s], start, m, bits)
                _subtract(values, base, m)
                bits[m:] = np.uint32(0)
                for after in range(2):
                    sums = lanes[after]
                    for row in range(STEP // LANES):
                        for lane in range(LANES):
                            sums[lane] += abs(np.float64(folded[row, lane]))
                    if after == 0 and mode == TRIM:
                        quota = _trim(bits, m, limits[s - 1], quota)
                        if crops:
                            outliers = _crop(bits, m, limits[k + s - 1], outliers)
                    elif after == 0:
                        _drop(values, m, first + start, keys[s - 1, 0], keys[s - 1, 1], limits[s - 1], words)
            for after in range(2):
                total = 0.0
                for lane in range(LANES):
                    total += lanes[after, lane]
                partial[b, s - 1, after] = total


@_kernel
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
        bad[0] += _decode(rows[0], codes[0], start, m, base_bits)
        for s in range(k):
            values, bits = deltas[s], decoded[s]
            bad[s + 1] += _decode(rows[s + 1], codes[s + 1], start, m, bits)
            _subtract(values, base, m)
            if mode == TRIM:
                quota[s] = _trim(bits, m, limits[s], quota[s])
                if crops:
                    quota[k + s] = _crop(bits, m, limits[k + s], quota[k + s])
            else:
                _drop(values, m, first + start, keys[s, 0], keys[s, 1], limits[s], words)
        _elect(deltas, factors, weights, vote, normalize, scale, base, ballot, total, share, m)
        _encode(base_bits, m, out, out_code, start)


@_part
def _elect(
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
