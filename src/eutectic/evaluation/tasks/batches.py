"""Samples cut into batches, and a network asked batch by batch, without gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from eutectic.errors import NonFiniteError

if TYPE_CHECKING:
    import torch

    from eutectic.evaluation.model import Model

__all__ = ["ask", "batches", "by_length"]

ELEMENTS = 1 << 16  # of the inputs of a batch: a few megabytes of activations in a small model


def batches(rows: np.ndarray, width: int) -> Iterator[np.ndarray]:
    """The rows in order, as many at a time as `ELEMENTS` inputs of `width` hold.

    >>> [len(part) for part in batches(np.arange(100), 1 << 11)]
    [32, 32, 32, 4]
    """
    size = max(1, ELEMENTS // max(1, width))
    yield from (rows[at : at + size] for at in range(0, len(rows), size))


def by_length(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Positions of equal lengths together, short ones first: no padding changes what a model sees.

    >>> [part.tolist() for part in by_length(np.array([5, 3, 5]))]
    [[1], [0, 2]]
    """
    for length in np.unique(lengths):
        yield np.flatnonzero(lengths == length)


def ask(model: Model, answer: Callable[[torch.nn.Module], torch.Tensor]) -> torch.Tensor:
    """What a model answers, without gradients; of an ensemble's logits the logarithm of the mean probability.

    Raises:
        NonFiniteError: NaN or infinity, which an argmax would take for an answer.
    """
    import torch

    with torch.inference_mode():
        found = [answer(network) for network in model.networks]
        if not all(bool(torch.isfinite(logits).all()) for logits in found):
            raise NonFiniteError(f"{model.label}: the network answers with NaN or infinity; look at its weights")
        if len(found) == 1:
            return found[0]
        logs = torch.stack([torch.log_softmax(logits.float(), dim=-1) for logits in found])
        return torch.logsumexp(logs, dim=0) - math.log(len(found))
