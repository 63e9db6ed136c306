"""Elements of any float type to float32 and back, one rounding: what every kernel compiles into itself.

Legend of all kernels: ``rows`` uint8 [inputs, bytes], one contiguous tile of raw tensor bytes per input; ``codes``
int64 [inputs], the element type of each row (`weights/dtypes.py`); ``n`` elements in the tile; ``out`` uint8 [bytes].
Every kernel walks the tile in STEP elements that stay in the first-level cache: decode, combine, encode.
``bad`` int64 [inputs] counts non-finite elements per input. Row 0 is the base where a kernel takes deltas.
Kernels release the interpreter lock and are compiled once per machine (numba's on-disk cache). That cache notices a
change only in the file of the function itself, not in what it calls: `COMPILED_IN` of the other kernel files is the
digest of the files that they compile in, and a test asks for it to be renewed when those change.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

__all__ = ["LANES", "STEP", "decode", "encode", "inner", "kernel", "narrow", "subtract"]

STEP = 2048  # elements decoded at a time: 8 KB of float32 per input
LANES = 64  # independent partial sums inside a block; a fixed order that the compiler can vectorise

BF16, F16, F32, F64, E4M3, E5M2 = 0, 1, 2, 3, 4, 5  # codes of weights/dtypes.py, frozen into the kernels

kernel: Any = njit(nogil=True, cache=True)
_CALLED_BY_KERNELS: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
inner: Any = njit(nogil=True, cache=True, **_CALLED_BY_KERNELS)
_intrinsic: Any = intrinsic


# ---------------------------------------------------------------- decoding: bytes -> float32


@inner
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


@inner
def decode(row, code, start, n, bits):  # pragma: no cover - compiled
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


@inner
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


@inner
def encode(bits, n, out, code, start):  # pragma: no cover - compiled
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


@inner
def narrow(total, n, out, code, start, bits):  # pragma: no cover - compiled
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
        encode(bits, n, out, code, start)


# ---------------------------------------------------------------- differences


@inner
def subtract(values, base, m):  # pragma: no cover - compiled
    """values -= base, in float32."""
    for i in range(m):
        values[i] = values[i] - base[i]
