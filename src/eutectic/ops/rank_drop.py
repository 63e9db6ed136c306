"""DELLA's link: keep entries at random, the larger the likelier, by their rank in the row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from eutectic.ops.program import BLOCK, Program, Reduction, Tile
from eutectic.ops.random import Draws, draw_key, philox_words
from eutectic.ops.sparse_sum import VOTES, restoring_factors

if TYPE_CHECKING:
    import torch

__all__ = ["RankSum", "drop_by_rank", "rank_probabilities"]

ALWAYS = 1 << 32  # a bound that no 32-bit word reaches


def rank_probabilities(row: int, density: float, epsilon: float) -> np.ndarray:
    """The probability to be kept of each rank of a row, from density - ε (smallest) to density + ε (largest).

    >>> rank_probabilities(3, 0.5, 0.25).tolist()
    [0.25, 0.5, 0.75]
    """
    if density >= 1 or density <= 0 or row == 1:
        return np.full(row, min(1.0, max(0.0, density)))
    return density - epsilon + np.arange(row) / (row - 1) * (2 * epsilon)


def rank_bounds(row: int, density: float, epsilon: float) -> np.ndarray:
    """The same as bounds of 32-bit words, int64 [row]; a density of 1 keeps every entry."""
    return (rank_probabilities(row, density, epsilon) * ALWAYS).astype(np.int64)


def drop_by_rank(
    deltas: Sequence[torch.Tensor], density: Sequence[float], epsilon: Sequence[float], draws: Draws, *, gains: bool
) -> list[torch.Tensor]:
    """Keep each entry with its rank's probability p, ties ranked by their index; divided by p if `gains`."""
    import torch

    kept = []
    for source, (delta, d, e) in enumerate(zip(deltas, density, epsilon, strict=True)):
        if not delta.numel():
            kept.append(delta)
            continue
        rows = delta.reshape(delta.shape[0] if delta.dim() > 1 else 1, -1)
        ranks = rows.detach().abs().argsort(dim=1, stable=True).argsort(dim=1)
        bounds = torch.from_numpy(rank_bounds(rows.shape[1], d, e)).to(delta.device)
        key = draw_key(draws.seed, draws.tensor, source)
        words = philox_words(key, draws.start, delta.numel(), delta.device).reshape(rows.shape)
        chosen = rows.where(words < bounds[ranks], 0.0)
        if gains:
            inverse = torch.from_numpy(rank_gains(rows.shape[1], d, e)).to(delta.device)
            chosen = chosen * inverse[ranks].to(delta.dtype)
        kept.append(chosen.reshape(delta.shape))
    return kept


def rank_gains(row: int, density: float, epsilon: float) -> np.ndarray:
    """1 / p for every rank, float32 [row]; 1 where p is 0."""
    p = rank_probabilities(row, density, epsilon)
    return np.divide(1.0, p, out=np.ones(row), where=p > 0).astype(np.float32)


class RankSum(Program):
    """base + scale * Σ w_s kept_s(x_s - base) by rank in the row, sign election and normalisation as `SparseSum`."""

    def __init__(
        self,
        row: int,
        weights: Sequence[float],
        densities: Sequence[float],
        epsilons: Sequence[float],
        keys: Sequence[tuple[int, int]],
        *,
        vote: str,
        normalize: bool,
        scale: float,
        rescale: str,
    ) -> None:
        self.row, self.rescale = row, rescale
        self.weights = np.asarray(weights, dtype=np.float32)
        self.keys = np.asarray(keys, dtype=np.uint32)
        pairs = list(zip(densities, epsilons, strict=True))
        self.bounds = np.stack([rank_bounds(row, d, e) for d, e in pairs])
        width = row if rescale == "inverse_probability" else 0
        self.gains = np.stack([rank_gains(row, d, e)[:width] for d, e in pairs])
        self.vote, self.normalize, self.scale = VOTES[vote], bool(normalize), np.float32(scale)
        self.most_passes = int(rescale == "l1")
        self.work_bytes = 4 * (len(pairs) + 8) if row > BLOCK else 0  # rows that fit the caches need no counting

    def begin(self, numel: int, blocks: int) -> np.ndarray | None:
        return None if self.rescale == "l1" else np.ones(len(self.weights), dtype=np.float32)

    def wants(self, found: np.ndarray | None) -> Reduction | None:
        return Reduction("l1", "blocks", (len(self.weights), 2), "float64") if found is None else None

    def reduce(self, reduction: Reduction, tile: Tile, found: np.ndarray | None, total: np.ndarray) -> None:
        self._run(tile, total, np.ones(len(self.weights), dtype=np.float32), np.empty(0, dtype=np.uint8), 0)

    def solve(self, reduction: Reduction, total: np.ndarray, found: np.ndarray | None) -> np.ndarray:
        return restoring_factors(total)

    def combine(self, tile: Tile, found: np.ndarray | None, out: np.ndarray, out_code: int) -> None:
        assert found is not None
        self._run(tile, np.empty((0, len(self.weights), 2)), found, out, out_code)

    def _run(self, tile: Tile, partial: np.ndarray, factors: np.ndarray, out: np.ndarray, out_code: int) -> None:
        from eutectic.ops.row_kernels import rank_sum

        rank_sum(
            tile.rows, tile.codes, tile.n, self.row, tile.first, self.keys, self.bounds, self.gains, self.unit,
            partial, factors, self.weights, self.vote, self.normalize, self.scale, out, out_code, tile.bad,
        )  # fmt: skip
