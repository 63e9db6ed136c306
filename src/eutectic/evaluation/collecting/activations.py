"""Moments of a layer's inputs: row 0 their mean, row 1 the mean of their squares, [2, in]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from eutectic.evaluation.collecting.layers import linear_layers, watch_inputs, width_of
from eutectic.evaluation.collecting.samples import Samples
from eutectic.evaluation.collecting.statistic import Statistic

if TYPE_CHECKING:
    import torch

__all__ = ["ACTIVATIONS"]


def _shapes(network: torch.nn.Module) -> Mapping[str, tuple[int, ...]]:
    return {name: (2, width_of(layer)) for name, layer in linear_layers(network).items()}


def _collect(network: torch.nn.Module, names: Sequence[str], samples: Samples) -> dict[str, torch.Tensor]:
    import torch

    shapes = _shapes(network)
    totals = {name: torch.zeros(shapes[name], dtype=torch.float64) for name in names}
    counts = dict.fromkeys(names, 0)

    def watch(name: str, rows: torch.Tensor) -> None:
        totals[name] += torch.stack([rows.sum(0), (rows * rows).sum(0)])
        counts[name] += len(rows)

    watch_inputs(network, names, samples, watch)
    return {name: total / max(1, counts[name]) for name, total in totals.items()}


ACTIVATIONS = Statistic("activations", 16, _shapes, _collect)
