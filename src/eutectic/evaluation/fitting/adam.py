"""Adam on a few numbers, with a state that can be written down and taken up again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["Adam"]

FIRST, SECOND, TINY = 0.9, 0.999, 1e-8


class Adam:
    """Kingma and Ba 2015 (arXiv 1412.6980), algorithm 1: β1 0.9, β2 0.999, ε 1e-8, in the values' type.

    >>> import torch
    >>> adam = Adam(torch.zeros(2, dtype=torch.float64), 0.1)
    >>> adam.descend(torch.tensor([2.0, -3.0], dtype=torch.float64))
    >>> [round(value, 6) for value in adam.values.tolist()]
    [-0.1, 0.1]
    """

    def __init__(self, values: torch.Tensor, rate: float) -> None:
        self.values, self.rate, self.steps = values.clone(), rate, 0
        self.mean, self.square = values * 0, values * 0

    def descend(self, gradient: torch.Tensor) -> None:
        """One step: m <- β1 m + (1 - β1) g, v <- β2 v + (1 - β2) g², θ <- θ - α m̂ / (sqrt(v̂) + ε)."""
        self.steps += 1
        self.mean = FIRST * self.mean + (1 - FIRST) * gradient
        self.square = SECOND * self.square + (1 - SECOND) * gradient**2
        mean, square = self.mean / (1 - FIRST**self.steps), self.square / (1 - SECOND**self.steps)
        self.values = self.values - self.rate * mean / (square.sqrt() + TINY)

    def state(self) -> dict[str, Any]:
        """Plain data that `load` takes; floats survive JSON to the bit."""
        names = ("values", "mean", "square")
        return {"steps": self.steps, **{name: getattr(self, name).tolist() for name in names}}

    @classmethod
    def load(cls, state: Mapping[str, Any], rate: float) -> Adam:
        """Adam where it was."""
        import torch

        values, mean, square = (torch.tensor(state[name], dtype=torch.float64) for name in ("values", "mean", "square"))
        found = cls(values, rate)
        found.mean, found.square, found.steps = mean, square, int(state["steps"])
        return found
