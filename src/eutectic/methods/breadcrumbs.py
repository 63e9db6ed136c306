"""Model Breadcrumbs: drop the smallest changes and the largest, then add them (plain) or merge them as TIES does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from eutectic.methods.method import PerSource, Range, Setting, each, merge_method
from eutectic.ops.program import Program
from eutectic.ops.signs import agree, combine
from eutectic.ops.sparse_sum import SparseSum
from eutectic.ops.sparsify import rescale_kind, restore, trim_both

if TYPE_CHECKING:
    import torch

__all__ = ["breadcrumbs", "breadcrumbs_ties"]


def _lower(setting: Setting) -> Program:
    p = setting.parameters
    return SparseSum(
        p["weight"],
        p["density"],
        outliers=p["gamma"],
        vote=p.get("sign_vote", "none"),
        normalize=p["normalize"],
        scale=p["lambda"],
        rescale=rescale_kind(p["rescale"]),
    )


_FACTS: dict[str, Any] = {
    "reference": "Davari and Belilovsky, Model Breadcrumbs, ECCV 2024 (arXiv 2312.06795), sec. 3",
    "space": "delta",
    "scope": "tensor",
    "base": "required",
    "sparsifies": True,
    "ignored": ("int8_mask",),
    "lower": _lower,
}


@merge_method(
    summary="drop the smallest and the largest changes, add the rest",
    idempotent=False,
    **_FACTS,
)
def breadcrumbs(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Annotated[PerSource[float], "weight of each task vector"],
    density: Annotated[PerSource[float], Range(0, 1), "share of entries kept per source"] = each(1.0),
    gamma: Annotated[PerSource[float], Range(0, 1), "share of the largest entries that are dropped"] = each(0.01),
    lambda_: Annotated[float, "scale of the merged task vector"] = 1.0,
    normalize: Annotated[bool, "divide by the sum of the weights"] = False,
    rescale: Annotated[bool | Literal["l1", "inverse_density"], "restore each delta's size"] = False,
) -> torch.Tensor:
    """Breadcrumbs: θ = θ0 + λ Σ w_k δ̂_k, δ̂ without the γ largest entries and with the next `density` largest.

    Exactly k = max(1, floor(density · n)) entries stay; floor(γ · n) are passed over at the top, fewer where k would
    not be reached. Ties go by the lowest flat index.

    Args:
        tensors: the sources θ_k; base: θ0.
        weight: w_k, one number or one per source; required.
        density: kept share; at 1 nothing is dropped, not even outliers.
        gamma: γ, the share of the largest entries that is dropped.
        lambda_: λ (``lambda`` in a recipe).
        normalize: divide by Σ w_k.
        rescale: "l1" (true) restores each delta's L1 norm, "inverse_density" divides by density.

    >>> import torch
    >>> breadcrumbs([torch.tensor([9.0, 3.0, 1.0, 2.0])], base=torch.zeros(4), weight=1.0, density=0.5, gamma=0.25)
    tensor([0., 3., 0., 2.])
    """
    deltas = [tensor - base for tensor in tensors]
    kept = restore(trim_both(deltas, density, gamma), deltas, density, rescale)
    return base + lambda_ * combine(kept, weight, None, normalize)


@merge_method(
    summary="drop the smallest and the largest changes, elect signs, sum what agrees",
    idempotent=False,
    **_FACTS,
)
def breadcrumbs_ties(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Annotated[PerSource[float], "weight of each task vector"],
    density: Annotated[PerSource[float], Range(0, 1), "share of entries kept per source"] = each(1.0),
    gamma: Annotated[PerSource[float], Range(0, 1), "share of the largest entries that are dropped"] = each(0.01),
    lambda_: Annotated[float, "scale of the merged task vector"] = 1.0,
    normalize: Annotated[bool, "divide by the weights that took part"] = False,
    rescale: Annotated[bool | Literal["l1", "inverse_density"], "restore each delta's size"] = False,
    sign_vote: Annotated[Literal["weighted", "paper"], "whether weights count in the sign vote"] = "weighted",
) -> torch.Tensor:
    """Breadcrumbs with TIES's election: θ = θ0 + λ Σ w_k m_k δ̂_k, m_k = [sign(w_k δ̂_k) = γ], δ̂ as in `breadcrumbs`.

    Args:
        tensors: the sources θ_k; base: θ0.
        weight: w_k, one number or one per source; required.
        density: kept share; at 1 nothing is dropped, not even outliers.
        gamma: the share of the largest entries that is dropped.
        lambda_: λ (``lambda`` in a recipe).
        normalize: divide by the sum of the weights that took part, entry by entry.
        rescale: "l1" (true) restores each delta's L1 norm, "inverse_density" divides by density.
        sign_vote: "weighted" (mergekit) or "paper" (unweighted).

    >>> import torch
    >>> a, b = torch.tensor([9.0, 3.0, 1.0, 2.0]), torch.tensor([1.0, -4.0, 8.0, 2.0])
    >>> breadcrumbs_ties([a, b], base=torch.zeros(4), weight=1.0, density=0.5, gamma=0.25)
    tensor([ 0., -4.,  0.,  4.])
    """
    deltas = [tensor - base for tensor in tensors]
    kept = restore(trim_both(deltas, density, gamma), deltas, density, rescale)
    return base + lambda_ * combine(kept, weight, agree(kept, weight, sign_vote), normalize)
