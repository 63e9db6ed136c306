"""Layers, found by the numbering of tensor names: no table of architectures.

The first number among the dotted parts of a name is the layer's; what stands before it is the stack:
``model.layers.3.mlp.experts.7.w1`` is layer 3 of the stack ``model.layers.``. A model has as many stacks as it has
towers. Where several stacks are left to choose from, config.json says which one counts as the model's depth.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

__all__ = ["LayerName", "depth_keys", "follows_layers", "layer_of", "main_stack", "position_of", "stacks_of"]

_NUMBERED = re.compile(r"((?:[^.]+\.)*?)(0|[1-9]\d*)((?:\..*)?)\Z", re.DOTALL)
_DEPTHS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "encoder_layers", "decoder_layers",
    "num_decoder_layers", "num_encoder_layers",
)  # fmt: skip
_AFTER = {
    "norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm", "norm_f", "score", "classifier", "embed_out",
    "output", "pooler", "proj_out", "post_layernorm", "predictions", "cls", "qa_outputs",
}  # fmt: skip


class LayerName(NamedTuple):
    """A tensor's place in a stack: `stack` with its last dot, the layer's number, and the rest of the name."""

    stack: str
    number: int
    rest: str


def layer_of(name: str) -> LayerName | None:
    """Stack, number and rest of a name; None where it has no number.

    >>> layer_of("model.layers.3.mlp.experts.7.w1")
    LayerName(stack='model.layers.', number=3, rest='.mlp.experts.7.w1')
    >>> layer_of("lm_head.weight") is None
    True
    """
    found = _NUMBERED.match(name)
    return LayerName(found[1], int(found[2]), found[3]) if found and len(found[2]) < 10 else None


def stacks_of(names: Iterable[str]) -> dict[str, int]:
    """Every stack with its number of layers.

    >>> stacks_of(["a.h.0.w", "a.h.1.w", "wte"])
    {'a.h.': 2}
    """
    found: dict[str, int] = {}
    for name in names:
        if layer := layer_of(name):
            found[layer.stack] = max(found.get(layer.stack, 0), layer.number + 1)
    return found


def depth_keys(config: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Where config.json states a number of layers, nested configurations included, and that number."""
    for name, value in config.items():
        if name in _DEPTHS and isinstance(value, int) and not isinstance(value, bool):
            yield (name,), value
        elif isinstance(value, dict) and name.endswith("config"):
            for path, depth in depth_keys(value):
                yield (name, *path), depth


def main_stack(names: Iterable[str], config: Mapping[str, Any]) -> str | None:
    """The stack whose layers a recipe's layer_range counts: the only one, or the only one that config.json counts.

    >>> main_stack(["vision.blocks.0.w", "text.h.0.w", "text.h.1.w"], {"n_layer": 2})
    'text.h.'
    """
    stacks = stacks_of(names)
    depths = {depth for path, depth in depth_keys(config) if len(path) == 1 or path[0] == "text_config"}
    likely = list(stacks) if len(stacks) == 1 else [stack for stack, count in stacks.items() if count in depths]
    return likely[0] if len(likely) == 1 else None


def position_of(index: int, count: int) -> float:
    """Where layer `index` of `count` lies between 0 and 1; 1 for the only one, as in mergekit."""
    return index / (count - 1) if count > 1 else 1.0


def follows_layers(name: str) -> bool:
    """Whether an unnumbered tensor belongs behind the layers: the final norm and the heads.

    >>> follows_layers("model.norm.weight"), follows_layers("lm_head.weight"), follows_layers("wte.weight")
    (True, True, False)
    """
    parts = name.split(".")
    return any(part in _AFTER or part.endswith("_head") for part in parts) and "embeddings" not in parts
