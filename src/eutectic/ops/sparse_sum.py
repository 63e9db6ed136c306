"""Families C and D: keep the largest or random entries of every delta, then combine what was kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from eutectic.ops.program import BLOCK, Program, Reduction, Tile
from eutectic.ops.quantile import HIGH_BINS, LOW_BINS, find_bin, kept_count, select, share_ties
from eutectic.ops.random import bound

__all__ = ["Found", "SparseSum"]

VOTES = {"none": 0, "weighted": 1, "paper": 2}
PLENTY = np.iinfo(np.int64).max // 4


@dataclass(frozen=True)
class Found:
    """What the passes found: per source the threshold's bits, per block how many equal to it are kept."""

    keep: np.ndarray  # int64 [sources]: how many entries each source keeps in the group
    numel: int
    blocks: int
    high: np.ndarray | None = None  # int64 [sources]: bin that holds the threshold, -1 where nothing is trimmed
    need: np.ndarray | None = None  # int64 [sources]: entries still to keep inside that bin, then of that value
    limits: np.ndarray | None = None  # int64 [sources]: threshold bits, or random bounds
    quotas: np.ndarray | None = None  # int64 [blocks, sources]
    factors: np.ndarray | None = None  # float32 [sources]


class SparseSum(Program):
    """base + scale * sum_s w_s kept_s(x_s - base), with sign election and normalisation as asked.

    Args:
        weights: one per source. densities: kept share per source, 0 to 1.
        keys: Philox keys, one pair per source, for random selection; None selects by magnitude, exactly
            `kept_count(density, n)` entries per source, ties to the lowest flat index.
        vote: "none", "weighted" or "paper" (unweighted) elected sign.
        normalize: divide by the sum of the weights that took part. scale: λ.
        rescale: "none", "l1" (restore each delta's L1 norm over the group) or "inverse_density".
    """

    def __init__(
        self,
        weights: Sequence[float],
        densities: Sequence[float],
        *,
        keys: Sequence[tuple[int, int]] | None = None,
        vote: str = "none",
        normalize: bool = False,
        scale: float = 1.0,
        rescale: str = "none",
    ) -> None:
        self.weights = np.asarray(weights, dtype=np.float32)
        self.densities = list(densities)
        self.by_magnitude = keys is None
        self.keys = np.asarray(keys if keys is not None else [(0, 0)] * len(self.densities), dtype=np.uint32)
        self.vote, self.normalize, self.scale = VOTES[vote], bool(normalize), np.float32(scale)
        self.rescale = rescale
        self.trims = self.by_magnitude and any(density < 1 for density in self.densities)
        self.most_passes = 3 * self.trims + (rescale == "l1")
        self.scratch_bytes = 8 * LOW_BINS * len(self.densities) if self.trims else 0

    def begin(self, numel: int, blocks: int) -> Found:
        count = len(self.densities)
        keep = np.array([kept_count(density, numel) for density in self.densities], dtype=np.int64)
        found = Found(keep, numel, blocks)
        if not self.trims:
            limits = [0 if self.by_magnitude else bound(density) for density in self.densities]
            found = replace(found, limits=np.array(limits, dtype=np.int64), quotas=_plenty(count))
        if self.rescale != "l1":
            factors = [1 / d if self.rescale == "inverse_density" and d else 1.0 for d in self.densities]
            found = replace(found, factors=np.array(factors, dtype=np.float32))
        return found

    def wants(self, found: Found) -> Reduction | None:
        count = len(self.densities)
        if found.limits is None:
            if found.blocks == 1:  # small: all magnitudes at once cost less than two histograms
                return Reduction("magnitudes", "blocks", (count, found.numel), "uint32")
            if found.high is None:
                return Reduction("histogram", "sum", (count, HIGH_BINS))
            return Reduction("refine", "sum", (count, LOW_BINS))
        if found.quotas is None:
            return Reduction("ties", "blocks", (count,))
        if found.factors is None:
            return Reduction("l1", "blocks", (count, 2), "float64")
        return None

    def reduce(self, reduction: Reduction, tile: Tile, found: Found, total: np.ndarray) -> None:
        from eutectic.ops import kernels

        if reduction.kind == "magnitudes":
            kernels.magnitudes(tile.rows, tile.codes, tile.n, total[0], tile.bad)
        elif reduction.kind == "histogram":
            kernels.histogram(tile.rows, tile.codes, tile.n, total, tile.bad)
        elif reduction.kind == "refine":
            kernels.refine(tile.rows, tile.codes, tile.n, found.high, total)
        elif reduction.kind == "ties":
            assert found.limits is not None and found.need is not None
            asked = np.where(found.need < PLENTY, found.limits, 0)
            kernels.count_ties(tile.rows, tile.codes, tile.n, asked, total)
        else:
            quotas = self._quotas(found, tile)
            kernels.l1_sums(
                tile.rows, tile.codes, tile.n, int(not self.by_magnitude), found.limits, quotas, self.keys,
                tile.first, total, tile.bad,
            )  # fmt: skip

    def solve(self, reduction: Reduction, total: np.ndarray, found: Found) -> Found:
        if reduction.kind == "magnitudes":
            chosen = [select(row, int(keep)) for row, keep in zip(total[0], found.keep, strict=True)]
            limits = np.array([limit for limit, _ in chosen], dtype=np.int64)
            quotas = np.array([[PLENTY if left is None else left for _, left in chosen]], dtype=np.int64)
            return replace(found, limits=limits, quotas=quotas)
        if reduction.kind == "histogram":
            bins = [find_bin(counts, int(keep)) for counts, keep in zip(total, found.keep, strict=True)]
            whole = found.keep >= total.sum(axis=1)  # density 1: this source is not trimmed
            high = np.where(whole, -1, [at for at, _ in bins])
            found = replace(found, high=high, need=np.array([need for _, need in bins], dtype=np.int64))
            return replace(found, limits=np.zeros_like(high), quotas=_plenty(len(high))) if whole.all() else found
        if reduction.kind == "refine":
            assert found.high is not None and found.need is not None
            limits, need = np.zeros_like(found.need), np.full_like(found.need, PLENTY)
            for s, high in enumerate(found.high):
                if high < 0:
                    continue
                low, left = find_bin(total[s], int(found.need[s]))
                limits[s] = (int(high) << 16) | low
                if limits[s] and left < total[s, low]:  # zeros need no choice: keeping or dropping them is the same
                    need[s] = left
            quotas = _plenty(len(need)) if (need == PLENTY).all() else None
            return replace(found, limits=limits, need=need, quotas=quotas)
        if reduction.kind == "ties":
            assert found.need is not None
            return replace(found, quotas=share_ties(total, found.need))
        sums = np.zeros(reduction.shape)
        for block in total:
            sums += block
        before, after = sums[:, 0], sums[:, 1]
        with np.errstate(invalid="ignore"):  # inf / inf, where infinities are allowed
            factors = np.divide(before, after, out=np.ones_like(before), where=after > 0)
        return replace(found, factors=factors.astype(np.float32))

    def combine(self, tile: Tile, found: Found, out: np.ndarray, out_code: int) -> None:
        from eutectic.ops.kernels import sparse_sum

        sparse_sum(
            tile.rows, tile.codes, tile.n, int(not self.by_magnitude), found.limits, self._quotas(found, tile),
            self.keys, tile.first, found.factors, self.weights, self.vote, self.normalize, self.scale, out,
            out_code, tile.bad,
        )  # fmt: skip

    def _quotas(self, found: Found, tile: Tile) -> np.ndarray:
        assert found.quotas is not None
        blocks = -(-tile.n // BLOCK)
        if len(found.quotas) == 1:
            return np.broadcast_to(found.quotas, (blocks, len(self.densities))).copy()
        return found.quotas[tile.block : tile.block + blocks]


def _plenty(count: int) -> np.ndarray:
    """Quotas that keep every tie: one row for all blocks."""
    return np.full((1, count), PLENTY, dtype=np.int64)
