"""`Statistic`: one kind of statistics, as the collector runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from eutectic.evaluation.collecting.samples import Samples

__all__ = ["Statistic"]

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Statistic:
    """What a kind consists of, and how some of its tensors are found in one pass over the data.

    `shapes` names the tensors of a network, `entry_bytes` says what an entry takes while it is collected, and
    `collect` sums over the samples (in float64) for a few of the names.
    """

    name: str
    entry_bytes: int
    shapes: Callable[[torch.nn.Module], Shapes]
    collect: Callable[[torch.nn.Module, Sequence[str], Samples], dict[str, torch.Tensor]]
