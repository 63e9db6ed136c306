"""DARE: drop random entries of the task vectors and rescale, then add them (linear) or merge them as TIES does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from eutectic.methods.method import PerSource, Range, Setting, each, merge_method
from eutectic.ops.program import Program
from eutectic.ops.random import Draws, draw_key
from eutectic.ops.signs import agree, combine
from eutectic.ops.sparse_sum import SparseSum
from eutectic.ops.sparsify import drop, rescale_kind, restore

if TYPE_CHECKING:
    import torch

__all__ = ["dare_linear", "dare_ties"]


def _lower(setting: Setting) -> Program:
    p = setting.parameters
    return SparseSum(
        p["weight"],
        p["density"],
        keys=[draw_key(setting.seed, setting.tensor, source) for source in range(setting.sources)],
        vote=p.get("sign_vote", "none"),
        normalize=p["normalize"],
        scale=p["lambda"],
        rescale=rescale_kind(p["rescale"]),
    )


_FACTS: dict[str, Any] = {
    "space": "delta",
    "scope": "tensor",
    "base": "required",
    "sparsifies": True,
    "symmetric": False,  # masks are keyed by the source's position
    "stochastic": True,
    "idempotent": False,
    "ignored": ("int8_mask",),
    "lower": _lower,
}
_RESCALE = "the paper divides what is kept by density; mergekit restores each delta's L1 norm per tensor (rescale)"


@merge_method(
    summary="drop random changes, rescale, add",
    reference="Yu et al., Language models are super Mario, ICML 2024 (arXiv 2311.03099), eq. 3",
    paper={"rescale": "inverse_density"},
    departures=(_RESCALE,),
    **_FACTS,
)
def dare_linear(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Annotated[PerSource[float], "weight of each task vector"],
    density: Annotated[PerSource[float], Range(0, 1), "share of entries kept per source"] = each(1.0),
    lambda_: Annotated[float, "scale of the merged task vector"] = 1.0,
    normalize: Annotated[bool, "divide by the sum of the weights"] = False,
    rescale: Annotated[bool | Literal["l1", "inverse_density"], "restore each delta's size"] = True,
    draws: Draws,
) -> torch.Tensor:
    """DARE with task arithmetic: θ = θ0 + λ Σ w_k r_k (b_k ⊙ δ_k), b_k ~ Bernoulli(density), δ_k = θ_k - θ0.

    r_k restores the L1 norm of δ_k ("l1", mergekit's true) or is 1 / density ("inverse_density", the paper's).

    Args:
        tensors: the sources θ_k; base: θ0.
        weight: w_k, one number or one per source; required.
        density: kept share p, 0 to 1.
        lambda_: λ (``lambda`` in a recipe).
        normalize: divide by Σ w_k.
        rescale: "l1" (true), "inverse_density" or false.
        draws: where the random numbers come from: seed, tensor name, offset.

    >>> import torch
    >>> dare_linear([torch.tensor([2.0, 2.0])], base=torch.zeros(2), weight=1.0, density=1.0)
    tensor([2., 2.])
    """
    deltas = [tensor - base for tensor in tensors]
    kept = restore(drop(deltas, density, draws), deltas, density, rescale)
    return base + lambda_ * combine(kept, weight, None, normalize)


@merge_method(
    summary="drop random changes, rescale, elect signs, sum what agrees",
    reference="Yu et al., Language models are super Mario, ICML 2024 (arXiv 2311.03099), with TIES's election",
    paper={"rescale": "inverse_density", "sign_vote": "paper", "normalize": True},
    departures=(
        _RESCALE,
        "the TIES paper's sign vote is unweighted and its sum a mean of what agrees; mergekit's vote is weighted "
        "and its sum not divided (sign_vote, normalize)",
    ),
    **_FACTS,
)
def dare_ties(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Annotated[PerSource[float], "weight of each task vector"],
    density: Annotated[PerSource[float], Range(0, 1), "share of entries kept per source"] = each(1.0),
    lambda_: Annotated[float, "scale of the merged task vector"] = 1.0,
    normalize: Annotated[bool, "divide by the weights that took part"] = False,
    rescale: Annotated[bool | Literal["l1", "inverse_density"], "restore each delta's size"] = True,
    sign_vote: Annotated[Literal["weighted", "paper"], "whether weights count in the sign vote"] = "weighted",
    draws: Draws,
) -> torch.Tensor:
    """DARE with TIES's election: θ = θ0 + λ Σ w_k m_k δ̂_k, δ̂_k = r_k (b_k ⊙ δ_k), m_k = [sign(w_k δ̂_k) = γ].

    Args:
        tensors: the sources θ_k; base: θ0.
        weight: w_k, one number or one per source; required.
        density: kept share p of b_k ~ Bernoulli(p), 0 to 1.
        lambda_: λ (``lambda`` in a recipe).
        normalize: divide by the sum of the weights that took part, entry by entry.
        rescale: "l1" (true) restores each delta's L1 norm, "inverse_density" divides by p, false does nothing.
        sign_vote: "weighted" (mergekit) or "paper" (unweighted).
        draws: where the random numbers come from: seed, tensor name, offset.

    >>> import torch
    >>> a, b = torch.tensor([1.0, -1.0]), torch.tensor([2.0, 3.0])
    >>> dare_ties([a, b], base=torch.zeros(2), weight=1.0, density=1.0)
    tensor([3., 3.])
    """
    deltas = [tensor - base for tensor in tensors]
    kept = restore(drop(deltas, density, draws), deltas, density, rescale)
    return base + lambda_ * combine(kept, weight, agree(kept, weight, sign_vote), normalize)
