"""One pass over a checkpoint and its candidate parents: the sums from which least squares gives their coefficients.

With c the checkpoint, p_0 the reference and p_i the other candidates, all in float64:

    x_0 = p_0,  x_i = p_i - p_0,  y = c - p_0,  e = y - X b      G = <x_i, x_j>,  h = <x_i, e>,  s = <e, e>

every element divided by its size: the largest power of two up to |c|, |y| / 2 and |x_i| / 2, to which the rounding of c
is proportional (generalised least squares, Aitken 1935). Small elements tell the most: rounding hides little of their
change, while one that changes by less than half a unit in the last place does not change at all, which would bias an
unweighted sum.

Differences, because fine-tunes of one model are nearly parallel as raw weights and not at all as changes. The response
is what a guess b of the coefficients leaves, not y itself: where the guess is right, s is of the size of the rounding,
and no digits are lost in taking it from sums of the size of y. The guess is the tensor's own, from its first block, and
improved as the sums grow. Blocks of one size in one order: the same sums whatever is read at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from eutectic.weights.codec import widen
from eutectic.weights.dtypes import BY_NAME
from eutectic.weights.tensor_ref import TensorRef

__all__ = ["Sums", "solve", "sum_tensor"]

BLOCK = 1 << 13  # elements summed at a time: BLAS starts no threads for so few, and the rows stay in the cache
READ = 8 << 20  # bytes read at a time, of all the tensors together
NULL = 1e-13  # eigenvalues of a Gram matrix with a unit diagonal that count as zero

# significant bits, and the exponent of the smallest normal number
_PRECISION = {
    "BF16": (8, -126), "F16": (11, -14), "F32": (24, -126), "F64": (53, -1022), "F8_E4M3": (4, -6), "F8_E5M2": (3, -14),
}  # fmt: skip
_EXPONENT = np.uint64(0x7FF << 52)


@dataclass(frozen=True)
class Sums:
    """A tensor's sums. `gram` [k, k], `cross` [k] and `square` are G, h and s of the guess `guess` [k].

    `change` is <y, y>; `rounding` is what rounding alone would leave of <e, e>, and `noise` what counts as such of one
    element when tensors are weighed against one another (never zero); `differing` counts the elements unlike each
    candidate's; `scatter` [k, k] is <e^2 x_i, x_j>, with e as the guess stood at that element, which tells of errors
    that are larger where x is; `nonfinite` counts the elements with NaN or infinity anywhere, which are in none of the
    other sums; `angle` is the one between the first two candidates, as whole vectors, in radians.
    """

    name: str
    elements: int
    nonfinite: int
    gram: np.ndarray
    cross: np.ndarray
    square: float
    guess: np.ndarray
    change: float
    rounding: float
    noise: float
    differing: tuple[int, ...]
    scatter: np.ndarray
    angle: float | None = None

    def left(self, coefficients: np.ndarray) -> float:
        """The sum of squares that these coefficients of x leave: |y - X b|^2."""
        step = coefficients - self.guess
        return max(0.0, float(self.square - 2 * step @ self.cross + step @ self.gram @ step))


def sum_tensor(tensor: TensorRef, candidates: Sequence[TensorRef], report: Callable[[int], None] | None = None) -> Sums:
    """The sums of one tensor over its candidates (the reference first): floats of one shape.

    `report` is called with the number of the tensor's bytes done since the last call.
    """
    total = _Running(tensor.dtype.name, len(candidates))
    for raws in _pieces(tensor, candidates):
        total.add(raws, [ref.dtype.name for ref in (tensor, *candidates)])
        if report:
            report(len(raws[0]))
    return total.sums(tensor.name, tensor.numel)


def solve(gram: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """The least b with G b = h, for a G of any rank: b, a pseudo-inverse of G, its null space [k, n], its condition.

    Columns are first brought to one length. The condition is the ratio of the largest to the smallest singular
    value of X then, null directions left out.

    >>> solve(np.array([[2.0, 2.0], [2.0, 2.0]]), np.array([2.0, 2.0]))[0]
    array([0.5, 0.5])
    """
    lengths = np.sqrt(np.diagonal(gram))
    inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    values, vectors = np.linalg.eigh(gram * np.outer(inverse, inverse))
    kept = values > NULL * max(1.0, values[-1] if len(values) else 0.0)
    back = vectors[:, kept] * inverse[:, None]
    pseudo = (back / values[kept]) @ back.T
    scale = np.where(lengths > 0, inverse, 1.0)
    condition = math.sqrt(values[kept][-1] / values[kept][0]) if kept.any() else 1.0
    return pseudo @ right, pseudo, vectors[:, ~kept] * scale[:, None], condition


class _Running:
    """The sums so far."""

    def __init__(self, dtype: str, count: int) -> None:
        self.dtype, self.count = dtype, count
        self.rows = np.empty((count + 1, BLOCK))  # x_0 .. x_k-1, then e
        self.products = np.zeros((count + 1, count + 1))
        self.scatter = np.zeros((count, count))
        self.guess = np.zeros(count)
        self.differing = np.zeros(count, dtype=np.int64)
        self.plain = np.zeros(3)  # |p_0|^2, <p_0, x_1>, |x_1|^2, not divided by anything
        self.blocks = self.nonfinite = self.bits = 0
        self.change = self.stored = self.partial = 0.0

    def add(self, raws: Sequence[np.ndarray], dtypes: Sequence[str]) -> None:
        if self.dtype in ("F32", "F64"):
            self.bits |= int(np.bitwise_or.reduce(raws[0].view("<u4" if self.dtype == "F32" else "<u8")))
        sizes = [BY_NAME[dtype].size for dtype in dtypes]
        for start in range(0, len(raws[0]) // sizes[0], BLOCK):
            values = [
                widen(raw[start * size : (start + BLOCK) * size], dtype)
                for raw, size, dtype in zip(raws, sizes, dtypes, strict=True)
            ]
            with np.errstate(all="ignore"):
                self._add_block(values[0].astype(np.float64), values[1:])

    def _add_block(self, c: np.ndarray, candidates: Sequence[np.ndarray]) -> None:
        rows = self.rows[:, : len(c)]
        for row, values in zip(rows, candidates, strict=False):
            row[...] = values
        for i, row in enumerate(rows[:-1]):
            self.differing[i] += np.count_nonzero(c != row)
        rows[1:-1] -= rows[0]
        np.subtract(c, rows[0], out=rows[-1])
        finite = np.isfinite(rows).all(axis=0)
        if not finite.all():
            self.nonfinite += len(c) - int(np.count_nonzero(finite))
            c, rows = c[finite], rows[:, finite]
        if self.count > 1:
            self.plain += [float(rows[i] @ rows[j]) for i, j in ((0, 0), (0, 1), (1, 1))]
        least = 2.0 ** _PRECISION[self.dtype][1]
        stored, partial = _binades(c, least), _binades(np.maximum(np.abs(c), np.abs(rows[0])), least)
        size = np.maximum(stored, _binades(np.abs(rows[1:]).max(axis=0), least) / 2)
        rows /= size
        y = rows[-1].copy()
        self.change += float(y @ y)
        stored /= size
        self.stored += float(stored @ stored)
        partial /= size
        self.partial += float(partial @ partial)
        if not self.blocks:
            self.guess = _first_guess(rows[:-1], y)
        for b, x in zip(self.guess, rows[:-1], strict=True):
            if b:
                rows[-1] -= b * x
        for i, row in enumerate(rows):
            for j in range(i, len(rows)):
                self.products[i, j] += float(row @ rows[j])
        moved = rows[:-1] * rows[-1]
        for i, row in enumerate(moved):
            for j in range(i, len(moved)):
                self.scatter[i, j] += float(row @ moved[j])
        self.blocks += 1
        if not self.blocks & (self.blocks - 1):
            self._improve()

    def _improve(self) -> None:
        """Move the guess to where the sums so far put it, and the sums with it."""
        gram, cross = _mirrored(self.products[:-1, :-1]), self.products[:-1, -1]
        step = solve(gram, cross)[0]
        self.products[-1, -1] = max(0.0, self.products[-1, -1] - 2 * step @ cross + step @ gram @ step)
        self.products[:-1, -1] = cross - gram @ step
        self.guess = self.guess + step

    def sums(self, name: str, elements: int) -> Sums:
        """What has been summed. Rounding: one to the stored type, and one in float32 (or wider) for each source added.

        A rounding to p bits of a number in [2^e, 2^(e+1)) has the mean square 2^(2 (e - p + 1)) / 12. Partial sums are
        taken to be as large as the larger of c and p_0.
        """
        bits, elements = self._precision(), elements - self.nonfinite
        unit = 4.0 ** (1 - bits) / 12
        rounding = unit * self.stored + 4.0 ** (1 - max(bits, 24)) / 12 * self.partial * self.count
        return Sums(
            name, elements, self.nonfinite, _mirrored(self.products[:-1, :-1]), self.products[:-1, -1].copy(),
            float(self.products[-1, -1]), self.guess, self.change, rounding,
            max(rounding / max(elements, 1), unit / 16), tuple(map(int, self.differing)), _mirrored(self.scatter),
            self._angle(),
        )  # fmt: skip

    def _angle(self) -> float | None:
        first, across, change = map(float, self.plain)
        second = first + 2 * across + change
        if min(first, second) <= 0:
            return None
        # the part of x_1 across p_0, over the part of p_1 along it: the cosine alone is blind to small angles
        return math.atan2(math.sqrt(max(0.0, change * first - across * across)), first + across)

    def _precision(self) -> int:
        """The significant bits that the values use: bfloat16 stored as float32 has 8."""
        bits = _PRECISION[self.dtype][0]
        mantissa = self.bits & ((1 << (bits - 1)) - 1)
        if not mantissa:
            return bits
        used = bits - ((mantissa & -mantissa).bit_length() - 1)
        return min(p for p in (8, 11, 24, 53) if p >= min(used, bits)) if self.dtype in ("F32", "F64") else bits


def _mirrored(upper: np.ndarray) -> np.ndarray:
    """A symmetric matrix from its upper triangle."""
    upper = np.triu(upper)
    return upper + np.triu(upper, 1).T


def _binades(values: np.ndarray, least: float) -> np.ndarray:
    """The largest power of two up to each |value|, no less than `least`."""
    return np.maximum((values.view(np.uint64) & _EXPONENT).view(np.float64), least)


def _first_guess(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Least squares over the first block by QR, which loses none of its digits to squaring."""
    lengths = np.sqrt(np.einsum("ij,ij->i", x, x))
    scale = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return np.linalg.lstsq((x * scale[:, None]).T, y, rcond=1e-9)[0] * scale if y.size else scale


def _pieces(tensor: TensorRef, candidates: Sequence[TensorRef]) -> Iterator[list[np.ndarray]]:
    """Raw bytes of equally many elements of every tensor, in whole blocks but for the last."""
    refs = (tensor, *candidates)
    step = max(1, READ // sum(ref.dtype.size for ref in refs) // BLOCK) * BLOCK
    buffers = [np.empty(min(step, tensor.numel) * ref.dtype.size, dtype=np.uint8) for ref in refs]
    for start in range(0, tensor.numel, step):
        stop = min(start + step, tensor.numel)
        raws = [buffer[: (stop - start) * ref.dtype.size] for buffer, ref in zip(buffers, refs, strict=True)]
        for raw, ref in zip(raws, refs, strict=True):
            ref.read_into(raw.data, start, stop)
        yield raws
