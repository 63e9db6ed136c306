"""KnOTS: align the tasks in one basis of singular vectors, merge their coordinates by TIES there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from eutectic.methods.mean_delta import lower_vectors, mean_delta
from eutectic.methods.method import PerSource, Range, Setting, each, merge_method
from eutectic.ops.matrices import Deltas, matrix_bytes, matrix_shape, merge_matrices
from eutectic.ops.signs import agree, combine
from eutectic.ops.sparsify import trim
from eutectic.ops.spectrum import spectrum

if TYPE_CHECKING:
    import torch

__all__ = ["knots_ties"]


def _work_bytes(setting: Setting) -> int:
    stack = matrix_shape(setting.shape)
    if stack is None:
        return 0
    _, m, n = stack
    side = min(m, n * setting.sources)
    return matrix_bytes(setting.shape, whole=5 * setting.sources + 9, square=1) + 8 * 8 * side * side


@merge_method(
    summary="TIES over coordinates in a basis that all tasks share",
    reference="Stoica et al., Model merging with SVD to tie the KnOTS, ICLR 2025 (arXiv 2410.19735), sec. 4",
    space="delta",
    scope="tensor",
    base="required",
    idempotent=False,
    differentiable=False,
    vocabulary=mean_delta,
    departures=("the paper aligns LoRA updates; here any deltas, whose rank decides how many directions there are",),
    work_bytes=_work_bytes,
    lower=lower_vectors,
)
def knots_ties(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Annotated[PerSource[float], "weight of each task vector"] = each(1.0),
    density: Annotated[PerSource[float], Range(0, 1), "share of coordinates kept per source"] = each(1.0),
    lambda_: Annotated[float, "scale of the merged task vector"] = 1.0,
    normalize: Annotated[bool, "divide by the weights that took part"] = True,
) -> torch.Tensor:
    """KnOTS with TIES: θ = θ0 + λ U TIES(S V_1', ..., S V_N'), where U S [V_1' ... V_N'] = [δ_1 ... δ_N] side by side.

    TIES trims the coordinates S V_k' to `density`, elects a sign per coordinate, and averages what agrees.

    Embeddings, output heads and tensors of one axis are averaged: θ0 + λ (Σ w_k δ_k) / N. A tensor of three axes is a
    stack of matrices; one of more, or with at most 8 entries along the third, is flattened to [outputs, rest].

    Args:
        tensors: the sources θ_k; base: θ0.
        weight: w_k, one number or one per source.
        density: kept share of coordinates, 0 to 1, one number or one per source.
        lambda_: λ (``lambda`` in a recipe).
        normalize: divide by the sum of the weights that took part, coordinate by coordinate.

    >>> import torch
    >>> a, b = torch.tensor([[2.0, 2.0], [0.0, 0.0]]), torch.tensor([[4.0, -1.0], [0.0, 0.0]])
    >>> knots_ties([a, b], base=torch.zeros(2, 2))
    tensor([[3., 2.],
            [0., 0.]])
    """
    import torch

    def aligned(deltas: Deltas) -> torch.Tensor:
        u, s, v = spectrum(torch.cat(list(deltas), 1))
        kept = trim(list((v * s).T.split(deltas.base.shape[1], 1)), density)
        return u @ combine(kept, weight, agree(kept, weight, "weighted"), normalize)

    return merge_matrices(tensors, base, weight, lambda_, aligned)
