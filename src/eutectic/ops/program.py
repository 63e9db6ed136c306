"""`Program`: how the engine runs a method fast. Zero or more reductions over the tiles, then one combination.

A program never sees a file, a thread or a tensor's name: it is given tiles (raw bytes of every input over one
range of elements) and adds up or combines. Reductions are exact sums (integers) or sums per fixed block, added in
block order, so the result does not depend on tile size, threads or machines.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["BLOCK", "Program", "Reduction", "Tile"]

MOST_COMMON = 8 * 65536  # elements: whole rows that are whole blocks hash as they are written
BLOCK = 65536  # elements per partial sum: tiles are whole blocks, so partial sums never depend on the tile


@dataclass
class Tile:
    """Elements first .. first+n of every input. `rows` uint8 [inputs, bytes], `codes` int64 [inputs] (dtypes),
    `block` the index of its first unit within the reduction's group, `bad` int64 [inputs] (non-finite found)."""

    rows: np.ndarray
    codes: np.ndarray
    n: int
    first: int
    block: int
    bad: np.ndarray


@dataclass(frozen=True)
class Reduction:
    """One pass wanted: an int64 total of `shape` ("sum"), or one row of `shape` per block ("blocks")."""

    kind: str
    fold: str
    shape: tuple[int, ...]
    dtype: str = "int64"


class Program(ABC):
    """The fast twin of one method on one group of tensors; `found` carries what the reductions found."""

    float64: bool = False
    """Whether float64 inputs keep their precision; otherwise the torch semantics run on them."""
    most_passes: int = 0
    """At most how many reductions it asks for: what the plan counts bytes by."""
    scratch_bytes: int = 0
    """Bytes of its largest "sum" total: one per thread is held."""
    held_bytes: int = 0
    """Bytes that its passes find and the combination of the same tensor needs, besides a few per block."""
    row: int = 0
    """Elements of a row, where rows must not be cut; 0 where any block may be."""
    work_bytes: int = 0
    """Bytes per element of a tile that its kernels need besides the tile."""

    @property
    def unit(self) -> int:
        """Elements per partial sum: tiles are whole units. A `BLOCK`, or as many whole rows as fit one."""
        if not self.row:
            return BLOCK
        common = math.lcm(self.row, BLOCK)
        return common if common <= MOST_COMMON else self.row * max(1, BLOCK // self.row)

    def begin(self, numel: int, blocks: int) -> Any:
        """What is known before any pass over a group of `numel` elements in `blocks` blocks."""
        return None

    def wants(self, found: Any) -> Reduction | None:
        """The next pass, or None when the combination can start."""
        return None

    def reduce(self, reduction: Reduction, tile: Tile, found: Any, total: np.ndarray) -> None:
        """Add one tile to `total` ("sum"), or fill its blocks' rows of it ("blocks": `total` is that slice)."""
        raise AssertionError(f"{type(self).__name__} asked for {reduction.kind} and cannot reduce it")

    def solve(self, reduction: Reduction, total: np.ndarray, found: Any) -> Any:
        """`found`, with what the finished pass says."""
        raise AssertionError(f"{type(self).__name__} asked for {reduction.kind} and cannot solve it")

    @abstractmethod
    def combine(self, tile: Tile, found: Any, out: np.ndarray, out_code: int) -> None:
        """Write the merged elements of the tile to `out` (uint8 bytes of dtype `out_code`)."""
