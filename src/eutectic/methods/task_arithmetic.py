"""Task arithmetic: add weighted task vectors to the base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from eutectic.errors import MethodError
from eutectic.methods.method import PerSource, Setting, merge_method
from eutectic.ops.program import Program
from eutectic.ops.weighted_sum import WeightedSum, add_weighted

if TYPE_CHECKING:
    import torch

__all__ = ["task_arithmetic"]


def _coefficients(weight: Sequence[float], lambda_: float, normalize: bool) -> list[float]:
    """c_k = λ w_k, divided by Σ w_k if `normalize`."""
    total = sum(weight) if normalize else 1.0
    if abs(total) < 1e-8:
        raise MethodError(
            f"task_arithmetic: the weights {list(weight)} sum to {total:g} and cannot be normalised; "
            "change them or set normalize: false"
        )
    return [lambda_ * w / total for w in weight]


def _lower(setting: Setting) -> Program:
    p = setting.parameters
    return WeightedSum(_coefficients(p["weight"], p["lambda"], p["normalize"]), anchored=True)


@merge_method(
    summary="base plus a weighted sum of task vectors",
    reference="Ilharco et al., Editing models with task arithmetic, ICLR 2023 (arXiv 2212.04089), sec. 2",
    space="delta",
    base="required",
    idempotent=False,
    ignored=("density", "rescale", "int8_mask"),
    lower=_lower,
)
def task_arithmetic(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Annotated[PerSource[float], "weight of each task vector"],
    lambda_: Annotated[float, "scale of the summed task vectors"] = 1.0,
    normalize: Annotated[bool, "divide by the sum of the weights"] = False,
) -> torch.Tensor:
    """Task arithmetic: θ = θ0 + λ Σ w_k (θ_k - θ0), divided by Σ w_k if `normalize`.

    Args:
        tensors: the sources θ_k; base: θ0.
        weight: w_k, one number or one per source; required.
        lambda_: λ (``lambda`` in a recipe).
        normalize: whether to divide the sum by Σ w_k.

    >>> import torch
    >>> task_arithmetic([torch.tensor([1.0, 3.0])], base=torch.tensor([1.0, 1.0]), weight=0.5)
    tensor([1., 2.])
    """
    return add_weighted(base, tensors, _coefficients(weight, lambda_, normalize))
