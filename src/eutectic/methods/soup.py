"""Model soup: the plain (or weighted) average of fine-tunes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from eutectic.errors import MethodError
from eutectic.methods.method import PerSource, Range, Setting, each, merge_method
from eutectic.ops.program import Program
from eutectic.ops.weighted_sum import WeightedSum, sum_weighted

if TYPE_CHECKING:
    import torch

__all__ = ["soup"]


def _coefficients(weight: Sequence[float]) -> list[float]:
    total = sum(weight)
    if total <= 0:
        raise MethodError(f"soup: the weights {list(weight)} sum to {total:g}; give at least one above zero")
    return [w / total for w in weight]


def _lower(setting: Setting) -> Program:
    return WeightedSum(_coefficients(setting.parameters["weight"]))


@merge_method(
    summary="uniform or weighted average of fine-tunes",
    reference="Wortsman et al., Model soups, ICML 2022 (arXiv 2203.05482), uniform soup",
    lower=_lower,
)
def soup(
    tensors: Sequence[torch.Tensor],
    *,
    weight: Annotated[PerSource[float], Range(0), "share of each source, equal unless given"] = each(1.0),
) -> torch.Tensor:
    """Model soup: θ = Σ w_k θ_k / Σ w_k with w_k = 1 unless given: `linear` that asks for nothing.

    Args:
        tensors: the sources θ_k.
        weight: w_k >= 0, one number or one per source.

    Raises:
        MethodError: the weights are all zero.

    >>> import torch
    >>> soup([torch.tensor([0.0, 4.0]), torch.tensor([4.0, 0.0])])
    tensor([2., 2.])
    """
    return sum_weighted(tensors, _coefficients(weight))
