"""Small image classifiers, as torch modules whose parameters have the names that are stored.

    eutectic-mlp    x -> [linear, layer norm, ReLU]* -> linear        layers.<i>, norms.<i>
    eutectic-cnn    x -> [3 x 3 convolution, group norm, ReLU, 2 x 2 maximum]* -> [linear, ReLU]* -> linear

Layer and group norms keep no running statistics, so that a merge needs no recalibration. `eutectic-digits-mlp` is the
perceptron without norms. Inputs are images, flat or not; uint8 pixels are divided by 255.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["convolutional_network", "perceptron"]

GROUPS = 4  # of the channels, in a group norm


def perceptron(config: Mapping[str, Any]) -> torch.nn.Module:
    """inputs [n, ...] -> logits [n, C]: `input_size`, `hidden_sizes`, `num_labels`, and `norm` "layer" or none."""
    from torch import nn
    from torch.nn.functional import relu

    class Perceptron(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = (config["input_size"], *config["hidden_sizes"], config["num_labels"])
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
            normed = config["hidden_sizes"] if config.get("norm") == "layer" else ()
            self.norms = nn.ModuleList(nn.LayerNorm(size) for size in normed)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            x = _pixels(inputs).flatten(1)
            for i, layer in enumerate(self.layers):
                x = layer(x)
                if i < len(self.layers) - 1:
                    x = relu(self.norms[i](x) if len(self.norms) else x)
            return x

    return Perceptron()


def convolutional_network(config: Mapping[str, Any]) -> torch.nn.Module:
    """inputs [n, side * side] or [n, side, side] -> logits [n, C]: `image_size`, `channels`, `hidden_sizes`."""
    from torch import nn
    from torch.nn.functional import max_pool2d, relu

    side, channels = config["image_size"], (1, *config["channels"])

    class ConvolutionalNetwork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(channels))
            self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, size) for size in channels[1:])
            left = side >> len(channels[1:])
            sizes = (channels[-1] * left * left, *config["hidden_sizes"], config["num_labels"])
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            x = _pixels(inputs).reshape(-1, 1, side, side)
            for conv, norm in zip(self.convs, self.norms, strict=True):
                x = max_pool2d(relu(norm(conv(x))), 2)
            x = x.flatten(1)
            for i, layer in enumerate(self.layers):
                x = layer(relu(x) if i else x)
            return x

    return ConvolutionalNetwork()


def _pixels(inputs: torch.Tensor) -> torch.Tensor:
    import torch

    return inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs
