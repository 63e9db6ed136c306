"""Karcher mean: the centre of the models' directions on the sphere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from eutectic.methods.method import Range, Setting, merge_method
from eutectic.ops.program import Program
from eutectic.ops.sphere import karcher_coefficients
from eutectic.ops.weighted_sum import GramSum, gram_of, sum_weighted

if TYPE_CHECKING:
    import torch

__all__ = ["karcher"]


def _lower(setting: Setting) -> Program:
    p = setting.parameters
    return GramSum(setting.sources, lambda gram: karcher_coefficients(gram.tolist(), p["max_iter"], p["tol"]))


@merge_method(
    summary="Riemannian mean of the models' directions, at their mean length",
    reference="Karcher, Comm. Pure Appl. Math. 30 (1977); merging: arXiv 2603.04972",
    scope="tensor",
    lower=_lower,
)
def karcher(
    tensors: Sequence[torch.Tensor],
    *,
    max_iter: Annotated[int, Range(0), "most steps"] = 10,
    tol: Annotated[float, Range(0), "the step, and the length, that counts as zero"] = 1e-5,
) -> torch.Tensor:
    """Karcher mean: θ = mean ‖θ_k‖ · argmin_m Σ angle(m, θ_k)² over unit vectors m; each tensor is one vector.

    Found by steps m ← exp_m(mean log_m(θ_k / ‖θ_k‖)) in the span of the sources: one pass for their Gram matrix, one
    for the sum. Tensors no longer than `tol` have no direction.

    Args:
        tensors: the sources θ_k, of equal weight.
        max_iter: most steps.
        tol: a step shorter than this ends the search.

    >>> import torch
    >>> karcher([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])])
    tensor([0.7071, 0.7071])
    """
    import torch

    return sum_weighted(tensors, karcher_coefficients(gram_of(tensors), max_iter, tol, torch))
