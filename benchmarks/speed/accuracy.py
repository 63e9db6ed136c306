"""Compare every element of an output with the float64 result rounded once to bfloat16.

    python benchmarks/speed/accuracy.py METHOD FAMILY_FOLDER OUT

linear: acc += w * x over the sources in order, divided by the sum of the weights.
task_arithmetic: acc += w * (x - base) over the sources in order, then acc + base, as docs/methods.md states it.
Elements whose float64 result lies within 1e-12 (relative) of the middle between two bfloat16 values are counted
apart: float64 itself cannot be trusted to choose there. Streams in blocks; prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bfloat16
import merges
import numpy as np
from folder import Place, places

BLOCK = 1 << 20  # elements


def linear(sources: list[np.ndarray]) -> np.ndarray:
    """The normalised weighted sum in float64."""
    weights = merges.LINEAR_WEIGHTS[: len(sources)]
    total = np.zeros(sources[0].shape, np.float64)
    for weight, source in zip(weights, sources, strict=True):
        total += weight * source
    return total / sum(weights)


def task_arithmetic(sources: list[np.ndarray]) -> np.ndarray:
    """sum of weight * (source - base), plus base, in float64; the base is the first source.

    The order matters where the sum cancels the base (to about 1e-18) and at exact ties: sum first loses least.
    """
    base, *experts = sources
    total = np.zeros(base.shape, np.float64)
    for expert in experts:
        total += merges.TASK_WEIGHT * (expert - base)
    return total + base


METHODS = {"linear": linear, "task_arithmetic": task_arithmetic}


class Reader:
    """Positioned reads of bfloat16 blocks, one descriptor a file."""

    def __init__(self, folder: Path) -> None:
        self.places = places(folder)
        self.descriptors = {p: os.open(p, os.O_RDONLY) for p in {place.path for place in self.places.values()}}

    def block(self, name: str, first: int, count: int) -> np.ndarray:
        """`count` elements of a tensor from element `first`, as uint16."""
        place: Place = self.places[name]
        data = os.pread(self.descriptors[place.path], 2 * count, place.begin + 2 * first)
        return np.frombuffer(data, np.uint16)


def compare(method: str, family: Path, out: Path, threads: int = 2) -> dict:
    """Counts over all elements of the output."""
    wanted = merges.merge(method, len(list(family.glob("ft*"))))
    reference: Callable[[list[np.ndarray]], np.ndarray] = METHODS[method]
    sources = [Reader(family / name) for name in wanted.inputs]
    output = Reader(out)

    def count(block: tuple[str, int, int]) -> np.ndarray:
        exact = reference([bfloat16.widen(source.block(*block)).astype(np.float64) for source in sources])
        rounded, ours = bfloat16.from_float64(exact), output.block(*block)
        steps = bfloat16.steps_apart(rounded, ours)
        tie = bfloat16.near_tie(exact)
        return np.array([exact.size, tie.sum(), (steps[~tie] > 0).sum(), (steps[tie] > 0).sum(), (steps > 1).sum()])

    blocks = [
        (name, first, min(BLOCK, size - first))
        for name, place in output.places.items()
        for size in [(place.end - place.begin) // 2]
        for first in range(0, size, BLOCK)
    ]
    with ThreadPoolExecutor(threads) as pool:
        totals = sum(pool.map(count, blocks), np.zeros(5, np.int64))
    names = ("elements", "near_ties", "differ", "differ_at_near_ties", "differ_by_more_than_one_step")
    return dict(zip(names, map(int, totals), strict=True))


if __name__ == "__main__":
    print(json.dumps(compare(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
