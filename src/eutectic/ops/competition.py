"""PCB-Merging's program: order statistics of sizes, order statistics of scores, then the average by scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eutectic.ops.program import Program, Reduction, Tile
from eutectic.ops.ranks import DIGIT_BINS, Ranks, key_to_float

__all__ = ["EQUAL", "LEAST", "VARIANTS", "Competition", "Found", "lowest_winner", "spread_of"]

VARIANTS = {"paper": 0, "vision": 1, "main": 2}
LEAST = 1e-12  # sum of the shares of an entry that any task has won
EQUAL = 1e-12  # values that differ by less, in relation to the largest, are equal but for rounding
SIZES, SIZE_DIGITS, SCORE_DIGITS = -1, 2, 4


@dataclass(frozen=True)
class Found:
    """What the passes found; `sizes` and `levels` are the spreads of |δ| and of the scores, float64 [sources, 4]."""

    numel: int
    blocks: int
    ranks: Ranks
    sizes: np.ndarray | None = None
    levels: np.ndarray | None = None


class Competition(Program):
    """base + scale * Σ w_k s_k clipped_k / Σ s_k, scores s_k as in `methods/pcb.py`.

    Args:
        weights: one per source. share: of the entries that are clipped at either end. density: of those that win.
        variant: "paper", "vision" or "main", the form of the score between tasks.
    """

    most_passes = SIZE_DIGITS + SCORE_DIGITS

    def __init__(self, weights: Sequence[float], share: float, density: float, variant: str, scale: float) -> None:
        self.weights = np.asarray(weights, dtype=np.float64)
        self.share, self.density, self.variant, self.scale = share, density, VARIANTS[variant], float(scale)
        self.scratch_bytes = 8 * DIGIT_BINS * 2 * len(self.weights)

    def begin(self, numel: int, blocks: int) -> Found:
        cut = int(self.share * numel)
        return Found(numel, blocks, self._ranks(cut, numel - 1 - cut, SIZE_DIGITS, numel, blocks))

    def _ranks(self, first: int, last: int, digits: int, numel: int, blocks: int) -> Ranks:
        count = len(self.weights)
        return Ranks.of([first] * count + [last] * count, count, digits, numel, blocks)

    def wants(self, found: Found) -> Reduction | None:
        return found.ranks.wants()

    def reduce(self, reduction: Reduction, tile: Tile, found: Found, total: np.ndarray) -> None:
        from eutectic.ops import competition_kernels as kernels

        ranks, variant = found.ranks, SIZES if found.sizes is None else self.variant
        sizes = np.zeros((len(self.weights), 4)) if found.sizes is None else found.sizes
        if reduction.kind == "list":
            kernels.list_keys(tile.rows, tile.codes, tile.n, variant, sizes, total[0], tile.bad)
        else:
            kernels.count_keys(
                tile.rows, tile.codes, tile.n, variant, sizes, ranks.prefix, ranks.level, ranks.digits, total, tile.bad
            )

    def solve(self, reduction: Reduction, total: np.ndarray, found: Found) -> Found:
        ranks = found.ranks.solve(reduction, total)
        if ranks.wants() is not None:
            return replace(found, ranks=ranks)
        if found.sizes is None:
            sizes = _spreads(ranks.prefix.astype(np.uint32).view(np.float32).astype(np.float64))
            least = lowest_winner(found.numel, self.density)
            ranks = self._ranks(least, found.numel - 1, SCORE_DIGITS, found.numel, found.blocks)
            return replace(found, ranks=ranks, sizes=sizes)
        levels = _spreads(key_to_float(ranks.prefix))
        if not self.density:
            levels[:, 2:] = 0.0
        return replace(found, ranks=ranks, levels=levels)

    def combine(self, tile: Tile, found: Any, out: np.ndarray, out_code: int) -> None:
        from eutectic.ops.competition_kernels import compete

        compete(
            tile.rows, tile.codes, tile.n, self.variant, found.sizes, found.levels, self.weights, self.scale, LEAST,
            out, out_code, tile.bad,
        )  # fmt: skip


def lowest_winner(numel: int, density: float) -> int:
    """Rank (from 0, rising) of the score that winners exceed: floor((1 - density) n), the last at most.

    >>> lowest_winner(10, 0.5), lowest_winner(10, 0.0), lowest_winner(1, 0.1)
    (5, 9, 0)
    """
    return min(int(numel * (1 - density)), numel - 1)


def spread_of(low: float, high: float) -> tuple[float, float, float, float]:
    """How values from low to high spread over 0 to 1: (low, high, high - low, 0), or with span 0 what all of them are.

    >>> spread_of(1.0, 3.0), spread_of(2.0, 2.0), spread_of(0.0, 0.0)
    ((1.0, 3.0, 2.0, 0.0), (2.0, 2.0, 0.0, 1.0), (0.0, 0.0, 0.0, 0.0))
    """
    wide = high - low > EQUAL * abs(high)
    return low, high, high - low if wide else 0.0, 0.0 if wide else float(high != 0)


def _spreads(values: np.ndarray) -> np.ndarray:
    """`spread_of` each source: lows, then highs, to float64 [sources, 4]."""
    lows, highs = values.reshape(2, -1)
    return np.array([spread_of(float(low), float(high)) for low, high in zip(lows, highs, strict=True)])
