"""Passthrough: one model, copied or scaled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from eutectic.methods.method import PerSource, Setting, each, merge_method
from eutectic.ops.program import Program
from eutectic.ops.weighted_sum import WeightedSum, sum_weighted

if TYPE_CHECKING:
    import torch

__all__ = ["passthrough"]


def _lower(setting: Setting) -> Program:
    return WeightedSum(setting.parameters["scale"])


@merge_method(
    summary="copy one model, or scale it",
    reference="",
    sources=(1, 1),
    lower=_lower,
)
def passthrough(
    tensors: Sequence[torch.Tensor],
    *,
    scale: Annotated[PerSource[float], "factor on every float tensor"] = each(1.0),
) -> torch.Tensor:
    """One source, times `scale`: θ = s θ_1.

    >>> import torch
    >>> passthrough([torch.tensor([1.0, 2.0])], scale=2.0)
    tensor([2., 4.])
    """
    return sum_weighted(tensors, scale)
