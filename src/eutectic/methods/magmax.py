"""MagMax: of every entry, the change of largest magnitude."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from eutectic.methods.method import Setting, merge_method
from eutectic.ops.entry_programs import LargestDelta
from eutectic.ops.program import Program

if TYPE_CHECKING:
    import torch

__all__ = ["magmax"]


def _lower(setting: Setting) -> Program:
    return LargestDelta(setting.parameters["lambda"])


@merge_method(
    summary="of every entry the largest change",
    reference="Marczak et al., MagMax, ECCV 2024 (arXiv 2407.06322), eq. 2",
    space="delta",
    base="required",
    sparsifies=True,
    symmetric=False,  # of opposite changes of one size the first source's is taken
    lower=_lower,
)
def magmax(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    lambda_: Annotated[float, "scale of the merged task vector; the paper tunes it, 0.5 is common"] = 1.0,
) -> torch.Tensor:
    """MagMax: θ = θ0 + λ δ_k*, k* = argmax_k abs(δ_k) entry by entry, the first source of equals.

    Args:
        tensors: the sources θ_k; base: θ0.
        lambda_: λ (``lambda`` in a recipe).

    >>> import torch
    >>> magmax([torch.tensor([1.0, -3.0]), torch.tensor([-2.0, 1.0])], base=torch.zeros(2))
    tensor([-2., -3.])
    """
    best = tensors[0] - base
    for tensor in tensors[1:]:
        delta = tensor - base
        best = delta.where(delta.abs() > best.abs(), best)
    return base + lambda_ * best
