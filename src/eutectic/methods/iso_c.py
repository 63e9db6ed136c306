"""Iso-C: every singular direction of the summed deltas counts the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from eutectic.methods.mean_delta import lower_vectors, mean_delta
from eutectic.methods.method import PerSource, Setting, each, merge_method
from eutectic.ops.matrices import Deltas, matrix_bytes, merge_matrices
from eutectic.ops.spectrum import with_values

if TYPE_CHECKING:
    import torch

__all__ = ["iso_c"]


def _work_bytes(setting: Setting) -> int:
    return matrix_bytes(setting.shape, whole=10, square=8)


@merge_method(
    summary="sum of task vectors with all singular values made equal",
    reference="Marczak et al., No Task Left Behind, ICML 2025 (arXiv 2502.04959), algorithm 1",
    space="delta",
    scope="tensor",
    base="required",
    idempotent=False,
    differentiable=False,
    vocabulary=mean_delta,
    work_bytes=_work_bytes,
    lower=lower_vectors,
)
def iso_c(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Annotated[PerSource[float], "weight of each task vector"] = each(1.0),
    lambda_: Annotated[float, "scale of the merged task vector"] = 1.0,
) -> torch.Tensor:
    """Iso-C: θ = θ0 + λ mean(S) U V', where U diag(S) V' = Σ w_k δ_k; the mean is over the smaller side of the matrix.

    A sum of lower rank than that keeps its rank: directions that it does not have stay out, though the mean counts
    them as zeros.

    Embeddings, output heads and tensors of one axis are averaged: θ0 + λ (Σ w_k δ_k) / N. A tensor of three axes is a
    stack of matrices; one of more, or with at most 8 entries along the third, is flattened to [outputs, rest].

    Args:
        tensors: the sources θ_k; base: θ0.
        weight: w_k, one number or one per source.
        lambda_: λ (``lambda`` in a recipe).

    >>> import torch
    >>> iso_c([torch.tensor([[3.0, 0.0], [0.0, 1.0]])], base=torch.zeros(2, 2))
    tensor([[2., 0.],
            [0., 2.]])
    """

    def combine(deltas: Deltas) -> torch.Tensor:
        return with_values(deltas.total(), lambda s: s.sum().expand_as(s) / min(deltas.base.shape))

    return merge_matrices(tensors, base, weight, lambda_, combine)
