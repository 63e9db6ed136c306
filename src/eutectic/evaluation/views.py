"""Accuracy of an image classifier (a multi-layer perceptron) on several views of the same images."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from eutectic.errors import NonFiniteError, SourceError
from eutectic.evaluation.scores import Scores, scored

__all__ = ["View", "ViewScores", "measure_views"]

View = Callable[[np.ndarray], np.ndarray]  # images [n, pixels] -> the same images seen otherwise [n, pixels]

_NUMBERED = re.compile(r"(.*?)(\d+)\.(weight|bias)")


@dataclass(frozen=True)
class ViewScores:
    """A score for each view, and their mean.

    Every view shows the same images, so the views' errors are correlated and their standard errors do not
    simply add up: the mean's is taken over the images, each image counting with its mean over the views.
    """

    views: Mapping[str, Scores]
    mean: Scores


def measure_views(
    checkpoint: Mapping[str, Any], images: np.ndarray, labels: np.ndarray, views: Mapping[str, View]
) -> ViewScores:
    """Accuracy of a checkpoint on each view of the images, and the mean over views, with standard errors.

    The network is read off the names: ``<prefix><number>.weight`` [out, in] and ``.bias`` [out] are linear
    layers in the order of their numbers, with a ReLU between them. Arithmetic is float32, in numpy. The
    standard error is the sample standard deviation over images, divided by sqrt(n).

    Args:
        checkpoint: tensor names to tensors: a `Checkpoint` (or anything with `to_numpy`), numpy or torch.
        images: [n, pixels], n >= 2.
        labels: [n], each the index of the right class.
        views: functions from images to images of the same shape, by name; at least one.

    Raises:
        SourceError: the tensors are not a chain of linear layers, or do not fit the images or labels.
        NonFiniteError: the network answers with NaN or infinity.

    >>> identity = {"layers.0.weight": np.eye(2), "layers.0.bias": np.zeros(2)}
    >>> images, labels = np.array([[1, 0], [0, 1], [1, 0]]), np.array([0, 1, 1])
    >>> scores = measure_views(identity, images, labels, {"plain": lambda x: x, "swapped": lambda x: x[:, ::-1]})
    >>> {name: round(score.value, 3) for name, score in scores.views.items()}
    {'plain': 0.667, 'swapped': 0.333}
    >>> scores.mean.value, scores.mean.stderr
    (0.5, 0.0)
    """
    layers = _read_layers(checkpoint)
    images, labels = np.asarray(images), np.asarray(labels)
    _check_data(layers, images, labels, views)
    correct, scores = [], {}
    for name, view in views.items():
        started = time.perf_counter()
        hits = (_classify(layers, view(images)) == labels).astype(np.float64)
        scores[name] = scored(hits, time.perf_counter() - started)
        correct.append(hits)
    seconds = sum(score.seconds for score in scores.values())
    return ViewScores(scores, scored(np.mean(correct, axis=0), seconds))


def _classify(layers: list[tuple[str, np.ndarray, np.ndarray]], images: np.ndarray) -> np.ndarray:
    """The class with the highest logit for each image: [n, pixels] -> [n]."""
    x = np.ascontiguousarray(images, dtype=np.float32)
    for position, (_, weight, bias) in enumerate(layers):
        x = x @ weight.T + bias
        if position < len(layers) - 1:
            x = np.maximum(x, 0, out=x)
    if not np.isfinite(x).all():  # argmax would call NaN the winner and return a number that means nothing
        raise NonFiniteError(f"{layers[-1][0]}: the network answers with NaN or infinity; look at its weights")
    return x.argmax(axis=1)


def _read_layers(checkpoint: Mapping[str, Any]) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(name, weight, bias) of each linear layer, in the order of the numbers in their names."""
    parts: dict[int, dict[str, str]] = {}
    prefixes = set()
    for name in checkpoint:
        match = _NUMBERED.fullmatch(name)
        if match is None:
            raise SourceError(f"{name!r} is not <prefix><number>.weight or .bias: not a perceptron's tensor")
        prefixes.add(match[1])
        parts.setdefault(int(match[2]), {})[match[3]] = name
    if len(prefixes) != 1:
        raise SourceError(f"a perceptron's tensors share one prefix, found {sorted(prefixes)}")
    layers: list[tuple[str, np.ndarray, np.ndarray]] = []
    for number, names in sorted(parts.items()):
        label = f"{next(iter(prefixes))}{number}"
        for part in ("weight", "bias"):
            if part not in names:
                raise SourceError(f"{label}.{part} is missing")
        weight, bias = _array(checkpoint[names["weight"]]), _array(checkpoint[names["bias"]])
        if weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise SourceError(f"{label}: weight {list(weight.shape)} and bias {list(bias.shape)} do not match")
        if layers and layers[-1][1].shape[0] != weight.shape[1]:
            before, width = layers[-1][0], layers[-1][1].shape[0]
            raise SourceError(f"{label}.weight takes {weight.shape[1]} inputs, {before} gives {width}")
        layers.append((label, weight, bias))
    return layers


def _array(tensor: Any) -> np.ndarray:
    if hasattr(tensor, "to_numpy"):
        tensor = tensor.to_numpy()
    elif hasattr(tensor, "detach"):  # torch, asked without importing it; numpy has no bfloat16, hence float()
        tensor = tensor.detach().cpu().float().numpy()
    return np.asarray(tensor, dtype=np.float32)


def _check_data(
    layers: list[tuple[str, np.ndarray, np.ndarray]],
    images: np.ndarray,
    labels: np.ndarray,
    views: Mapping[str, View],
) -> None:
    pixels, classes = layers[0][1].shape[1], layers[-1][1].shape[0]
    if images.ndim != 2 or images.shape[1] != pixels:
        raise SourceError(f"images {list(images.shape)} do not fit: {layers[0][0]}.weight takes [n, {pixels}]")
    if labels.shape != images.shape[:1] or len(labels) < 2:
        raise SourceError(f"labels {list(labels.shape)} do not fit {len(images)} images (at least 2 are needed)")
    if labels.min() < 0 or labels.max() >= classes:
        raise SourceError(f"labels reach from {labels.min()} to {labels.max()}, the network has {classes} classes")
    if not views:
        raise SourceError("no view to measure")
