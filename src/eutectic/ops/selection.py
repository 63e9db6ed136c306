"""`Selection`: exact order statistics of scores, found in passes over tiles: histograms of bits, then ties.

One pass counts the high 15 bits of every score's magnitude, a second the low 16 inside the bins that hold the
thresholds, a third (where only some of the equals are wanted) the ties per block. The order is by magnitude, then by
flat index. State is a few hundred KB, whatever the tensor's size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from eutectic.ops.program import Reduction, Tile
from eutectic.ops.quantile import HIGH_BINS, LOW_BINS, find_bin, select, share_ties

__all__ = ["PLENTY", "Selection", "tile_of_scores"]

PLENTY = np.iinfo(np.int64).max // 4
F32 = np.array([2, 2], dtype=np.int64)  # element types of a row of zeros and a row of scores


@dataclass(frozen=True)
class Selection:
    """The `keep[r]` largest of score r % scores, for every r: a threshold's bits, and ties to keep per block."""

    keep: np.ndarray  # int64 [K]: how many entries each selection keeps in the group
    scores: int  # S, a divisor of K: how many scores there are
    numel: int
    blocks: int
    high: np.ndarray | None = None  # int64 [K]: bin that holds the threshold, -1 where all are kept
    need: np.ndarray | None = None  # int64 [K]: entries still to keep inside that bin, then of that value
    limits: np.ndarray | None = None  # int64 [K]: threshold bits
    quotas: np.ndarray | None = None  # int64 [blocks or 1, K]: how many equal to the threshold are kept

    @classmethod
    def everything(cls, count: int, limits: np.ndarray | None = None) -> Selection:
        """A selection that is already made: of all entries, or by other limits."""
        limits = np.zeros(count, dtype=np.int64) if limits is None else limits
        return cls(np.zeros(count, dtype=np.int64), count, 0, 1, limits=limits, quotas=_plenty(count))

    def wants(self) -> Reduction | None:
        """The next pass over the scores, or None when every threshold is known."""
        if self.limits is None:
            if self.blocks == 1:  # small: all magnitudes at once cost less than two histograms
                return Reduction("magnitudes", "blocks", (self.scores, self.numel), "uint32")
            if self.high is None:
                return Reduction("histogram", "sum", (self.scores, HIGH_BINS))
            return Reduction("refine", "sum", (len(self.keep), LOW_BINS))
        return None if self.quotas is not None else Reduction("ties", "blocks", (len(self.keep),))

    def reduce(self, reduction: Reduction, tile: Tile, total: np.ndarray) -> None:
        """Add a tile to a pass that `wants` asked for; scores are the differences of the tile's rows to its first."""
        from eutectic.ops import sparse_kernels as kernels

        rows, codes, n, bad = tile.rows, tile.codes, tile.n, tile.bad
        if reduction.kind == "magnitudes":
            kernels.magnitudes(rows, codes, n, total[0], bad)
        elif reduction.kind == "histogram":
            kernels.histogram(rows, codes, n, total, bad)
        elif reduction.kind == "refine":
            kernels.refine(rows, codes, n, self.high, total)
        else:
            kernels.count_ties(rows, codes, n, self.asked, total)

    def solve(self, reduction: Reduction, total: np.ndarray) -> Selection:
        """The selection, with what the finished pass says."""
        if reduction.kind == "magnitudes":
            chosen = [select(total[0][r % self.scores], int(keep)) for r, keep in enumerate(self.keep)]
            limits = np.array([limit for limit, _ in chosen], dtype=np.int64)
            quotas = np.array([[PLENTY if left is None else left for _, left in chosen]], dtype=np.int64)
            return replace(self, limits=limits, quotas=quotas)
        if reduction.kind == "histogram":
            bins = [find_bin(total[r % self.scores], int(keep)) for r, keep in enumerate(self.keep)]
            whole = np.array([k >= total[r % self.scores].sum() for r, k in enumerate(self.keep)])
            high = np.where(whole, -1, [at for at, _ in bins])
            found = replace(self, high=high, need=np.array([need for _, need in bins], dtype=np.int64))
            return replace(found, limits=np.zeros_like(high), quotas=_plenty(len(high))) if whole.all() else found
        if reduction.kind == "refine":
            return self._solve_refined(total)
        assert reduction.kind == "ties" and self.need is not None
        return replace(self, quotas=share_ties(total, self.need))

    def _solve_refined(self, total: np.ndarray) -> Selection:
        assert self.high is not None and self.need is not None
        limits, need = np.zeros_like(self.need), np.full_like(self.need, PLENTY)
        for r, high in enumerate(self.high):
            if high < 0:
                continue
            low, left = find_bin(total[r], int(self.need[r]))
            limits[r] = (int(high) << 16) | low
            if limits[r] and left < total[r, low]:  # zeros need no choice: keeping or dropping them is the same
                need[r] = left
        quotas = _plenty(len(need)) if (need == PLENTY).all() else None
        return replace(self, limits=limits, need=need, quotas=quotas)

    @property
    def asked(self) -> np.ndarray:
        """Thresholds whose ties are to be counted; 0 where they are not."""
        assert self.limits is not None and self.need is not None
        return np.where(self.need < PLENTY, self.limits, 0)

    def quotas_of(self, block: int, blocks: int) -> np.ndarray:
        """Ties to keep in the blocks of a tile, int64 [blocks, K]."""
        assert self.quotas is not None
        if len(self.quotas) == 1:
            return np.broadcast_to(self.quotas, (blocks, self.quotas.shape[1])).copy()
        return self.quotas[block : block + blocks]


def tile_of_scores(tile: Tile) -> tuple[np.ndarray, Tile]:
    """Room for one score (float32) per element of a tile, and a tile of it that `Selection.reduce` takes."""
    scores = np.zeros((2, tile.n), dtype=np.float32)
    bad = np.zeros(2, dtype=np.int64)
    return scores[1], Tile(scores.view(np.uint8), F32, tile.n, tile.first, tile.block, bad)


def _plenty(count: int) -> np.ndarray:
    """Quotas that keep every tie: one row for all blocks."""
    return np.full((1, count), PLENTY, dtype=np.int64)
