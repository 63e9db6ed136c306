"""Coordinate-wise median: a merge that a minority of broken or poisoned sources cannot move far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from eutectic.methods import merge_method

if TYPE_CHECKING:
    import torch

__all__ = ["median"]


@merge_method(
    summary="base plus the coordinate-wise median of the task vectors",
    reference="Yin et al., Byzantine-robust distributed learning, ICML 2018 (arXiv 1803.01498), algorithm 1",
    space="delta",
    base="required",
    idempotent=False,  # copies of one source give base + λ (copy - base)
)
def median(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    lambda_: Annotated[float, "scale of the median task vector"] = 1.0,
) -> torch.Tensor:
    """θ = θ0 + λ med_k(θ_k - θ0), entry by entry; of an even number, the mean of the two in the middle.

    >>> import torch
    >>> median([torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([900.0])], base=torch.zeros(1))
    tensor([2.])
    """
    import torch

    deltas = torch.stack([tensor - base for tensor in tensors]).sort(dim=0).values
    middle = (deltas[(len(deltas) - 1) // 2] + deltas[len(deltas) // 2]) / 2
    return base + lambda_ * middle
