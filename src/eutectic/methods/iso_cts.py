"""Iso-CTS: equal singular values over directions that tasks share and directions of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from eutectic.methods.mean_delta import lower_vectors, mean_delta
from eutectic.methods.method import PerSource, Range, Setting, each, merge_method
from eutectic.methods.tsv_m import concatenate
from eutectic.ops.matrices import Deltas, matrix_bytes, merge_matrices
from eutectic.ops.spectrum import spectrum

if TYPE_CHECKING:
    import torch

__all__ = ["iso_cts"]


def _work_bytes(setting: Setting) -> int:
    return matrix_bytes(setting.shape, whole=11, square=12)


@merge_method(
    summary="equal singular values over shared directions and each task's own",
    reference="Marczak et al., No Task Left Behind, ICML 2025 (arXiv 2502.04959), algorithm 2",
    space="delta",
    scope="tensor",
    base="required",
    idempotent=False,
    differentiable=False,
    vocabulary=mean_delta,
    work_bytes=_work_bytes,
    lower=lower_vectors,
)
def iso_cts(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Annotated[PerSource[float], "weight of each task vector"] = each(1.0),
    lambda_: Annotated[float, "scale of the merged task vector"] = 1.0,
    common: Annotated[float, Range(0, 1), "share of the directions that the sum of all tasks gives"] = 0.8,
) -> torch.Tensor:
    """Iso-CTS: θ = θ0 + λ mean(S) U⊥ V⊥', over the first c directions of Σ w_k δ_k and t of each task outside them.

    With r the smaller side of the matrix and N sources, t = round((r - floor(common r)) / N) and c = r - N t. A task's
    own directions are those of w_k δ_k - C C' w_k δ_k, where C holds the c common left ones. U⊥ = U (U'U)^-1/2 is the
    nearest orthonormal columns. Directions that are missing, for want of rank, count as zeros in the mean.

    Embeddings, output heads and tensors of one axis are averaged: θ0 + λ (Σ w_k δ_k) / N. A tensor of three axes is a
    stack of matrices; one of more, or with at most 8 entries along the third, is flattened to [outputs, rest].

    Args:
        tensors: the sources θ_k; base: θ0.
        weight: w_k, one number or one per source.
        lambda_: λ (``lambda`` in a recipe).
        common: share of the directions taken from the sum.

    >>> import torch
    >>> iso_cts([torch.tensor([[3.0, 0.0], [0.0, 1.0]])], base=torch.zeros(2, 2), common=0.5)
    tensor([[2., 0.],
            [0., 2.]])
    """

    def combine(deltas: Deltas) -> torch.Tensor:
        r, count = min(deltas.base.shape), len(deltas)
        own = min(round((r - int(common * r)) / count), r // count)
        shared = spectrum(deltas.total(), r - own * count)
        parts = [shared]
        for at in range(count):
            delta = deltas.weighted(at)
            parts.append(spectrum(delta - shared.u @ (shared.u.T @ delta), own))
        return concatenate(parts, float(sum(part.s.sum() for part in parts)) / r)

    return merge_matrices(tensors, base, weight, lambda_, combine)
