"""A multi-layer perceptron trained the same way to the last bit each time: numpy in, numpy out, torch between."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from eutectic.weights.digest import hash_bytes

if TYPE_CHECKING:
    import torch

__all__ = ["initial_perceptron", "train_perceptron"]

MOMENTUM, BATCH = 0.9, 64


def initial_perceptron(sizes: Sequence[int], *, key: str) -> dict[str, np.ndarray]:
    """Untrained tensors ``layers.<i>.weight`` [out, in] and ``.bias`` [out], float32: He's initialisation, biases 0.

    Args:
        sizes: width of the input, of each hidden layer, of the output.
        key: names the random numbers; the same key gives the same tensors.

    >>> {name: tensor.shape for name, tensor in initial_perceptron([64, 10], key="0").items()}
    {'layers.0.weight': (10, 64), 'layers.0.bias': (10,)}
    """
    import torch

    tensors: dict[str, np.ndarray] = {}
    with _undisturbed_torch():
        generator = _generator(key)
        for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float32)
            tensors[f"layers.{layer}.weight"] = (weight * (2 / inputs) ** 0.5).numpy()
            tensors[f"layers.{layer}.bias"] = np.zeros(outputs, dtype=np.float32)
    return tensors


def train_perceptron(
    start: Mapping[str, np.ndarray], images: np.ndarray, labels: np.ndarray, *, steps: int, rate: float, key: str
) -> dict[str, np.ndarray]:
    """Minimise the cross-entropy by stochastic gradient descent with momentum: v <- 0.9 v + g, w <- w - rate v.

    Args:
        start: weight and bias of each layer in turn, as `initial_perceptron` returns them; left as they are.
        images: float32 [n, inputs]. labels: int64 [n].
        steps: number of steps, each on 64 images drawn with replacement.
        rate: learning rate.
        key: names the random numbers that draw the images.

    >>> images, labels = np.eye(4, dtype="float32"), np.array([0, 1, 0, 1])
    >>> start = initial_perceptron([4, 8, 2], key="start")
    >>> trained = train_perceptron(start, images, labels, steps=50, rate=0.1, key="order")
    >>> hidden = np.maximum(images @ trained["layers.0.weight"].T + trained["layers.0.bias"], 0)
    >>> (hidden @ trained["layers.1.weight"].T + trained["layers.1.bias"]).argmax(axis=1)
    array([0, 1, 0, 1])
    """
    import torch
    from torch.nn.functional import cross_entropy, linear, relu

    with _undisturbed_torch():
        x_all, y_all = torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels)
        generator = _generator(key)
        weights = [torch.tensor(array, requires_grad=True) for array in start.values()]
        velocity = [torch.zeros_like(weight) for weight in weights]
        for _ in range(steps):
            batch = torch.randint(len(y_all), (BATCH,), generator=generator)
            x = x_all[batch]
            for layer in range(0, len(weights), 2):
                x = linear(relu(x) if layer else x, weights[layer], weights[layer + 1])
            gradients = torch.autograd.grad(cross_entropy(x, y_all[batch]), weights)
            with torch.no_grad():
                for weight, v, gradient in zip(weights, velocity, gradients, strict=True):
                    weight -= rate * v.mul_(MOMENTUM).add_(gradient)
        return {name: weight.detach().numpy() for name, weight in zip(start, weights, strict=True)}


def _generator(key: str) -> torch.Generator:
    """Random numbers of their own for each key: no model depends on which were trained before it."""
    import torch

    return torch.Generator("cpu").manual_seed(int(hash_bytes(key.encode())[:8], 16))


@contextmanager
def _undisturbed_torch() -> Iterator[None]:
    """One thread, so that sums are taken in one order; the CPU; gradients on. The caller's settings come back."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
            yield
    finally:
        torch.set_num_threads(threads)
