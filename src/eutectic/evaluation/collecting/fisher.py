"""The diagonal of the Fisher information: how sharply the likelihood of the answers depends on each parameter.

    F_i = mean over samples x of E_y (d log p(y | x) / d theta_i)^2

y is the data's answer (the empirical Fisher), or every class by the probability that the model gives it.
Matena and Raffel 2022 (arXiv 2111.09832), equation 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eutectic.evaluation.collecting.parameters import add_power, parameter_shapes, with_gradients
from eutectic.evaluation.collecting.samples import Samples
from eutectic.evaluation.collecting.statistic import Statistic

if TYPE_CHECKING:
    import torch

__all__ = ["FISHER"]


def _collect(network: torch.nn.Module, names: Sequence[str], samples: Samples) -> dict[str, torch.Tensor]:
    with with_gradients(network, names) as (parameters, totals):
        for batch in samples.batches():
            for at in range(len(batch)):  # a square is taken of each sample's own gradient
                one = batch[at : at + 1]
                if samples.labels == "data":
                    outcomes, shares = samples.log_likelihood(network, one), [1.0]
                else:
                    outcomes = samples.log_probabilities(network, one)[0]
                    shares = outcomes.detach().double().exp().tolist()
                if not outcomes.requires_grad:  # none of these parameters takes part
                    continue
                for y, share in enumerate(shares):
                    outcomes[y].backward(retain_graph=y + 1 < len(shares))
                    for name, parameter in parameters.items():
                        add_power(totals[name], parameter.grad, 2, share / len(samples))
                        parameter.grad = None
    return totals


FISHER = Statistic("fisher", 12, parameter_shapes, _collect)
