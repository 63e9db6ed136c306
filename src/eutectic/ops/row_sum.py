"""A weighted sum whose coefficients come from one small Gram matrix per row of the tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eutectic.ops.program import Program, Tile

if TYPE_CHECKING:
    import torch

__all__ = ["MODEL_STOCK", "NUSLERP", "RowGramSum", "lengths_of", "sum_products"]

NUSLERP, MODEL_STOCK = 0, 1


class RowGramSum(Program):
    """Row by row Σ c_s x_s (`anchored`: x_0 + Σ c_s (x_s - x_0)), c from the row's own Gram matrix, in float64.

    `solver` is NUSLERP (two sources, at `t`) or MODEL_STOCK. Rows fit one tile, so nothing is read twice.
    """

    def __init__(self, row: int, solver: int, *, anchored: bool, t: float = 0.0) -> None:
        self.row, self.solver, self.anchored, self.t = row, solver, anchored, t

    def combine(self, tile: Tile, found: Any, out: np.ndarray, out_code: int) -> None:
        from eutectic.ops.row_kernels import row_gram_sum

        row_gram_sum(
            tile.rows, tile.codes, tile.n, self.row, self.anchored, self.solver, self.t, out, out_code, tile.bad
        )


def sum_products(tensors: Sequence[torch.Tensor], coefficients: Sequence[torch.Tensor]) -> torch.Tensor:
    """Σ c_s x_s in float64, in the order given; a coefficient may differ from row to row."""
    import torch

    total = torch.full_like(tensors[0], -0.0, dtype=torch.float64)
    for tensor, coefficient in zip(tensors, coefficients, strict=True):
        total = total + coefficient * tensor
    return total


def lengths_of(rows: torch.Tensor) -> torch.Tensor:
    """Length of every vector along the last axis, with a finite gradient at zero."""
    square = (rows * rows).sum(-1)
    return square.where(square > 0, 1.0).sqrt().where(square > 0, 0.0)
