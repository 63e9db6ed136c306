"""How many bytes each layer gets of a budget for all: where the next byte takes away most of the error.

Every layer offers points (bytes, squared error). Their lower convex hull is walked, in all layers together, by falling
gain per byte: each prefix of the walk is the best there is for exactly its bytes (Shoham and Gersho 1988). What is left
for the first step that does not fit goes to a smaller one of its layer. So a larger budget never has a larger error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

__all__ = ["Point", "allot", "hull"]


class Point(NamedTuple):
    """What one choice for a layer costs and leaves; `choice` says which."""

    nbytes: int
    error: float
    choice: Any = None


def hull(points: Sequence[Point]) -> list[Point]:
    """The points that some price per byte makes the best, cheapest first; of equal ones the first.

    >>> [point.nbytes for point in hull([Point(1, 9.0), Point(2, 8.0), Point(3, 1.0), Point(4, 2.0)])]
    [1, 3]
    """
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (point.nbytes, point.error)):
        if found and point.error >= found[-1].error:
            continue
        while len(found) > 1 and _gain(found[-1], point) >= _gain(found[-2], found[-1]):
            found.pop()
        found.append(point)
    return found


def _gain(before: Point, after: Point) -> float:
    saved = before.error - after.error
    return saved / (after.nbytes - before.nbytes) if after.nbytes > before.nbytes else math.inf


def allot(layers: Sequence[Sequence[Point]], most_bytes: float = math.inf, most_error: float = 0.0) -> list[Point]:
    """One point of each layer: the least error within `most_bytes`, or the fewest bytes for `most_error`, nearly.

    The cheapest point of each layer is taken in any case, even if all together are more than `most_bytes`.

    >>> layers = [[Point(1, 4.0), Point(2, 0.0)], [Point(1, 9.0), Point(2, 1.0), Point(3, 0.0)]]
    >>> [point.nbytes for point in allot(layers, most_bytes=4)], [point.nbytes for point in allot(layers, most_error=5)]
    ([2, 2], [1, 2])
    """
    hulls = [hull(points) for points in layers]
    steps = [
        (-_gain(before, after), layer, at)
        for layer, points in enumerate(hulls)
        for at, (before, after) in enumerate(pairwise(points))
    ]
    chosen = [points[0] for points in hulls]
    for _, layer, at in sorted(steps):
        others = [point for other, point in enumerate(chosen) if other != layer]
        nbytes = most_bytes - sum(point.nbytes for point in others)
        error = most_error - math.fsum(point.error for point in others)
        before, after = chosen[layer], hulls[layer][at + 1]
        if before.error <= error:
            break
        between = [point for point in layers[layer] if before.nbytes < point.nbytes < after.nbytes]
        if after.nbytes > nbytes:
            fitting = [point for point in between if point.nbytes <= nbytes]
            chosen[layer] = min([before, *fitting], key=lambda point: point.error)
            break
        enough = [point for point in between if point.error <= error]
        chosen[layer] = min([after, *enough], key=lambda point: point.nbytes)
    return chosen
