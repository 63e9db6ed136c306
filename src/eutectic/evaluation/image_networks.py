"""Small image classifiers, as torch modules whose parameters have the names that are stored.

    eutectic-mlp    x -> [linear, layer norm, ReLU]* -> linear        layers.<i>, norms.<i>
    eutectic-cnn    x -> [3 x 3 convolution, group norm, ReLU, 2 x 2 maximum]* -> [linear, ReLU]* -> linear

Layer and group norms keep no running statistics, so that a merge needs no recalibration. `eutectic-digits-mlp` is the
perceptron without norms.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional

__all__ = ["ConvolutionalNetwork", "Perceptron"]

GROUPS = 4  # of the channels, in a group norm


class Perceptron(nn.Module):
    """inputs [n, ...] -> logits [n, C]; an image is flattened first, and uint8 pixels are divided by 255."""

    def __init__(self, config: Mapping[str, Any]) -> None:
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
                x = functional.relu(self.norms[i](x) if len(self.norms) else x)
        return x


class ConvolutionalNetwork(nn.Module):
    """inputs [n, side * side] or [n, side, side] -> logits [n, C]; uint8 pixels are divided by 255."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.side = config["image_size"]
        channels = (1, *config["channels"])
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(channels))
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, size) for size in config["channels"])
        left = self.side >> len(config["channels"])
        sizes = (channels[-1] * left * left, *config["hidden_sizes"], config["num_labels"])
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        x = _pixels(inputs).reshape(-1, 1, self.side, self.side)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = functional.max_pool2d(functional.relu(norm(conv(x))), 2)
        x = x.flatten(1)
        for i, layer in enumerate(self.layers):
            x = layer(functional.relu(x) if i else x)
        return x


def _pixels(inputs: torch.Tensor) -> torch.Tensor:
    return inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs
