"""TIES: trim, elect signs, average what agrees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from eutectic.methods.method import PerSource, Range, Setting, each, merge_method
from eutectic.ops.program import Program
from eutectic.ops.signs import agree, combine
from eutectic.ops.sparse_sum import SparseSum
from eutectic.ops.sparsify import rescale_kind, restore, trim

if TYPE_CHECKING:
    import torch

__all__ = ["ties"]


def _lower(setting: Setting) -> Program:
    p = setting.parameters
    return SparseSum(
        p["weight"],
        p["density"],
        vote=p["sign_vote"],
        normalize=p["normalize"],
        scale=p["lambda"],
        rescale=rescale_kind(p["rescale"]),
    )


@merge_method(
    summary="trim small changes, elect signs, average what agrees",
    reference="Yadav et al., TIES-Merging, NeurIPS 2023 (arXiv 2306.01708), algorithm 1",
    space="delta",
    scope="tensor",
    base="required",
    sparsifies=True,
    ignored=("int8_mask",),
    paper={"scope": "model", "sign_vote": "paper"},
    departures=(
        "the paper trims over the whole model's vector, mergekit per tensor (scope)",
        "the paper's sign vote is unweighted, mergekit's weighted (sign_vote)",
        "where a vote is exactly zero the paper takes the majority sign of the whole vector, mergekit and Eutectic +",
    ),
    lower=_lower,
)
def ties(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Annotated[PerSource[float], "weight of each task vector"],
    density: Annotated[PerSource[float], Range(0, 1), "share of entries kept per source"] = each(1.0),
    lambda_: Annotated[float, "scale of the merged task vector"] = 1.0,
    normalize: Annotated[bool, "divide by the weights that took part"] = True,
    rescale: Annotated[bool | Literal["l1", "inverse_density"], "restore each trimmed delta's size"] = False,
    sign_vote: Annotated[Literal["weighted", "paper"], "whether weights count in the sign vote"] = "weighted",
    scope: Annotated[Literal["tensor", "model"], "trim per tensor, or over the whole vector"] = "tensor",
) -> torch.Tensor:
    """TIES: θ = θ0 + λ Σ w_k m_k δ̂_k / Σ w_k m_k, with δ̂ = trim(θ_k - θ0) and m_k = [sign(w_k δ̂_k) = γ].

    γ is the sign of Σ w_k δ̂_k (+ where it is zero). `trim` keeps exactly k = max(1, floor(density · n)) entries of
    largest magnitude (none at density 0), ties to the lowest flat index. Given plain tensors, each call is one tensor
    (or one flattened model); `scope: model` in a recipe trims over all tensors together.

    Args:
        tensors: the sources θ_k; base: θ0.
        weight: w_k, one number or one per source; required.
        density: kept share, 0 to 1, one number or one per source.
        lambda_: λ (``lambda`` in a recipe).
        normalize: divide by the sum of the weights that took part, entry by entry.
        rescale: "l1" (true) restores each delta's L1 norm, "inverse_density" divides by density.
        sign_vote: "weighted" (mergekit) or "paper" (unweighted).
        scope: "tensor" (mergekit) or "model" (paper).

    >>> import torch
    >>> a, b = torch.tensor([2.0, -0.1, 1.0]), torch.tensor([1.0, 0.0, -3.0])
    >>> ties([a, b], base=torch.zeros(3), weight=1.0, density=0.7)
    tensor([ 1.5000,  0.0000, -3.0000])
    """
    deltas = [tensor - base for tensor in tensors]
    kept = restore(trim(deltas, density), deltas, density, rescale)
    return base + lambda_ * combine(kept, weight, agree(kept, weight, sign_vote), normalize)
