"""bfloat16 as uint16 in numpy: widening, and round-to-nearest-even from float32 and straight from float64."""

from __future__ import annotations

import numpy as np

# A float64 has 52 mantissa bits and a bfloat16 has 7, so one rounding drops 45.
DROPPED = 45
HALF = np.uint64(1 << (DROPPED - 1))
LOW = np.uint64((1 << DROPPED) - 1)
SMALLEST_NORMAL = 2.0**-126
SUBNORMAL_STEP = 2.0**-133


def widen(bits: np.ndarray) -> np.ndarray:
    """uint16 bfloat16 patterns -> float32, exactly."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def from_float32(values: np.ndarray) -> np.ndarray:
    """Finite float32 -> uint16 bfloat16 patterns, round to nearest, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)).astype(np.uint16)


def from_float64(values: np.ndarray) -> np.ndarray:
    """Finite float64 -> uint16 bfloat16 patterns with ONE rounding (never through a rounded float32)."""
    bits = values.view(np.uint64)
    even = (bits >> np.uint64(DROPPED)) & np.uint64(1)
    rounded = ((bits + (HALF - np.uint64(1)) + even) & ~LOW).view(np.float64)
    tiny = np.abs(values) < SMALLEST_NORMAL
    if tiny.any():
        rounded = np.where(tiny, np.rint(values / SUBNORMAL_STEP) * SUBNORMAL_STEP, rounded)
    with np.errstate(over="ignore"):
        exact = rounded.astype(np.float32)
    return (exact.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def near_tie(values: np.ndarray, relative: float = 1e-12) -> np.ndarray:
    """True where a normal float64 lies within `relative` of the middle between two bfloat16 neighbours."""
    bits = values.view(np.uint64)
    distance = np.abs((bits & LOW).astype(np.int64) - np.int64(HALF))
    mantissa = 1.0 + (bits & np.uint64((1 << 52) - 1)).astype(np.float64) * 2.0**-52
    return distance <= relative * 2.0**52 * mantissa


def steps_apart(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """How many bfloat16 values two uint16 patterns are apart (signs counted, +0 and -0 the same)."""

    def ordered(bits: np.ndarray) -> np.ndarray:
        magnitude = (bits & np.uint16(0x7FFF)).astype(np.int32)
        return np.where(bits & np.uint16(0x8000), -magnitude, magnitude)

    return np.abs(ordered(left) - ordered(right))
