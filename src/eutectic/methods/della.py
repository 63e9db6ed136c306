"""DELLA: drop entries at random, small ones more often, and rescale; then add, or merge as TIES does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from eutectic.errors import MethodError
from eutectic.methods.method import PerSource, Range, Setting, each, merge_method
from eutectic.ops.program import Program
from eutectic.ops.random import Draws, draw_key
from eutectic.ops.rank_drop import RankSum, drop_by_rank
from eutectic.ops.signs import agree, combine
from eutectic.ops.sparsify import rescale_kind, restore

if TYPE_CHECKING:
    import torch

__all__ = ["della", "della_linear"]


def _check(density: Sequence[float], epsilon: Sequence[float]) -> None:
    for d, e in zip(density, epsilon, strict=True):
        if 0 < d < 1 and not (d - e > 0 and d + e < 1):
            raise MethodError(
                f"della: density {d:g} with epsilon {e:g} gives probabilities from {d - e:g} to {d + e:g}, which must "
                f"lie between 0 and 1; choose epsilon below {min(d, 1 - d):g}"
            )


def _lower(setting: Setting) -> Program:
    p = setting.parameters
    _check(p["density"], p["epsilon"])
    return RankSum(
        setting.row,
        math.prod(setting.shape) // max(1, setting.row),
        p["weight"],
        p["density"],
        p["epsilon"],
        [draw_key(setting.seed, setting.tensor, source) for source in range(setting.sources)],
        vote=p.get("sign_vote", "none"),
        normalize=p["normalize"],
        scale=p["lambda"],
        rescale=rescale_kind(p["rescale"]),
    )


_FACTS: dict[str, Any] = {
    "reference": "Deep et al., DELLA-Merging, 2024 (arXiv 2406.11617), sec. 3",
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
_RESCALE = "the paper divides each kept entry by its probability; mergekit restores each delta's L1 norm (rescale)"


@merge_method(
    summary="drop random small changes, rescale, add",
    paper={"rescale": "inverse_probability"},
    departures=(_RESCALE,),
    **_FACTS,
)
def della_linear(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Annotated[PerSource[float], "weight of each task vector"],
    density: Annotated[PerSource[float], Range(0, 1), "mean share of entries kept per source"] = each(1.0),
    epsilon: Annotated[PerSource[float], Range(0, 1), "how far the probability varies with rank"] = each(0.15),
    lambda_: Annotated[float, "scale of the merged task vector"] = 1.0,
    normalize: Annotated[bool, "divide by the sum of the weights"] = False,
    rescale: Annotated[bool | Literal["l1", "inverse_probability"], "restore each delta's size"] = True,
    draws: Draws,
) -> torch.Tensor:
    """DELLA with task arithmetic: θ = θ0 + λ Σ w_k r_k (b_k ⊙ δ_k), b ~ Bernoulli(p(rank of |δ| in its row)).

    p grows linearly from density - ε for the smallest entry of a row to density + ε for the largest; a row is all
    entries with one first index (a vector is one row), equals are ranked by their index.

    Args:
        tensors: the sources θ_k; base: θ0.
        weight: w_k, one number or one per source; required.
        density: mean probability; 1 keeps all, 0 none.
        epsilon: ε; density - ε and density + ε must lie between 0 and 1.
        lambda_: λ (``lambda`` in a recipe).
        normalize: divide by Σ w_k.
        rescale: "l1" (true), "inverse_probability" (each entry by its own p) or false.
        draws: where the random numbers come from: seed, tensor name, offset.

    Raises:
        MethodError: density ± epsilon leave (0, 1).

    >>> import torch
    >>> della_linear([torch.tensor([2.0, 2.0])], base=torch.zeros(2), weight=1.0, density=1.0)
    tensor([2., 2.])
    """
    kept = _kept(tensors, base, density, epsilon, rescale, draws)
    return base + lambda_ * combine(kept, weight, None, normalize)


@merge_method(
    summary="drop random small changes, rescale, elect signs, average what agrees",
    paper={"rescale": "inverse_probability", "sign_vote": "paper"},
    departures=(_RESCALE, "the paper's sign vote is unweighted, mergekit's weighted (sign_vote)"),
    **_FACTS,
)
def della(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Annotated[PerSource[float], "weight of each task vector"],
    density: Annotated[PerSource[float], Range(0, 1), "mean share of entries kept per source"] = each(1.0),
    epsilon: Annotated[PerSource[float], Range(0, 1), "how far the probability varies with rank"] = each(0.15),
    lambda_: Annotated[float, "scale of the merged task vector"] = 1.0,
    normalize: Annotated[bool, "divide by the weights that took part"] = True,
    rescale: Annotated[bool | Literal["l1", "inverse_probability"], "restore each delta's size"] = True,
    sign_vote: Annotated[Literal["weighted", "paper"], "whether weights count in the sign vote"] = "weighted",
    draws: Draws,
) -> torch.Tensor:
    """DELLA: drop by rank, elect signs, fuse: θ = θ0 + λ Σ w_k m_k δ̂_k / Σ w_k m_k, δ̂ as in `della_linear`.

    Args:
        tensors: the sources θ_k; base: θ0.
        weight: w_k, one number or one per source; required.
        density: mean probability; 1 keeps all, 0 none.
        epsilon: ε; density - ε and density + ε must lie between 0 and 1.
        lambda_: λ (``lambda`` in a recipe).
        normalize: divide by the sum of the weights that took part, entry by entry.
        rescale: "l1" (true), "inverse_probability" (each entry by its own p) or false.
        sign_vote: "weighted" (mergekit) or "paper" (unweighted).
        draws: where the random numbers come from: seed, tensor name, offset.

    Raises:
        MethodError: density ± epsilon leave (0, 1).

    >>> import torch
    >>> della([torch.tensor([2.0, 2.0])], base=torch.zeros(2), weight=1.0, density=1.0)
    tensor([2., 2.])
    """
    kept = _kept(tensors, base, density, epsilon, rescale, draws)
    return base + lambda_ * combine(kept, weight, agree(kept, weight, sign_vote), normalize)


def _kept(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor,
    density: Sequence[float],
    epsilon: Sequence[float],
    rescale: bool | str,
    draws: Draws,
) -> list[torch.Tensor]:
    _check(density, epsilon)
    deltas = [tensor - base for tensor in tensors]
    kept = drop_by_rank(deltas, density, epsilon, draws, gains=rescale == "inverse_probability")
    return kept if rescale == "inverse_probability" else restore(kept, deltas, density, rescale)
