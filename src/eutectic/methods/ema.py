"""Exponential moving average over the checkpoints of a run, oldest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from eutectic.methods.method import Range, Setting, merge_method
from eutectic.ops.program import Program
from eutectic.ops.weighted_sum import WeightedSum, sum_weighted

if TYPE_CHECKING:
    import torch

__all__ = ["ema"]


def _coefficients(decay: float, count: int) -> list[float]:
    """β^(n-1) for the oldest, (1 - β) β^(n-k) for the k-th after it; they sum to 1."""
    return [decay ** (count - 1), *((1 - decay) * decay ** (count - k) for k in range(2, count + 1))]


def _lower(setting: Setting) -> Program:
    return WeightedSum(_coefficients(setting.parameters["decay"], setting.sources))


@merge_method(
    summary="exponential moving average of a run's checkpoints",
    reference="Polyak and Juditsky, SIAM J. Control Optim. 30 (1992); Morales-Brotons et al., TMLR 2024 "
    "(arXiv 2411.18704)",
    symmetric=False,
    lower=_lower,
)
def ema(
    tensors: Sequence[torch.Tensor],
    *,
    decay: Annotated[float, Range(0, 1), "share of the average that each new checkpoint leaves"] = 0.5,
) -> torch.Tensor:
    """Moving average: a_1 = θ_1, a_k = β a_(k-1) + (1 - β) θ_k, θ = a_n; the sources are in order of time.

    Args:
        tensors: the checkpoints θ_1 ... θ_n, oldest first.
        decay: β, 0 (the last checkpoint alone) to 1 (the first alone).

    >>> import torch
    >>> ema([torch.tensor([0.0]), torch.tensor([4.0]), torch.tensor([8.0])], decay=0.5)
    tensor([5.])
    """
    return sum_weighted(tensors, _coefficients(decay, len(tensors)))
