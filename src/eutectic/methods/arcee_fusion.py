"""Arcee fusion: take the changes whose importance stands out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eutectic.methods.method import Setting, merge_method
from eutectic.ops.fusion import Fusion, quartile_counts
from eutectic.ops.program import Program

if TYPE_CHECKING:
    import torch

__all__ = ["arcee_fusion"]

EPSILON = 1e-8


def _lower(setting: Setting) -> Program:
    return Fusion(setting.shape[-1] if setting.shape else 1)


@merge_method(
    summary="take the changes whose importance stands out",
    reference="Arcee AI, Arcee Fusion (2024), as in mergekit 0.1.5",
    space="delta",
    scope="tensor",
    base="required",
    sparsifies=True,
    sources=(1, 1),
    idempotent=False,  # most of the base is kept
    departures=(
        "mergekit estimates the quartiles of tensors above a million entries from a random sample; here they are exact",
    ),
    lower=_lower,
)
def arcee_fusion(tensors: Sequence[torch.Tensor], *, base: torch.Tensor) -> torch.Tensor:
    """Arcee fusion: θ = θ0 + δ where I = abs(δ) · KL(softmax θ_1 ‖ softmax θ0) >= median I + 1.5 (q3 - q1), else θ0.

    Softmax and divergence run along the last axis, in float64, 1e-8 added to every probability; the quartiles are
    over the whole tensor, at floor(q (n - 1)) of the sorted importances.

    Args:
        tensors: exactly one, θ_1; base: θ0; δ = θ_1 - θ0.

    >>> import torch
    >>> arcee_fusion([torch.tensor([1.0, 1.1, 1.2, 1.3, 9.0])], base=torch.ones(5))
    tensor([1., 1., 1., 1., 9.])
    """
    import torch

    if not base.numel():
        return base
    delta = tensors[0] - base
    rows = (base.shape[-1],) if base.dim() else (1,)
    p = torch.softmax(tensors[0].detach().double().reshape(-1, *rows), -1) + EPSILON
    q = torch.softmax(base.detach().double().reshape(-1, *rows), -1) + EPSILON
    divergence = (p * torch.log(p / q)).sum(-1, keepdim=True).to(delta.dtype)
    importance = (delta.detach().reshape(-1, *rows).abs() * divergence).reshape(base.shape)
    ordered = importance.abs().reshape(-1).sort(descending=True).values
    low, middle, high = (ordered[count - 1] for count in quartile_counts(base.numel()))
    return base + delta.where(importance >= middle + 1.5 * (high - low), 0.0)
