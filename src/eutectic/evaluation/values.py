"""A look at every value of a checkpoint, streamed: NaN and infinity, zeros, the largest, float32 that is bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from eutectic.evaluation.distance import comparable
from eutectic.evaluation.hazards import Hazard
from eutectic.weights.checkpoint import Checkpoint
from eutectic.weights.codec import widen
from eutectic.weights.tensor_ref import TensorRef

__all__ = ["Values", "value_hazards", "values_of"]

PIECE = 1 << 20  # elements read at a time
LARGEST_HALF = 65504.0


@dataclass(frozen=True)
class Values:
    """One tensor of floats: how many elements are NaN or infinite, how many zero, and the largest finite magnitude.

    `narrow`: every value of a float32 tensor is one of bfloat16.
    """

    name: str
    elements: int
    nonfinite: int
    zeros: int
    largest: float
    narrow: bool


def values_of(checkpoint: Checkpoint, report: Callable[[int], None] | None = None) -> list[Values]:
    """Every tensor of floats with known values. `report` is called with the bytes done since the last call."""
    found = []
    for tensor in checkpoint.values():
        if tensor.dtype.floating and tensor.numel and comparable("F64", tensor.dtype.name):
            found.append(_look(tensor, report))
        elif report:
            report(tensor.nbytes)
    return found


def _look(tensor: TensorRef, report: Callable[[int], None] | None) -> Values:
    nonfinite = zeros = bits = 0
    largest = 0.0
    for start in range(0, tensor.numel, PIECE):
        raw = np.frombuffer(tensor.read(start, min(start + PIECE, tensor.numel)), np.uint8)
        values = widen(raw, tensor.dtype.name)
        finite = np.isfinite(values)
        nonfinite += len(values) - int(np.count_nonzero(finite))
        zeros += int(np.count_nonzero(values == 0))
        largest = max(largest, float(np.abs(values, where=finite, out=np.zeros_like(values)).max(initial=0)))
        if tensor.dtype.name == "F32":
            bits |= int(np.bitwise_or.reduce(raw.view("<u4")))
        if report:
            report(len(raw))
    return Values(
        tensor.name, tensor.numel, nonfinite, zeros, largest, tensor.dtype.name == "F32" and not bits & 0xFFFF
    )


def value_hazards(found: list[Values]) -> list[Hazard]:
    """What the values add to the hazards that headers tell."""
    broken = [v for v in found if v.nonfinite]
    empty = tuple(v.name for v in found if v.zeros == v.elements)
    large = tuple(v.name for v in found if v.largest > LARGEST_HALF)
    hazards = []
    if broken:
        count = sum(v.nonfinite for v in broken)
        message = f"{'1 value is' if count == 1 else f'{count:,} values are'} NaN or infinite; a merge refuses them"
        hazards.append(Hazard("nonfinite", message, tuple(v.name for v in broken)))
    if large:
        hazards.append(Hazard("large", "values above 65,504 become infinite in float16", large))
    if empty:
        hazards.append(Hazard("zeros", "nothing but zeros", empty))
    if found and all(v.narrow for v in found):
        hazards.append(Hazard("narrow", "float32 that holds nothing but bfloat16 values: half the bytes say nothing"))
    return hazards
