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

MOST_HELD = 16 << 20  # bytes of kept bits of a tensor; larger tensors are ranked a second time
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


_Found = tuple[np.ndarray, np.ndarray]  # the factor of every source; the kept bits of every part, or nothing


class RankSum(Program):
    """base + scale * Σ w_s kept_s(x_s - base) by rank in the row, sign election and normalisation as `SparseSum`."""

    def __init__(
        self,
        row: int,
        rows: int,
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
        bits = rows * len(pairs) * -(-row // 8)
        self.holds = rescale == "l1" and bits <= MOST_HELD and bool((self.bounds < ALWAYS).any())
        self.held_bytes = bits if self.holds else 0
        self.work_bytes = 4 * (len(pairs) + 8) if row > BLOCK else 0  # rows that fit the caches need no counting

    def begin(self, numel: int, blocks: int) -> _Found | None:
        if self.rescale == "l1":
            return None
        return np.ones(len(self.weights), dtype=np.float32), np.empty((blocks, 0), dtype=np.uint8)

    def wants(self, found: _Found | None) -> Reduction | None:
        return Reduction("l1", "blocks", (self._sums + self._bits,), "uint8") if found is None else None

    @property
    def _sums(self) -> int:
        """Bytes of the sums of one part: of all, and of the kept entries of every source."""
        return 16 * len(self.weights)

    @property
    def _bits(self) -> int:
        """Bytes of the kept bits of one part."""
        return len(self.weights) * (self.unit // self.row) * -(-self.row // 8) if self.holds else 0

    def reduce(self, reduction: Reduction, tile: Tile, found: _Found | None, total: np.ndarray) -> None:
        sums = np.zeros((len(total), len(self.weights), 2))
        held = np.zeros((len(total), self._bits), dtype=np.uint8)
        self._run(tile, sums, held, np.ones(len(self.weights), dtype=np.float32), np.empty(0, dtype=np.uint8), 0)
        total[:, : self._sums] = sums.reshape(len(total), -1).view(np.uint8)
        total[:, self._sums :] = held

    def solve(self, reduction: Reduction, total: np.ndarray, found: _Found | None) -> _Found:
        sums = total[:, : self._sums].copy().view(np.float64).reshape(len(total), len(self.weights), 2)
        return restoring_factors(sums), total[:, self._sums :]

    def combine(self, tile: Tile, found: _Found | None, out: np.ndarray, out_code: int) -> None:
        assert found is not None
        factors, bits = found
        held = np.ascontiguousarray(bits[tile.block : tile.block + -(-tile.n // self.unit)])
        self._run(tile, np.empty((0, len(self.weights), 2)), held, factors, out, out_code)

    def _run(
        self, tile: Tile, sums: np.ndarray, held: np.ndarray, factors: np.ndarray, out: np.ndarray, out_code: int
    ) -> None:
        from eutectic.ops.row_kernels import rank_sum

        rank_sum(
            tile.rows, tile.codes, tile.n, self.row, tile.first, self.keys, self.bounds, self.gains, self.unit,
            sums, held, factors, self.weights, self.vote, self.normalize, self.scale, out, out_code, tile.bad,
        )  # fmt: skip
