"""Programs that decide entry by entry which change to take: nearswap, MagMax, RAM, Consensus, EMR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from eutectic.ops.program import Program, Reduction, Tile

__all__ = ["AgreedSum", "LargestDelta", "NearSwap", "TouchedSum", "Unified", "touched_factors"]


class NearSwap(Program):
    """w b + (1 - w) a with w = clip(t / max(|a - b|, 1e-6), 0, 1); a is row 0."""

    def __init__(self, t: float) -> None:
        self.t = np.float32(t)

    def combine(self, tile: Tile, found: Any, out: np.ndarray, out_code: int) -> None:
        from eutectic.ops.entry_kernels import nearswap

        nearswap(tile.rows, tile.codes, tile.n, self.t, out, out_code, tile.bad)


class LargestDelta(Program):
    """base + scale times the delta of largest magnitude, the first of equals."""

    def __init__(self, scale: float) -> None:
        self.scale = np.float32(scale)

    def combine(self, tile: Tile, found: Any, out: np.ndarray, out_code: int) -> None:
        from eutectic.ops.entry_kernels import magmax

        magmax(tile.rows, tile.codes, tile.n, self.scale, out, out_code, tile.bad)


class AgreedSum(Program):
    """base + scale * Σ w_k δ_k where `fewest` sources outweigh `selective` times all others, in float64."""

    def __init__(self, weights: Sequence[float], selective: Sequence[float], fewest: int, scale: float) -> None:
        self.weights, self.selective = np.asarray(weights, np.float64), np.asarray(selective, np.float64)
        self.fewest, self.scale = fewest, float(scale)

    def combine(self, tile: Tile, found: Any, out: np.ndarray, out_code: int) -> None:
        from eutectic.ops.interference_kernels import agreed_sum

        agreed_sum(
            tile.rows, tile.codes, tile.n, self.weights, self.selective, self.fewest, self.scale, out, out_code,
            tile.bad,
        )  # fmt: skip


class Unified(Program):
    """base + scale times the largest w_k δ_k of the elected sign, in float64."""

    def __init__(self, weights: Sequence[float], scale: float) -> None:
        self.weights, self.scale = np.asarray(weights, np.float64), float(scale)

    def combine(self, tile: Tile, found: Any, out: np.ndarray, out_code: int) -> None:
        from eutectic.ops.interference_kernels import unified

        unified(tile.rows, tile.codes, tile.n, self.weights, self.scale, out, out_code, tile.bad)


class TouchedSum(Program):
    """base + the mean of the deltas above `epsilon`; an only one is multiplied by its source's factor.

    The factors are 1, or with `gain` (r, alpha) those of `touched_factors`, which takes one pass.
    """

    def __init__(self, count: int, epsilon: float, gain: tuple[float, float] | None = None) -> None:
        self.count, self.epsilon, self.gain = count, np.float32(epsilon), gain
        self.most_passes = int(gain is not None)
        self.scratch_bytes = 16 * count

    def begin(self, numel: int, blocks: int) -> np.ndarray | None:
        return np.ones(self.count, dtype=np.float32) if self.gain is None else None

    def wants(self, found: Any) -> Reduction | None:
        return Reduction("touched", "sum", (self.count, 2)) if found is None else None

    def reduce(self, reduction: Reduction, tile: Tile, found: Any, total: np.ndarray) -> None:
        from eutectic.ops.entry_kernels import count_touched

        count_touched(tile.rows, tile.codes, tile.n, self.epsilon, total, tile.bad)

    def solve(self, reduction: Reduction, total: np.ndarray, found: Any) -> np.ndarray:
        assert self.gain is not None
        return np.array([touched_factors(int(s), int(u), *self.gain) for s, u in total], dtype=np.float32)

    def combine(self, tile: Tile, found: Any, out: np.ndarray, out_code: int) -> None:
        from eutectic.ops.entry_kernels import touched_sum

        touched_sum(tile.rows, tile.codes, tile.n, self.epsilon, found, out, out_code, tile.bad)


def touched_factors(shared: int, alone: int, r: float, alpha: float) -> float:
    """1 + r clip(shared / alone, 0, alpha): how RAM+ makes up for a source's entries that were averaged away.

    >>> touched_factors(1, 10, 0.5, 0.2), touched_factors(5, 0, 0.5, 0.2)
    (1.05, 1.1)
    """
    return 1.0 + r * (min(alpha, shared / alone) if alone else alpha)
