"""ExPO: step past an aligned model, away from the model that it was aligned from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from eutectic.methods.method import Setting, merge_method
from eutectic.ops.program import Program
from eutectic.ops.weighted_sum import WeightedSum, add_weighted

if TYPE_CHECKING:
    import torch

__all__ = ["expo"]


def _lower(setting: Setting) -> Program:
    return WeightedSum([1.0 + setting.parameters["alpha"]], anchored=True)


@merge_method(
    summary="extrapolate from the base past a model",
    reference="Zheng et al., Model extrapolation expedites alignment, ACL 2025 (arXiv 2404.16792), eq. 1",
    space="delta",
    base="required",
    sources=(1, 1),
    idempotent=False,
    lower=_lower,
)
def expo(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    alpha: Annotated[float, "how far past the model, in units of its distance from the base"] = 0.1,
) -> torch.Tensor:
    """ExPO: θ = θ_1 + α (θ_1 - θ0), with θ0 the supervised model and θ_1 the aligned one.

    Args:
        tensors: exactly one, θ_1; base: θ0.
        alpha: α; 0 gives θ_1 back.

    >>> import torch
    >>> expo([torch.tensor([2.0])], base=torch.tensor([1.0]), alpha=0.5)
    tensor([2.5000])
    """
    return add_weighted(base, tensors, [1.0 + alpha])
