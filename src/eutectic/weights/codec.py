"""Raw tensor bytes to numpy values, exactly: bfloat16 and fp8 widen to float32, the rest keep their type."""

from __future__ import annotations

import numpy as np

__all__ = ["widen"]


def _fp8_table(exponent_bits: int, mantissa_bits: int) -> np.ndarray:
    """The float32 bits of all 256 values of an fp8 type. E4M3 has one NaN and no infinity; E5M2 is IEEE-like."""
    code = np.arange(256)
    sign, exponent = np.where(code & 0x80, -1.0, 1.0), (code & 0x7F) >> mantissa_bits
    mantissa = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    bias, top = (1 << (exponent_bits - 1)) - 1, (1 << exponent_bits) - 1
    value = np.where(exponent == 0, mantissa * 2.0 ** (1 - bias), (1 + mantissa) * 2.0 ** (exponent - bias))
    if mantissa_bits == 2:
        value = np.where(exponent == top, np.where(mantissa > 0, np.nan, np.inf), value)
    else:
        value = np.where((code & 0x7F) == 0x7F, np.nan, value)
    return (sign * value).astype(np.float32).view(np.uint32)


_E4M3, _E5M2 = _fp8_table(4, 3), _fp8_table(5, 2)

_NATIVE = {
    "F16": "<f2", "F32": "<f4", "F64": "<f8", "BOOL": "|b1", "C64": "<c8",
    "U8": "|u1", "I8": "|i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8", "I64": "<i8",
}  # fmt: skip


def widen(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Bytes (uint8 [n * size]) of a safetensors dtype as numpy values [n].

    >>> widen(np.array([0x80, 0x3F], dtype=np.uint8), "BF16")
    array([1.], dtype=float32)
    """
    if dtype == "BF16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype == "F8_E4M3":
        return _E4M3[raw].view(np.float32)
    if dtype == "F8_E5M2":
        return _E5M2[raw].view(np.float32)
    return raw.view(_NATIVE.get(dtype, "|u1"))
