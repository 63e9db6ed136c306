"""Gram matrices from half of their products, and their inverses: by Cholesky where the rank is full beyond doubt."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["gram", "well_conditioned_inverse"]

ROWS = 128  # of a block: below it, two small products cost more than one that does too much
SAFE = 1e-8  # share of the largest eigenvalue: from here on an inverse by Cholesky is exact to 1e-8


def gram(matrix: torch.Tensor) -> torch.Tensor:
    """A A', block of rows by block of rows up to the diagonal; the rest is copied.

    >>> import torch
    >>> gram(torch.tensor([[1.0, 2.0], [0.0, 3.0]])).tolist()
    [[5.0, 6.0], [6.0, 9.0]]
    """
    if len(matrix) <= ROWS:
        return matrix @ matrix.T
    found = matrix.new_empty(len(matrix), len(matrix))
    for first in range(0, len(matrix), ROWS):
        end = min(first + ROWS, len(matrix))
        found[first:end, :end] = matrix[first:end] @ matrix[:end].T
        found[:first, first:end] = found[first:end, :first].T
    return found


def well_conditioned_inverse(gram: torch.Tensor, cutoff: float) -> torch.Tensor | None:
    """The inverse of a symmetric matrix if all its eigenvalues are proved to be above `cutoff` of the largest.

    The smallest is at least 1 / ‖G⁻¹‖ and the largest at most ‖G‖, both in Frobenius' norm. None where that proves
    nothing: eigenvalues have to decide then.

    >>> import torch
    >>> well_conditioned_inverse(torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64)), 1e-10).diagonal().tolist()
    [0.25, 1.0]
    >>> well_conditioned_inverse(torch.diag(torch.tensor([4.0, 0.0], dtype=torch.float64)), 1e-10)
    """
    import torch

    lower, fault = torch.linalg.cholesky_ex(gram)
    if int(fault):
        return None
    found = torch.cholesky_inverse(lower)
    bound = float(gram.norm()) * float(found.norm())
    return found if bound * max(cutoff, SAFE) < 1 else None  # NaN and infinity prove nothing either
