"""A network's parameters by the checkpoint's names, and passes in which only some of them have gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["PIECE", "add_power", "parameter_shapes", "with_gradients"]

PIECE = 1 << 20  # entries that are widened or checked at once


def parameter_shapes(network: torch.nn.Module) -> Mapping[str, tuple[int, ...]]:
    """The shape of every parameter; one that several modules share has its first name."""
    return {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}


@contextmanager
def with_gradients(
    network: torch.nn.Module, names: Sequence[str]
) -> Iterator[tuple[Mapping[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """The parameters `names`, the only ones that gradients are taken of, and a float64 zero for each."""
    import torch

    chosen = {name: parameter for name, parameter in network.named_parameters() if name in set(names)}
    network.requires_grad_(False)
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    try:
        yield chosen, {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in chosen.items()}
    finally:
        for parameter in chosen.values():
            parameter.grad = None
        network.requires_grad_(False)


def add_power(total: torch.Tensor, gradient: torch.Tensor | None, power: int, factor: float) -> None:
    """total += factor gradient^power in float64, a piece at a time; a parameter without effect has no gradient."""
    if gradient is None:
        return
    pieces = zip(total.view(-1).split(PIECE), gradient.reshape(-1).split(PIECE), strict=True)
    for into, values in pieces:
        into.add_(values.double() ** power, alpha=factor)
