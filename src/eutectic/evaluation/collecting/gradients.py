"""The mean gradient of the loss: g = mean over samples of d (-log p(y | x)) / d theta, y the data's answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eutectic.evaluation.collecting.parameters import add_power, parameter_shapes, with_gradients
from eutectic.evaluation.collecting.samples import Samples
from eutectic.evaluation.collecting.statistic import Statistic

if TYPE_CHECKING:
    import torch

__all__ = ["GRADIENTS"]


def _collect(network: torch.nn.Module, names: Sequence[str], samples: Samples) -> dict[str, torch.Tensor]:
    with with_gradients(network, names) as (parameters, totals):
        for batch in samples.batches():
            loss = -samples.log_likelihood(network, batch).sum()
            if not loss.requires_grad:  # none of these parameters takes part
                continue
            loss.backward()
            for name, parameter in parameters.items():
                add_power(totals[name], parameter.grad, 1, 1 / len(samples))
                parameter.grad = None
    return totals


GRADIENTS = Statistic("gradients", 12, parameter_shapes, _collect)
