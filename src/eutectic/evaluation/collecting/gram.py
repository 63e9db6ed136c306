"""The Gram matrix of a layer's inputs: G = X'X / rows, X [rows, in] all inputs that the samples send into the layer.

Jin et al. 2023, RegMean (arXiv 2212.09849): all that a linear layer's least squares need to know of the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from eutectic.evaluation.collecting.layers import linear_layers, watch_inputs, width_of
from eutectic.evaluation.collecting.samples import Samples
from eutectic.evaluation.collecting.statistic import Statistic

if TYPE_CHECKING:
    import torch

__all__ = ["GRAM"]


def _shapes(network: torch.nn.Module) -> Mapping[str, tuple[int, ...]]:
    return {name: (width_of(layer),) * 2 for name, layer in linear_layers(network).items()}


def _collect(network: torch.nn.Module, names: Sequence[str], samples: Samples) -> dict[str, torch.Tensor]:
    import torch

    shapes = _shapes(network)
    totals = {name: torch.zeros(shapes[name], dtype=torch.float64) for name in names}
    counts = dict.fromkeys(names, 0)

    def watch(name: str, rows: torch.Tensor) -> None:
        totals[name].addmm_(rows.T, rows)
        counts[name] += len(rows)

    watch_inputs(network, names, samples, watch)
    return {name: total / max(1, counts[name]) for name, total in totals.items()}


GRAM = Statistic("gram", 16, _shapes, _collect)
