"""How far two tensors lie apart: sums that add up over pieces, and the measures made of them.

With A and B the two tensors, over the elements that are finite in both:

    max_abs = max |A - B|      relative_l2 = ||A - B|| / ||A||      cosine = <A, B> / (||A|| ||B||)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from eutectic.weights.codec import widen
from eutectic.weights.dtypes import BY_NAME

__all__ = ["Distance", "comparable", "measure"]

BLOCK = 1 << 13  # elements measured at a time: 64 KiB of float64 stay in the cache, and BLAS starts no threads
COUNTED_ONLY = ("C64", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ")  # no real values are known for these


@dataclass(frozen=True)
class Distance:
    """Sums over pairs of elements. Adding two of them gives the distance of both parts together.

    ``different`` counts pairs with other bits (other values, where the types differ); ``nonfinite`` pairs in which
    NaN or infinity occurs, left out of every measure below; ``opposite`` pairs of opposite sign, neither zero;
    ``max_abs`` is None where the type has no real values; the squares and the dot product are of A, B, A - B.
    """

    elements: int = 0
    different: int = 0
    nonfinite: int = 0
    opposite: int = 0
    max_abs: float | None = None
    square_a: float = 0.0
    square_b: float = 0.0
    square_difference: float = 0.0
    dot: float = 0.0

    def __add__(self, other: Distance) -> Distance:
        known = [m.max_abs for m in (self, other) if m.max_abs is not None]
        return Distance(
            self.elements + other.elements,
            self.different + other.different,
            self.nonfinite + other.nonfinite,
            self.opposite + other.opposite,
            max(known, default=None),
            self.square_a + other.square_a,
            self.square_b + other.square_b,
            self.square_difference + other.square_difference,
            self.dot + other.dot,
        )

    @property
    def relative_l2(self) -> float | None:
        """||A - B|| / ||A||; None if A is zero, or not a tensor of floats."""
        ratio = self.square_difference / self.square_a if self.square_a else math.nan
        return math.sqrt(ratio) if math.isfinite(ratio) else None

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between A and B; None if either is zero, or not a tensor of floats."""
        norms = math.sqrt(self.square_a) * math.sqrt(self.square_b)
        ratio = self.dot / norms if norms else math.nan
        return max(-1.0, min(1.0, ratio)) if math.isfinite(ratio) else None

    @property
    def severity(self) -> float:
        """What sorts the worst first: relative_l2, or infinity where that is unknown or hides NaN or infinity."""
        return math.inf if self.nonfinite or self.relative_l2 is None else self.relative_l2

    @property
    def different_share(self) -> float:
        """Share of the elements that differ."""
        return self.different / self.elements if self.elements else 0.0

    @property
    def opposite_share(self) -> float:
        """Share of the elements whose signs disagree."""
        return self.opposite / self.elements if self.elements else 0.0


def comparable(dtype_a: str, dtype_b: str) -> bool:
    """Can values of these safetensors types be compared? Equal types always can, by their bits."""
    known = [BY_NAME[d].floating and d not in COUNTED_ONLY for d in (dtype_a, dtype_b)]
    return dtype_a == dtype_b or all(known)


def measure(raw_a: np.ndarray, raw_b: np.ndarray, dtype_a: str, dtype_b: str) -> Distance:
    """The distance of two pieces of equally many elements, given as raw bytes (uint8) and safetensors' type names.

    >>> measure(np.array([1, 2], np.uint8), np.array([1, 5], np.uint8), "U8", "U8").max_abs
    3.0
    """
    size_a, size_b = BY_NAME[dtype_a].size, BY_NAME[dtype_b].size
    total = Distance()
    for start in range(0, len(raw_a) // size_a, BLOCK):
        block_a = raw_a[start * size_a : (start + BLOCK) * size_a]
        block_b = raw_b[start * size_b : (start + BLOCK) * size_b]
        total += _measure_block(block_a, block_b, dtype_a, dtype_b)
    return total


def _measure_block(raw_a: np.ndarray, raw_b: np.ndarray, dtype_a: str, dtype_b: str) -> Distance:
    elements, different = len(raw_a) // BY_NAME[dtype_a].size, 0
    if dtype_a == dtype_b:
        bits = f"<u{BY_NAME[dtype_a].size}"
        different = int(np.count_nonzero(raw_a.view(bits) != raw_b.view(bits)))
        if dtype_a in COUNTED_ONLY:
            return Distance(elements, different)
    with np.errstate(all="ignore"):
        a, b = widen(raw_a, dtype_a).astype(np.float64), widen(raw_b, dtype_b).astype(np.float64)
        if dtype_a != dtype_b:
            different = int(np.count_nonzero((a != b) & ~(np.isnan(a) & np.isnan(b))))
        if not BY_NAME[dtype_a].floating:
            return Distance(elements, different, max_abs=float(np.abs(a - b).max(initial=0.0)))
        nonfinite, square_a, square_b = 0, float(a @ a), float(b @ b)
        if not math.isfinite(square_a + square_b):  # NaN or infinity inside, or squares beyond float64
            finite = np.isfinite(a) & np.isfinite(b)
            nonfinite = elements - int(np.count_nonzero(finite))
            a, b = a[finite], b[finite]
            square_a, square_b = float(a @ a), float(b @ b)
        difference, product = a - b, a * b
        return Distance(
            elements,
            different,
            nonfinite,
            opposite=int(np.count_nonzero(product < 0)),
            max_abs=float(max(difference.max(initial=0.0), -difference.min(initial=0.0))),
            square_a=square_a,
            square_b=square_b,
            square_difference=float(difference @ difference),
            dot=float(product.sum()),
        )
