"""PCB-Merging: let parameters compete within their task and between tasks, and merge the winners by their scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from eutectic.methods.method import PerSource, Range, Setting, each, merge_method
from eutectic.ops.competition import EQUAL, LEAST, Competition, lowest_winner
from eutectic.ops.program import Program

if TYPE_CHECKING:
    import torch

__all__ = ["pcb"]

CLIPPED = {"main": 1e-4, "vision": 1e-2, "paper": 1e-2}  # share of entries clipped at either end


def _lower(setting: Setting) -> Program:
    p = setting.parameters
    return Competition(p["weight"], CLIPPED[p["variant"]], p["density"], p["variant"], p["lambda"])


def _work_bytes(setting: Setting) -> int:
    return (6 * setting.sources + 22) * 8 * math.prod(setting.shape)


def _ranked(values: torch.Tensor, at: int) -> torch.Tensor:
    """The entry that is `at` in rising order, counted from 0."""
    return values.kthvalue(at + 1).values


def _clip(delta: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """|δ| with so many of the smallest and of the largest entries set to the next one's value, and those values."""
    import torch

    size, cut = delta.abs(), int(share * delta.numel())
    low, high = _ranked(size, cut), _ranked(size, size.numel() - 1 - cut)
    size = torch.where(size < low, low, size)
    return torch.where(size > high, high, size), low, high


def _spread(values: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """(x - low) / (high - low); where the two are equal but for rounding, 1, or 0 if they are zero."""
    wide = high - low > EQUAL * high.abs()
    return ((values - low) / (high - low).where(wide, 1.0)).where(wide, (high != 0).to(values.dtype))


@merge_method(
    summary="parameters that win within their task and among tasks, averaged by score",
    reference="Du et al., Parameter Competition Balancing for Model Merging, NeurIPS 2024 (arXiv 2410.02396)",
    space="delta",
    scope="tensor",
    base="required",
    sparsifies=True,
    idempotent=False,
    paper={"scope": "model"},
    departures=(
        "the paper takes the model as one vector, the default here is each tensor by itself (scope)",
        "the authors publish three forms of the score between tasks (variant); the default is the paper's",
    ),
    lower=_lower,
    work_bytes=_work_bytes,
)
def pcb(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Annotated[PerSource[float], "weight of each task vector"] = each(1.0),
    density: Annotated[float, Range(0, 1), "share of the entries that win in each task"] = 0.1,
    lambda_: Annotated[float, "scale of the merged task vector"] = 1.0,
    variant: Annotated[Literal["paper", "main", "vision"], "which form of the score between tasks"] = "paper",
    scope: Annotated[Literal["tensor", "model"], "compete within each tensor, or over the whole vector"] = "tensor",
) -> torch.Tensor:
    """PCB: θ = θ0 + λ Σ w_k s_k δ̂_k / Σ s_k, with scores β_k = exp(N m(|δ̂_k|)²) · inter_k, s_k = m(max(β_k, c_k)).

    m is (x - min) / (max - min) over the tensor, or with `scope: model` over all of them as one vector. δ is taken in
    float32, all else in float64; δ̂ has its extremes clipped (1% at either end, 0.01% for `main`); c_k is the score
    that `density` of the entries exceed, so that all others count for nothing. inter_k, with n = sign(δ) m(|δ̂|):
    `paper` Σ_l tanh(n_k n_l), `vision` tanh(δ_k Σ_l n_l), `main` tanh(δ_k Σ_l δ_l).

    Where no source's score counts, the base is kept. A source without any change takes no part. Given plain tensors,
    each call is one tensor (or one flattened model).

    Args:
        tensors: the sources θ_k; base: θ0.
        weight: w_k, one number or one per source; scores do not depend on it.
        density: share of the entries that win, 0 to 1; at 0 the base is kept.
        lambda_: λ (``lambda`` in a recipe).
        variant: "paper", "main" or "vision".
        scope: "tensor" or "model" (paper).

    >>> import torch
    >>> a, b = torch.tensor([3.0, 1.0, 0.5, 0.0]), torch.tensor([2.0, -4.0, 0.5, 0.0])
    >>> pcb([a, b], base=torch.zeros(4), density=0.5)
    tensor([ 3., -4.,  0.,  0.])
    """
    import torch

    if not (base.numel() and density):
        return base + 0.0
    origin = base.double().reshape(-1)
    total, shares = torch.zeros_like(origin), torch.zeros_like(origin)
    deltas = [(tensor - base).double().reshape(-1) for tensor in tensors]
    sizes = [_clip(delta, CLIPPED[variant]) for delta in deltas]
    units = [delta.sign() * _spread(*size) for delta, size in zip(deltas, sizes, strict=True)]
    others = sum(deltas if variant == "main" else units)
    for delta, unit, (size, _, _), w in zip(deltas, units, sizes, weight, strict=True):
        if variant == "paper":
            inter = sum(torch.tanh(unit * other) for other in units)
        else:
            inter = torch.tanh(delta * others)
        score = torch.exp(len(deltas) * unit.abs() ** 2) * inter
        least = _ranked(score, lowest_winner(score.numel(), density))
        level = torch.where(score < least, least, score)
        share = _spread(level, least, _ranked(score, score.numel() - 1))
        total = total + w * share * delta.sign() * size
        shares = shares + share
    won = shares > LEAST
    return (origin + lambda_ * (total / shares.where(won, 1.0)).where(won, 0.0)).reshape(base.shape)
