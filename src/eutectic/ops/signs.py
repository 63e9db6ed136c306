"""Links that combine deltas: elect one sign per entry, then sum or average the entries that agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["agree", "combine"]


def agree(deltas: Sequence[torch.Tensor], weight: Sequence[float], sign_vote: str) -> list[torch.Tensor]:
    """Masks of the entries whose sign is the elected one; zeros agree with nothing.

    γ = + where Σ w_k δ_k >= 0, else - ("weighted"), or without the weights ("paper"); mask_k = [sign(w_k δ_k) = γ].
    """
    ballots = [d if sign_vote == "paper" else d * w for d, w in zip(deltas, weight, strict=True)]
    total = ballots[0]
    for ballot in ballots[1:]:
        total = total + ballot
    positive = total >= 0
    weighted = [d * w for d, w in zip(deltas, weight, strict=True)]
    return [(v > 0).where(positive, v < 0) for v in weighted]


def combine(
    deltas: Sequence[torch.Tensor],
    weight: Sequence[float],
    masks: Sequence[torch.Tensor] | None,
    normalize: bool,
) -> torch.Tensor:
    """Σ w_k m_k δ_k, divided by Σ w_k m_k (1 where that is 0) if `normalize`. No masks: all entries take part."""
    import torch

    total, share = torch.zeros_like(deltas[0]), torch.zeros_like(deltas[0])
    for k, (delta, w) in enumerate(zip(deltas, weight, strict=True)):
        part, taken = delta * w, torch.full_like(delta, w)
        if masks is not None:
            part, taken = part.where(masks[k], 0.0), taken.where(masks[k], 0.0)
        total, share = total + part, share + taken
    return total / share.where(share != 0, 1.0) if normalize else total
