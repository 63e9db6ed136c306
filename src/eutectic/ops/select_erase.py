"""SCE's program: select entries by variance, weigh the sources by their energy, erase the minority sign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eutectic.ops.program import BLOCK, Program, Reduction, Tile
from eutectic.ops.quantile import LOW_BINS
from eutectic.ops.selection import Selection, tile_of_scores

__all__ = ["Found", "SelectErase", "energy_weights"]


@dataclass(frozen=True)
class Found:
    """What the passes found."""

    numel: int
    blocks: int
    selection: Selection | None = None
    weights: np.ndarray | None = None  # float32 [sources]


class SelectErase(Program):
    """base + Σ w_s m_s δ_s / Σ w_s m_s over the entries whose variance is among the `share` largest non-zero ones."""

    def __init__(self, count: int, share: float) -> None:
        self.count, self.share = count, share
        self.selects = share < 1
        self.most_passes = 1 + 4 * self.selects
        self.scratch_bytes = 8 * LOW_BINS if self.selects else 0
        self.work_bytes = 8 if self.selects else 0

    def begin(self, numel: int, blocks: int) -> Found:
        return Found(numel, blocks, None if self.selects else Selection.everything(1))

    def wants(self, found: Found) -> Reduction | None:
        if found.selection is None:
            return Reduction("count", "sum", (1,))
        if (reduction := found.selection.wants()) is not None:
            return reduction
        return None if found.weights is not None else Reduction("squares", "blocks", (self.count,), "float64")

    def reduce(self, reduction: Reduction, tile: Tile, found: Found, total: np.ndarray) -> None:
        from eutectic.ops import entry_kernels

        if reduction.kind == "squares":
            assert found.selection is not None and found.selection.limits is not None
            limit = int(found.selection.limits[0])
            entry_kernels.sce_squares(
                tile.rows, tile.codes, tile.n, self.selects, limit, self._quotas(found, tile), total, tile.bad
            )
            return
        variances, scored = tile_of_scores(tile)
        entry_kernels.variances(tile.rows, tile.codes, tile.n, variances, tile.bad)
        if reduction.kind == "count":
            total[0] += np.count_nonzero(variances)
        else:
            assert found.selection is not None
            found.selection.reduce(reduction, scored, total)

    def solve(self, reduction: Reduction, total: np.ndarray, found: Found) -> Found:
        if reduction.kind == "count":
            keep = np.array([int(int(total[0]) * self.share)], dtype=np.int64)
            return replace(found, selection=Selection(keep, 1, found.numel, found.blocks))
        if reduction.kind != "squares":
            assert found.selection is not None
            return replace(found, selection=found.selection.solve(reduction, total))
        sums = np.zeros(self.count)
        for block in total:  # block after block: a fixed order, unlike numpy's pairwise sum
            sums += block
        weights = energy_weights([float(s) / max(1, found.numel) for s in sums])
        return replace(found, weights=np.array(weights, dtype=np.float32))

    def combine(self, tile: Tile, found: Found, out: np.ndarray, out_code: int) -> None:
        from eutectic.ops.entry_kernels import sce_sum

        assert found.selection is not None and found.selection.limits is not None
        sce_sum(
            tile.rows, tile.codes, tile.n, self.selects, int(found.selection.limits[0]), self._quotas(found, tile),
            found.weights, out, out_code, tile.bad,
        )  # fmt: skip

    def _quotas(self, found: Found, tile: Tile) -> np.ndarray:
        assert found.selection is not None
        return found.selection.quotas_of(tile.block, -(-tile.n // BLOCK))


def energy_weights(energies: Sequence[Any]) -> list[Any]:
    """Each source's mean square over the sum of all; equal where that sum is below 1e-6 (as in mergekit).

    >>> energy_weights([3.0, 1.0]), energy_weights([0.0, 0.0])
    ([0.75, 0.25], [0.5, 0.5])
    """
    total = sum(energies)
    return [1.0 / len(energies)] * len(energies) if abs(total) < 1e-6 else [energy / total for energy in energies]
