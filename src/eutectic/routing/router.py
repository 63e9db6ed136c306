"""`Router`: which expert an input is for, by a small perceptron on the features of the shared expert.

    p(expert | x) = softmax(W_2 relu(W_1 (f(x) - μ) / σ + b_1) + b_2)

μ and σ are those of the features it was fitted on; every expert counts as much, however many samples it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from eutectic.errors import SourceError
from eutectic.weights.digest import hash_bytes
from eutectic.zoo.training import Schedule, arrays_of, generator, run_steps, undisturbed_torch

if TYPE_CHECKING:
    import torch

__all__ = ["DEFAULTS", "Router", "RouterSettings", "fit_router"]

NAMES = ("mean", "spread", "hidden.weight", "hidden.bias", "out.weight", "out.bias")
LEAST_SPREAD = 1e-6  # a feature that hardly varies says nothing


@dataclass(frozen=True)
class RouterSettings:
    """Width of the hidden layer; steps, rate and batch of AdamW; what names the random numbers."""

    hidden: int = 256
    steps: int = 300
    rate: float = 3e-3
    batch: int = 256
    seed: int = 0


DEFAULTS = RouterSettings()


@dataclass(frozen=True)
class Router:
    """A fitted router: `experts` in the order of its outputs, `tensors` by `NAMES`."""

    experts: tuple[str, ...]
    tensors: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        shapes = {name: self.tensors[name].shape if name in self.tensors else None for name in NAMES}
        hidden, width = shapes["hidden.weight"] or (0, 0)
        wanted = {
            "mean": (width,), "spread": (width,), "hidden.weight": (hidden, width), "hidden.bias": (hidden,),
            "out.weight": (len(self.experts), hidden), "out.bias": (len(self.experts),),
        }  # fmt: skip
        for name, shape in wanted.items():
            if shapes[name] != shape:
                raise SourceError(f"{name}: a router of {len(self.experts)} experts has {shape} there, "
                                  f"not {shapes[name]}")  # fmt: skip

    @property
    def digest(self) -> str:
        """Of everything that it is."""
        return hash_bytes(repr(self.experts).encode() + b"".join(self.tensors[name].tobytes() for name in NAMES))

    @property
    def width(self) -> int:
        """Of the features that it reads."""
        return len(self.tensors["mean"])

    def probabilities(self, features: torch.Tensor) -> torch.Tensor:
        """features [n, d] -> [n, T].

        Raises:
            SourceError: features of another width.
        """
        import torch

        if features.shape[-1] != self.width:
            raise SourceError(f"the router reads {self.width} features, the network has {features.shape[-1]}")
        mean, spread, w1, b1, w2, b2 = (torch.from_numpy(self.tensors[name]) for name in NAMES)
        hidden = torch.relu((features.float() - mean) / spread @ w1.T + b1)
        return torch.softmax(hidden @ w2.T + b2, dim=-1)

    def gates(self, features: torch.Tensor, *, soft: bool) -> torch.Tensor:
        """The mixing weights [n, T]: the probabilities, or 1 for the likeliest expert."""
        import torch

        found = self.probabilities(features)
        return found if soft else torch.nn.functional.one_hot(found.argmax(-1), len(self.experts)).float()


def fit_router(features: Mapping[str, np.ndarray], settings: RouterSettings = DEFAULTS) -> Router:
    """A router from features [n, d] of samples of each expert; the same bits for the same features and seed.

    >>> random = np.random.default_rng(0)
    >>> known = {"left": random.normal(-2, 1, (50, 3)), "right": random.normal(2, 1, (50, 3))}
    >>> router = fit_router(known, RouterSettings(hidden=16, steps=200))
    >>> import torch
    >>> router.gates(torch.tensor([[-2.0, -2, -2], [2.0, 2, 2]]), soft=False).tolist()
    [[1.0, 0.0], [0.0, 1.0]]

    Raises:
        SourceError: features that are not finite, or an expert without any.
    """
    import torch

    for name, found in features.items():
        if not len(found) or not np.isfinite(found).all():
            raise SourceError(f"expert {name}: {'no samples' if not len(found) else 'NaN or infinity in the features'}")
    parts = [np.asarray(found, dtype=np.float64) for found in features.values()]
    whole = np.concatenate(parts)
    mean, spread = whole.mean(0), np.maximum(whole.std(0), LEAST_SPREAD)
    labels = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    weights = torch.tensor([len(whole) / len(parts) / len(part) for part in parts], dtype=torch.float32)
    with undisturbed_torch():
        network = _network(whole.shape[1], settings, len(parts))
        data = [((whole - mean) / spread).astype(np.float32), labels]
        schedule = Schedule(settings.steps, settings.rate, settings.batch)
        run_steps(
            network, list(network.parameters()), data, schedule, key=f"{settings.seed} router",
            loss=lambda net, x, y: torch.nn.functional.cross_entropy(net(x), y, weight=weights),
        )  # fmt: skip
        tensors = arrays_of(network, dict.fromkeys(NAMES[2:]))
    return Router(tuple(features), {"mean": mean.astype(np.float32), "spread": spread.astype(np.float32), **tensors})


def _network(width: int, settings: RouterSettings, experts: int) -> torch.nn.Module:
    import torch
    from torch import nn

    network, random = nn.Sequential(), generator(f"{settings.seed} router initial")
    network.add_module("hidden", nn.Linear(width, settings.hidden))
    network.add_module("relu", nn.ReLU())
    network.add_module("out", nn.Linear(settings.hidden, experts))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=random) * (2 / parameter.shape[1]) ** 0.5)
            else:
                parameter.zero_()
    return network
