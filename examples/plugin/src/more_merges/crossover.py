"""Uniform crossover: every entry comes from one source, drawn at random. The seed of evolutionary merging."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eutectic.methods import merge_method

if TYPE_CHECKING:
    import torch

    from eutectic.ops.random import Draws

__all__ = ["crossover"]


@merge_method(
    summary="every entry from one source, drawn at random",
    reference="Syswerda, Uniform crossover in genetic algorithms, ICGA 1989",
    sources=(2, None),
    stochastic=True,
    symmetric=False,  # draws are keyed by the source's position
)
def crossover(tensors: Sequence[torch.Tensor], *, draws: Draws) -> torch.Tensor:
    """θ_i = θ_ki with k uniform over the sources: source k displaces the ones before it with probability 1 / k.

    >>> import torch
    >>> crossover([torch.zeros(4), torch.zeros(4)])
    tensor([0., 0., 0., 0.])
    """
    import torch

    chosen = tensors[0]
    for k, tensor in enumerate(tensors[1:], start=2):
        chosen = torch.where(draws.keep(k - 1, tensor, 1 / k), tensor, chosen)
    return chosen
