"""Families C and D: keep the largest or random entries of every delta, then combine what was kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from eutectic.ops.program import BLOCK, Program, Reduction, Tile
from eutectic.ops.quantile import LOW_BINS, kept_count, outlier_count
from eutectic.ops.random import bound
from eutectic.ops.selection import Selection

__all__ = ["VOTES", "Found", "SparseSum", "StitchedMean", "restoring_factors"]

VOTES = {"none": 0, "weighted": 1, "paper": 2}


@dataclass(frozen=True)
class Found:
    """What the passes found: which entries are kept, and the factors that rescale them."""

    selection: Selection
    factors: np.ndarray | None = None  # float32 [sources]


class SparseSum(Program):
    """base + scale * sum_s w_s kept_s(x_s - base), with sign election and normalisation as asked.

    Args:
        weights: one per source. densities: kept share per source, 0 to 1.
        keys: Philox keys, one pair per source, for random selection; None selects by magnitude, exactly
            `kept_count(density, n)` entries per source, ties to the lowest flat index.
        outliers: shares of the largest entries that are passed over in favour of the next ones; None: none.
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
        outliers: Sequence[float] | None = None,
        vote: str = "none",
        normalize: bool = False,
        scale: float = 1.0,
        rescale: str = "none",
    ) -> None:
        self.weights = np.asarray(weights, dtype=np.float32)
        self.densities, self.outliers = list(densities), outliers
        self.by_magnitude = keys is None
        self.keys = np.asarray(keys if keys is not None else [(0, 0)] * len(self.densities), dtype=np.uint32)
        self.vote, self.normalize, self.scale = VOTES[vote], bool(normalize), np.float32(scale)
        self.rescale = rescale
        self.trims = self.by_magnitude and any(density < 1 for density in self.densities)
        self.most_passes = 3 * self.trims + (rescale == "l1")
        selections = len(self.densities) * (2 if outliers is not None else 1)
        self.scratch_bytes = 8 * LOW_BINS * selections if self.trims else 0

    def begin(self, numel: int, blocks: int) -> Found:
        count = len(self.densities)
        if self.trims:
            keep = [kept_count(density, numel) for density in self.densities]
            if self.outliers is not None:
                tops = [outlier_count(g, k, numel) for g, k in zip(self.outliers, keep, strict=True)]
                keep = [*(k + top for k, top in zip(keep, tops, strict=True)), *tops]
            selection = Selection(np.array(keep, dtype=np.int64), count, numel, blocks)
        else:
            limits = None if self.by_magnitude else np.array([bound(d) for d in self.densities], dtype=np.int64)
            selection = Selection.everything(count, limits)
        if self.rescale == "l1":
            return Found(selection)
        factors = [1 / d if self.rescale == "inverse_density" and d else 1.0 for d in self.densities]
        return Found(selection, np.array(factors, dtype=np.float32))

    def wants(self, found: Found) -> Reduction | None:
        reduction = found.selection.wants()
        if reduction is None and found.factors is None:
            return Reduction("l1", "blocks", (len(self.densities), 2), "float64")
        return reduction

    def reduce(self, reduction: Reduction, tile: Tile, found: Found, total: np.ndarray) -> None:
        if reduction.kind != "l1":
            found.selection.reduce(reduction, tile, total)
            return
        from eutectic.ops.sparse_kernels import l1_sums

        l1_sums(
            tile.rows, tile.codes, tile.n, int(not self.by_magnitude), found.selection.limits,
            self._quotas(found, tile), self.keys, tile.first, total, tile.bad,
        )  # fmt: skip

    def solve(self, reduction: Reduction, total: np.ndarray, found: Found) -> Found:
        if reduction.kind != "l1":
            return replace(found, selection=found.selection.solve(reduction, total))
        return replace(found, factors=restoring_factors(total))

    def combine(self, tile: Tile, found: Found, out: np.ndarray, out_code: int) -> None:
        from eutectic.ops.sparse_kernels import sparse_sum

        sparse_sum(
            tile.rows, tile.codes, tile.n, int(not self.by_magnitude), found.selection.limits,
            self._quotas(found, tile), self.keys, tile.first, found.factors, self.weights, self.vote, self.normalize,
            self.scale, out, out_code, tile.bad,
        )  # fmt: skip

    def _quotas(self, found: Found, tile: Tile) -> np.ndarray:
        return found.selection.quotas_of(tile.block, -(-tile.n // BLOCK))


class StitchedMean(SparseSum):
    """base + scale * the mean of w_s (x_s - base) over the sources that keep an entry and change it, in float64."""

    def __init__(self, weights: Sequence[float], densities: Sequence[float], scale: float) -> None:
        super().__init__(weights, densities)
        self.exact_weights, self.exact_scale = np.asarray(weights, dtype=np.float64), float(scale)

    def combine(self, tile: Tile, found: Found, out: np.ndarray, out_code: int) -> None:
        from eutectic.ops.interference_kernels import stitched_mean

        stitched_mean(
            tile.rows, tile.codes, tile.n, found.selection.limits, self._quotas(found, tile), self.exact_weights,
            self.exact_scale, out, out_code, tile.bad,
        )  # fmt: skip


def restoring_factors(total: np.ndarray) -> np.ndarray:
    """Factors that give back each delta's L1 norm, from sums [blocks, sources, (all, kept)]; 1 where none is left."""
    sums = np.zeros(total.shape[1:])
    for block in total:  # block after block: a fixed order, unlike numpy's pairwise sum
        sums += block
    before, after = sums[:, 0], sums[:, 1]
    with np.errstate(invalid="ignore"):  # inf / inf, where infinities are allowed
        return np.divide(before, after, out=np.ones_like(before), where=after > 0).astype(np.float32)
