"""Arcee fusion's program: take the changes whose importance stands out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from eutectic.ops.program import Program, Reduction, Tile
from eutectic.ops.quantile import LOW_BINS
from eutectic.ops.selection import Selection, tile_of_scores

__all__ = ["Fusion", "quartile_counts"]


def quartile_counts(numel: int) -> list[int]:
    """How many entries are at least the first quartile, the median, the third: those at floor(q (n - 1)) of n sorted.

    >>> quartile_counts(5)
    [4, 3, 2]
    """
    return [numel - int(q * (numel - 1)) for q in (0.25, 0.5, 0.75)]


@dataclass(frozen=True)
class Found:
    """What the passes found."""

    numel: int
    blocks: int
    divergences: np.ndarray | None = None  # float64 [rows]
    selection: Selection | None = None


class Fusion(Program):
    """x_0 + (x_1 - x_0) where |x_1 - x_0| times the row's divergence reaches median + 1.5 (third - first quartile)."""

    most_passes = 3
    work_bytes = 8

    def __init__(self, row: int) -> None:
        self.row = row
        self.scratch_bytes = 3 * 8 * LOW_BINS

    def begin(self, numel: int, blocks: int) -> Found:
        return Found(numel, blocks)

    def wants(self, found: Found) -> Reduction | None:
        if found.divergences is None or found.selection is None:
            return Reduction("divergence", "blocks", (max(1, self.unit // self.row),), "float64")
        reduction = found.selection.wants()
        return None if reduction is not None and reduction.kind == "ties" else reduction  # equals are all taken

    def reduce(self, reduction: Reduction, tile: Tile, found: Found, total: np.ndarray) -> None:
        from eutectic.ops import row_kernels

        if reduction.kind == "divergence":
            row_kernels.row_divergences(tile.rows, tile.codes, tile.n, self.row, total.reshape(-1), tile.bad)
            return
        assert found.selection is not None
        importances, scored = tile_of_scores(tile)
        row_kernels.importances(
            tile.rows, tile.codes, tile.n, self.row, self._divergences(found, tile), importances, tile.bad
        )
        found.selection.reduce(reduction, scored, total)

    def solve(self, reduction: Reduction, total: np.ndarray, found: Found) -> Found:
        if reduction.kind == "divergence":
            keep = np.array(quartile_counts(found.numel), dtype=np.int64)
            selection = Selection(keep, 1, found.numel, found.blocks)
            return replace(found, divergences=total.reshape(-1), selection=selection)
        assert found.selection is not None
        return replace(found, selection=found.selection.solve(reduction, total))

    def combine(self, tile: Tile, found: Found, out: np.ndarray, out_code: int) -> None:
        from eutectic.ops.row_kernels import threshold_sum

        assert found.selection is not None and found.selection.limits is not None
        low, middle, high = found.selection.limits.astype(np.uint32).view(np.float32)
        threshold = middle + np.float32(1.5) * (high - low)
        threshold_sum(
            tile.rows, tile.codes, tile.n, self.row, self._divergences(found, tile), threshold, out, out_code, tile.bad
        )

    def _divergences(self, found: Found, tile: Tile) -> np.ndarray:
        assert found.divergences is not None
        return found.divergences[tile.first // self.row :][: tile.n // self.row]
