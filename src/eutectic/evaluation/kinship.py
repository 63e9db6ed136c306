"""How a checkpoint is related to others: distances, and cosines of deltas to the likely base, in one streamed pass.

With x the checkpoint, c_i the candidates and d_i = c_i - x, the products <d_i, d_j> give every distance, and with
candidate b as base the deltas x - b = -d_b and c_j - b = d_j - d_b:

    |x - c_i| = |d_i|     cos(x - b, c_j - b) = (|d_b|^2 - <d_b, d_j>) / (|d_b| |d_j - d_b|)

The base of a fine-tune is the nearest of its kin: another fine-tune of the base is further by its own delta.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from eutectic.errors import SourceError
from eutectic.evaluation.deltas import DeltaSums, alike, sum_deltas
from eutectic.weights.checkpoint import Checkpoint
from eutectic.weights.codec import widen
from eutectic.weights.tensor_ref import TensorRef

__all__ = ["RELATED", "Kin", "Kinship", "find_kin"]

RELATED = 0.7  # |x - c| / |x| up to which two models count as one family; unrelated ones are near 1.4
PIECE = 1 << 20


@dataclass(frozen=True)
class Kin:
    """One candidate: `distance` is |x - c| / |x|, `equal` whether nothing differs; `tensors` and `share` (of the
    checkpoint's elements) were compared. `delta_cosine` is that of both deltas to the likely base; None where one is
    zero, and for the base itself."""

    name: str
    tensors: int
    share: float
    distance: float | None
    equal: bool
    related: bool
    delta_cosine: float | None = None


@dataclass(frozen=True)
class Kinship:
    """The candidates, nearest first, and the likely base among them: the one given, or the nearest that is related."""

    kin: tuple[Kin, ...]
    base: str | None
    given: bool

    @property
    def verdict(self) -> str:
        """A sentence."""
        nearest = self.kin[0]
        if nearest.equal:
            return f"equal to {nearest.name}"
        if self.base is None:
            return "related to none of them"
        chosen = next(kin for kin in self.kin if kin.name == self.base)
        how = "as given" if self.given else "the nearest"
        far = "" if chosen.related else ", yet far from it"
        return f"{self.base} ({how}{far})"


def find_kin(
    checkpoint: Checkpoint,
    candidates: Mapping[str, Checkpoint],
    *,
    base: str | None = None,
    report: Callable[[int], None] | None = None,
) -> Kinship:
    """Compare a checkpoint with candidates: over the tensors of floats that all of them have in one shape.

    Args:
        base: the name of the candidate that is the base (default: the nearest, if it is related).
        report: called with the number of the checkpoint's bytes done since the last call.

    Raises:
        SourceError: no candidate, or no tensor in common with any.
    """
    if not candidates:
        raise SourceError("no candidates to compare with; name at least one")
    # a candidate of another shape is compared by what it shares, and must not hide the others
    usable = {n: c for n, c in candidates.items() if any(_pair(checkpoint, c, name) for name in checkpoint)}
    if not usable:
        raise SourceError(
            f"none of {', '.join(candidates)} has a tensor of floats of the checkpoint's names and shapes"
        )
    names = [name for name in checkpoint if all(_pair(checkpoint, c, name) for c in usable.values())]
    if not names:
        raise SourceError(f"no tensor of floats is in the checkpoint and in all of {', '.join(usable)} with one shape")
    total, square = DeltaSums.empty(len(usable)), 0.0
    for name, tensor in checkpoint.items():
        if name in names:
            total += sum_deltas(tensor, [candidate[name] for candidate in usable.values()])
            square += _square(tensor)
        if report:
            report(tensor.nbytes)
    elements = sum(checkpoint[name].numel for name in names)
    kin = [
        Kin(label, len(names), elements / max(1, checkpoint.numel), *_distance(float(total.norms[i]), square))
        for i, label in enumerate(usable)
    ]
    order = sorted(range(len(kin)), key=lambda i: total.norms[i])
    nearest = next((kin[i].name for i in order if kin[i].related and not kin[i].equal), None)
    chosen = base if base in usable else nearest
    if chosen is not None:
        kin = _with_cosines(kin, total, list(usable).index(chosen))
    missing = [Kin(name, 0, 0.0, None, False, False) for name in candidates if name not in usable]
    return Kinship((*(kin[i] for i in order), *missing), chosen, chosen is not None and chosen == base)


def _pair(checkpoint: Checkpoint, candidate: Checkpoint, name: str) -> bool:
    return name in candidate and alike(checkpoint[name], [candidate[name]])


def _distance(norm: float, square: float) -> tuple[float | None, bool, bool]:
    distance = norm / math.sqrt(square) if square else None
    return distance, norm == 0, distance is not None and distance <= RELATED


def _with_cosines(kin: list[Kin], total: DeltaSums, b: int) -> list[Kin]:
    found = []
    for j, entry in enumerate(kin):
        away = total.products[b, b] - 2 * total.products[b, j] + total.products[j, j]  # |c_j - b|^2
        across = total.products[b, b] - total.products[b, j]
        norms = math.sqrt(max(0.0, total.products[b, b])) * math.sqrt(max(0.0, away))
        cosine = max(-1.0, min(1.0, across / norms)) if norms > 0 and j != b else None
        found.append(Kin(**{**vars(entry), "delta_cosine": cosine}))
    return found


def _square(tensor: TensorRef) -> float:
    """<x, x>, elements with NaN or infinity left out."""
    total = 0.0
    for start in range(0, tensor.numel, PIECE):
        raw = np.frombuffer(tensor.read(start, min(start + PIECE, tensor.numel)), np.uint8)
        values = widen(raw, tensor.dtype.name).astype(np.float64)
        total += float(np.square(values[np.isfinite(values)]).sum())  # not by BLAS, whose threads decide the order
    return total
