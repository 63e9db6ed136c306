"""EMR's unified task vector: of every entry the elected sign and the largest change that has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from eutectic.methods.method import PerSource, Setting, each, merge_method
from eutectic.ops.entry_programs import Unified
from eutectic.ops.program import Program
from eutectic.ops.weighted_sum import sum_weighted

if TYPE_CHECKING:
    import torch

__all__ = ["emr"]


def _lower(setting: Setting) -> Program:
    return Unified(setting.parameters["weight"], setting.parameters["lambda"])


@merge_method(
    summary="of every entry the elected sign and the largest change of that sign",
    reference="Huang et al., EMR-Merging, NeurIPS 2024 (arXiv 2405.17461), sec. 3.2",
    space="delta",
    base="required",
    departures=("the paper rebuilds each task from this vector with a mask and a scale; this is the vector alone",),
    lower=_lower,
)
def emr(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Annotated[PerSource[float], "weight of each task vector"] = each(1.0),
    lambda_: Annotated[float, "scale of the unified task vector"] = 1.0,
) -> torch.Tensor:
    """EMR's unified vector: θ = θ0 + λ γ max |w_k δ_k| over the k whose w_k δ_k has the sign γ of Σ w_k δ_k.

    An entry whose sum is zero is the base's.

    Args:
        tensors: the sources θ_k; base: θ0.
        weight: w_k, one number or one per source.
        lambda_: λ (``lambda`` in a recipe).

    >>> import torch
    >>> emr([torch.tensor([1.0, -3.0]), torch.tensor([2.0, 1.0])], base=torch.zeros(2))
    tensor([ 2., -3.])
    """
    import torch

    origin = base.double()
    deltas = [(tensor.double() - origin) * w for tensor, w in zip(tensors, weight, strict=True)]
    sign = sum_weighted(deltas, [1.0] * len(deltas)).sign()
    largest = torch.zeros_like(origin)
    for delta in deltas:
        largest = torch.maximum(largest, delta * sign)
    return origin + lambda_ * largest * sign
