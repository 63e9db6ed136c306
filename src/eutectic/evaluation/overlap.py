"""The changes of two checkpoints to one base: cosine, sign conflicts, and how far their strongest directions agree.

With D_A = A - base and D_B = B - base of one matrix [m, n], and their top r left singular vectors U_A, U_B [m, r] and
right ones V_A, V_B [n, r]:

    left = |U_A^T U_B|_F^2 / r      right = |V_A^T V_B|_F^2 / r      1: the same subspace; by chance r / m and r / n

The vectors of the shorter side come from the eigenvectors of its Gram matrix in float64, those of the other follow:
u = D v / s. A tensor of more than two axes is a matrix of its first against the rest. One matrix is held at a time, in
float32 and in pieces of its rows in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from eutectic.errors import SourceError
from eutectic.evaluation.deltas import DeltaSums, alike, sum_deltas
from eutectic.weights.checkpoint import Checkpoint
from eutectic.weights.codec import widen
from eutectic.weights.tensor_ref import TensorRef

__all__ = ["Overlap", "Overlaps", "compare_deltas"]

LONGEST = 8192  # of a matrix's shorter side: beyond it the eigenvectors take minutes
ROWS = 256  # of a matrix, in float64 at a time
NULL = 1e-10  # squared singular values below this share of the largest are rounding


@dataclass(frozen=True)
class Overlap:
    """One tensor. `rank` directions were compared (0: none; `reason` says why); chances: of random subspaces."""

    name: str
    sums: DeltaSums
    rank: int = 0
    left: float | None = None
    right: float | None = None
    left_chance: float | None = None
    right_chance: float | None = None
    reason: str = ""

    @property
    def cosine(self) -> float | None:
        """Of the two deltas."""
        return self.sums.cosine()[0][1]

    @property
    def sign_conflict(self) -> float | None:
        """Share, of the elements that changed in both, of those that moved apart."""
        return self.sums.sign_conflict()[0][1]


@dataclass(frozen=True)
class Overlaps:
    """Every tensor that could be compared; `skipped` names the others with the reason."""

    tensors: tuple[Overlap, ...]
    skipped: Mapping[str, str]

    @property
    def total(self) -> DeltaSums:
        """The sums over all tensors."""
        return sum((tensor.sums for tensor in self.tensors), DeltaSums.empty(2))


def compare_deltas(
    base: Checkpoint,
    a: Checkpoint,
    b: Checkpoint,
    *,
    rank: int = 8,
    report: Callable[[int], None] | None = None,
) -> Overlaps:
    """Compare how A and B differ from their base, tensor by tensor.

    Args:
        rank: how many singular directions to compare; 0 leaves them out, which needs no eigenvectors.
        report: called with the number of A's bytes done since the last call.

    Raises:
        SourceError: no tensor of floats that all three have in one shape.
    """
    found, skipped = [], {}
    for name, tensor in a.items():
        lacking = [label for label, model in (("B", b), ("the base", base)) if name not in model]
        if lacking:
            skipped[name] = f"not in {' and '.join(lacking)}"
        elif not alike(base[name], [tensor, b[name]]):
            skipped[name] = "other shapes, or no floating-point numbers with known values"
        else:
            sums = sum_deltas(base[name], [tensor, b[name]])
            found.append(_subspaces(base[name], tensor, b[name], sums, rank))
        if report:
            report(tensor.nbytes)
    if not found:
        raise SourceError("nothing to compare: no tensor of floats is in A, B and the base with one shape")
    return Overlaps(tuple(found), skipped)


def _subspaces(base: TensorRef, a: TensorRef, b: TensorRef, sums: DeltaSums, rank: int) -> Overlap:
    shape = (base.shape[0], base.numel // base.shape[0]) if len(base.shape) > 1 else (1, base.numel)
    reason = ""
    if rank == 0:
        reason = "not asked for"
    elif min(shape) < 2:
        reason = "no matrix"
    elif min(shape) > LONGEST:
        reason = f"its shorter side is longer than {LONGEST:,}"
    elif sums.nonfinite:
        reason = "NaN or infinity"
    elif not sums.norms.all():
        reason = "a delta is zero"
    if reason:
        return Overlap(base.name, sums, reason=reason)
    first, second = _delta(base, a).reshape(shape), _delta(base, b).reshape(shape)
    flipped = shape[0] < shape[1]
    if flipped:
        first, second = first.T, second.T  # tall: the Gram matrix is that of the columns
    short_a, short_b = _directions(first, rank), _directions(second, rank)
    count = min(short_a.shape[1], short_b.shape[1])
    short_a, short_b = short_a[:, :count], short_b[:, :count]
    across = np.zeros((count, count))
    squares = np.zeros((2, count))
    for x, y in zip(_pieces(first), _pieces(second), strict=True):
        p, q = x @ short_a, y @ short_b
        across += p.T @ q
        squares += [np.square(p).sum(axis=0), np.square(q).sum(axis=0)]
    across /= np.sqrt(np.outer(squares[0], squares[1]))
    tall, short = float(np.square(across).sum() / count), float(np.square(short_a.T @ short_b).sum() / count)
    left, right = (short, tall) if flipped else (tall, short)
    return Overlap(
        base.name, sums, count, min(1.0, left), min(1.0, right), min(1.0, count / shape[0]), min(1.0, count / shape[1])
    )


def _delta(base: TensorRef, other: TensorRef) -> np.ndarray:
    """other - base in float32 [n], rounded once from float64."""
    delta = np.empty(base.numel, dtype=np.float32)
    step = 1 << 18
    for start in range(0, base.numel, step):
        stop = min(start + step, base.numel)
        x, y = (
            widen(np.frombuffer(ref.read(start, stop), np.uint8), ref.dtype.name).astype(np.float64)
            for ref in (other, base)
        )
        delta[start:stop] = x - y
    return delta


def _directions(tall: np.ndarray, rank: int) -> np.ndarray:
    """The top right singular vectors [n, <= rank] of a tall matrix, those that rounding hides left out."""
    gram = np.zeros((tall.shape[1], tall.shape[1]))
    for rows in _pieces(tall):
        gram += rows.T @ rows
    values, vectors = np.linalg.eigh(gram)
    kept = min(rank, int(np.count_nonzero(values > NULL * values[-1])))
    return vectors[:, ::-1][:, :kept]


def _pieces(matrix: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, matrix.shape[0], ROWS):
        yield matrix[start : start + ROWS].astype(np.float64)
