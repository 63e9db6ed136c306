"""Linear merge (model soup): a weighted average of the sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from eutectic.errors import MethodError
from eutectic.methods.method import PerSource, Setting, merge_method
from eutectic.ops.program import Program
from eutectic.ops.weighted_sum import WeightedSum, sum_weighted

if TYPE_CHECKING:
    import torch

__all__ = ["linear"]


def _coefficients(weight: Sequence[float], normalize: bool) -> list[float]:
    total = sum(weight)
    if not normalize:
        return list(weight)
    if abs(total) < 1e-8:
        raise MethodError(
            f"linear: the weights {list(weight)} sum to {total:g} and cannot be normalised; "
            "change them or set normalize: false"
        )
    return [w / total for w in weight]


def _lower(setting: Setting) -> Program:
    return WeightedSum(_coefficients(setting.parameters["weight"], setting.parameters["normalize"]))


@merge_method(
    summary="weighted average of the sources",
    reference="Wortsman et al., Model soups, ICML 2022 (arXiv 2203.05482), eq. 1",
    lower=_lower,
)
def linear(
    tensors: Sequence[torch.Tensor],
    *,
    weight: Annotated[PerSource[float], "share of each source"],
    normalize: Annotated[bool, "divide by the sum of the weights"] = True,
) -> torch.Tensor:
    """Weighted average: θ = Σ w_k θ_k / Σ w_k (or Σ w_k θ_k).

    Args:
        tensors: the sources, all of one shape.
        weight: w_k, one number or one per source; required.
        normalize: whether to divide by Σ w_k.

    Raises:
        MethodError: `normalize` with weights that sum to zero.

    >>> import torch
    >>> linear([torch.tensor([0.0, 4.0]), torch.tensor([4.0, 0.0])], weight=[3, 1])
    tensor([1., 3.])
    """
    return sum_weighted(tensors, _coefficients(weight, normalize))
