"""Fisher merging: an average in which each entry counts as much as the model's likelihood depends on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from eutectic.errors import MethodError
from eutectic.methods.method import PerSource, Range, each, merge_method

if TYPE_CHECKING:
    import torch

__all__ = ["fisher"]


@merge_method(
    summary="average weighted by the Fisher information of each entry",
    reference="Matena and Raffel, Merging Models with Fisher-Weighted Averaging, 2022 (arXiv 2111.09832), equation 6",
    scope="tensor",
    needs="fisher",
)
def fisher(
    tensors: Sequence[torch.Tensor],
    *,
    statistics: Sequence[torch.Tensor | None],
    weight: Annotated[PerSource[float], Range(0), "share of each source"] = each(1.0),
    floor: Annotated[float, Range(1e-30), "smallest Fisher information of an entry"] = 1e-6,
) -> torch.Tensor:
    """Fisher merging: θ = (Σ w_k F_k θ_k) / (Σ w_k F_k), entry by entry, F_k the larger of the statistics and a floor.

    Where no source's Fisher information exceeds the floor, the entry is the mean of the sources by their weights; so is
    a tensor without statistics.

    Args:
        tensors: the sources θ_k. statistics: their diagonal Fisher information F_k, in the tensors' shape.
        weight: w_k, one number or one per source.
        floor: smallest F_k.

    >>> import torch
    >>> a, b = torch.tensor([1.0, 1.0]), torch.tensor([3.0, 3.0])
    >>> fisher([a, b], statistics=[torch.tensor([3.0, 0.0]), torch.tensor([1.0, 0.0])])
    tensor([1.5000, 2.0000])
    """
    import torch

    if sum(weight) <= 0:
        raise MethodError("weight: the weights of all sources are 0")
    shares = [
        torch.full_like(tensor, w) if found is None else w * found.to(tensor.dtype).clamp(min=floor)
        for tensor, found, w in zip(tensors, statistics, weight, strict=True)
    ]
    total = sum(shares[1:], shares[0])
    parts = [share / total * tensor for share, tensor in zip(shares, tensors, strict=True)]
    return sum(parts[1:], parts[0])
