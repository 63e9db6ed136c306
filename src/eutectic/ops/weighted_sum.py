"""Families A and B: a weighted sum whose coefficients are known, or come from one Gram matrix per tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eutectic.ops.program import Program, Reduction, Tile

if TYPE_CHECKING:
    import torch

__all__ = ["GramSum", "WeightedSum", "add_weighted", "gram_of", "sum_weighted"]


def sum_weighted(tensors: Sequence[torch.Tensor], coefficients: Sequence[float | torch.Tensor]) -> torch.Tensor:
    """Σ c_s x_s in float64, in the order given: the semantics of the kernel."""
    import torch

    total = torch.full_like(tensors[0], -0.0, dtype=torch.float64)
    for tensor, coefficient in zip(tensors, coefficients, strict=True):
        total = total + tensor.double() * coefficient
    return total


def add_weighted(base: torch.Tensor, tensors: Sequence[torch.Tensor], coefficients: Sequence[float]) -> torch.Tensor:
    """x_0 + Σ c_s (x_s - x_0) in float64, in the order given: exact where every difference is."""
    origin = base.double()
    return sum_weighted([tensor.double() - origin for tensor in tensors], coefficients) + origin


class WeightedSum(Program):
    """out = Σ c_s x_s, or, `anchored` at row 0, x_0 + Σ c_s (x_s - x_0); float64 in row order, one rounding."""

    float64 = True

    def __init__(self, coefficients: Sequence[float], *, anchored: bool = False) -> None:
        self.coefficients = np.asarray([0.0, *coefficients] if anchored else coefficients, dtype=np.float64)
        self.anchored = anchored

    def combine(self, tile: Tile, found: Any, out: np.ndarray, out_code: int) -> None:
        from eutectic.ops.sum_kernels import weighted_sum

        weighted_sum(tile.rows, tile.codes, self.coefficients, self.anchored, tile.n, out, out_code, tile.bad)


class GramSum(Program):
    """A weighted sum whose coefficients are a function of the inputs' Gram matrix G = [<x_i, x_j>] (float64).

    `anchored` at row 0: of the differences x_s - x_0, which are then added to x_0.
    """

    most_passes = 1

    def __init__(self, count: int, solver: Callable[[np.ndarray], Sequence[float]], *, anchored: bool = False) -> None:
        self.count, self.solver, self.anchored = count, solver, anchored

    def wants(self, found: Any) -> Reduction | None:
        return Reduction("gram", "blocks", (self.count, self.count), "float64") if found is None else None

    def reduce(self, reduction: Reduction, tile: Tile, found: Any, total: np.ndarray) -> None:
        from eutectic.ops.sum_kernels import gram

        gram(tile.rows, tile.codes, tile.n, self.anchored, total, tile.bad)

    def solve(self, reduction: Reduction, total: np.ndarray, found: Any) -> np.ndarray:
        upper = np.zeros(reduction.shape)
        for block in total:  # block after block: a fixed order, unlike numpy's pairwise sum
            upper += block
        whole = np.triu(upper) + np.triu(upper, 1).T
        solved = self.solver(whole)
        return np.asarray([0.0, *solved] if self.anchored else solved, dtype=np.float64)

    def combine(self, tile: Tile, found: Any, out: np.ndarray, out_code: int) -> None:
        from eutectic.ops.sum_kernels import weighted_sum

        weighted_sum(tile.rows, tile.codes, found, self.anchored, tile.n, out, out_code, tile.bad)


def gram_of(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """G = [<x_i, x_j>] over flattened tensors, in float64."""
    import torch

    flat = torch.stack([tensor.double().reshape(-1) for tensor in tensors])
    return flat @ flat.T
