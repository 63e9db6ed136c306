"""The mean of weighted deltas: what methods that work on matrices do to embeddings and output heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from eutectic.methods.method import PerSource, Setting, each, merge_method
from eutectic.ops.matrices import matrix_shape, mean_coefficients
from eutectic.ops.program import Program
from eutectic.ops.weighted_sum import WeightedSum, add_weighted

if TYPE_CHECKING:
    import torch

__all__ = ["lower_vectors", "mean_delta"]


def _lower(setting: Setting) -> Program:
    p = setting.parameters
    return WeightedSum(mean_coefficients(p["weight"], p["lambda"]), anchored=True)


def lower_vectors(setting: Setting) -> Program | None:
    """The twin of a spectral method for tensors that are no matrices: their mean."""
    return _lower(setting) if matrix_shape(setting.shape) is None else None


@merge_method(
    summary="base plus the mean of the weighted task vectors",
    reference="Ilharco et al., Editing models with task arithmetic, ICLR 2023 (arXiv 2212.04089), sec. 2",
    space="delta",
    base="required",
    idempotent=False,
    lower=_lower,
)
def mean_delta(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Annotated[PerSource[float], "weight of each task vector"] = each(1.0),
    lambda_: Annotated[float, "scale of the mean"] = 1.0,
) -> torch.Tensor:
    """Mean of deltas: θ = θ0 + λ (Σ w_k δ_k) / N.

    >>> import torch
    >>> mean_delta([torch.tensor([3.0]), torch.tensor([1.0])], base=torch.tensor([1.0]))
    tensor([2.])
    """
    return add_weighted(base, tensors, mean_coefficients(weight, lambda_))
