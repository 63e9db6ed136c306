"""Codes of a few bits, packed without gaps into little-endian bytes: the first code in the lowest bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["E2M1", "pairs", "unpack"]

# FP4 (E2M1) of OCP's Microscaling formats: code -> number, the high bit is the sign.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def unpack(packed: np.ndarray, bits: int, columns: int) -> np.ndarray:
    """Codes (uint8 [rows, columns]) from bytes (uint8 [rows, n]): code i has bits i b .. i b + b - 1 of its row.

    >>> unpack(np.array([[0x21, 0x43]], dtype=np.uint8), 4, 4)
    array([[1, 2, 3, 4]], dtype=uint8)
    """
    mask = (1 << bits) - 1
    if bits == 8:
        return packed[:, :columns]
    if 8 % bits == 0:
        found = np.empty((*packed.shape, 8 // bits), dtype=np.uint8)
        for at in range(8 // bits):
            np.right_shift(packed, at * bits, out=found[..., at])
        found &= mask
        return found.reshape(len(packed), -1)[:, :columns]
    place = np.arange(columns) * bits
    byte, shift = place >> 3, (place & 7).astype(np.uint16)
    found = packed[:, byte].astype(np.uint16)
    found |= packed[:, np.minimum(byte + 1, packed.shape[1] - 1)].astype(np.uint16) << 8
    return ((found >> shift) & mask).astype(np.uint8)


def pairs(values: Sequence[float] | np.ndarray, *, high_first: bool = False) -> np.ndarray:
    """A table from a byte to the numbers of its two codes, each pair one 8-byte entry (`view` them as float32)."""
    low, high = np.arange(256) & 15, np.arange(256) >> 4
    order = (high, low) if high_first else (low, high)
    found = np.stack([np.asarray(values, dtype=np.float32)[code] for code in order], axis=1)
    return np.ascontiguousarray(found).view(np.complex64).reshape(256)
