"""WUDI: the change that disturbs each task least where that task's own inputs lie, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from eutectic.methods.mean_delta import lower_vectors, mean_delta
from eutectic.methods.method import PerSource, Setting, each, merge_method
from eutectic.ops.gram import gram
from eutectic.ops.matrices import Deltas, matrix_bytes, matrix_shape, merge_matrices
from eutectic.ops.spectrum import inverse

if TYPE_CHECKING:
    import torch

__all__ = ["wudi"]

CUTOFF = 1e-10  # share of the largest eigenvalue of M, so 1e-5 of a singular value


def _work_bytes(setting: Setting) -> int:
    stack = matrix_shape(setting.shape)
    if stack is None:
        return 0
    _, m, n = stack
    side = min(m * setting.sources, n)
    return matrix_bytes(setting.shape, whole=2 * setting.sources + 5, square=1) + 8 * 8 * side * side


@merge_method(
    summary="change that disturbs each task least on its own inputs, in closed form",
    reference="Cheng et al., Whoever Started the Interference Should End It, ICML 2025 (arXiv 2503.08099)",
    space="delta",
    scope="tensor",
    base="required",
    idempotent=False,
    differentiable=False,
    vocabulary=mean_delta,
    departures=("the paper minimises with 300 steps of Adam from Σ δ_k; Eutectic solves the same problem exactly",),
    work_bytes=_work_bytes,
    lower=lower_vectors,
)
def wudi(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Annotated[PerSource[float], "weight of each task vector"] = each(1.0),
    lambda_: Annotated[float, "scale of the merged task vector"] = 1.0,
) -> torch.Tensor:
    """WUDI: θ = θ0 + λ Δ, where Δ minimises Σ ‖(Δ - w_k δ_k) δ_k'‖² / ‖δ_k‖²: Δ = (Σ w_k δ_k G_k / ‖δ_k‖²) M⁺.

    G_k = δ_k' δ_k stands for the inputs of task k, and M = Σ G_k / ‖δ_k‖². M⁺ leaves out eigenvalues below 1e-10 of the
    largest; of several solutions it gives the smallest. Sources of weight 0, and copies of the base, take no part.

    Embeddings, output heads and tensors of one axis are averaged: θ0 + λ (Σ w_k δ_k) / N. A tensor of three axes is a
    stack of matrices; one of more, or with at most 8 entries along the third, is flattened to [outputs, rest].

    Args:
        tensors: the sources θ_k; base: θ0.
        weight: w_k, one number or one per source.
        lambda_: λ (``lambda`` in a recipe).

    >>> import torch
    >>> a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    >>> wudi([a, b], base=torch.zeros(1, 2))
    tensor([[2., 3.]])
    """
    return merge_matrices(tensors, base, weight, lambda_, _solve)


def _solve(deltas: Deltas) -> torch.Tensor:
    import torch

    (m, n), parts = deltas.base.shape, []
    for at, w in enumerate(deltas.weight):
        length = float(deltas[at].norm()) if w else 0.0
        if length:
            parts.append((at, w * length, length))
    if not parts:
        return torch.zeros_like(deltas.base)
    units = (deltas[at] / length for at, _, length in parts)  # B_k = δ_k / ‖δ_k‖
    if m * len(parts) < n:
        rows = list(units)
        left = torch.cat([size * gram(unit) for unit, (_, size, _) in zip(rows, parts, strict=True)], 1)
        stack = torch.cat(rows)
        return (left @ inverse(gram(stack), CUTOFF)) @ stack
    middle, right = torch.zeros(n, n, dtype=torch.float64, device=deltas.base.device), torch.zeros_like(deltas.base)
    for unit, (_, size, _) in zip(units, parts, strict=True):
        inputs = gram(unit.T)
        middle += inputs
        right.addmm_(unit, inputs, alpha=size)
    return right @ inverse(middle, CUTOFF)
