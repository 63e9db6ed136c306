"""config.json of the result: the type of its weights and the number of its layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from eutectic.errors import SourceError
from eutectic.recipes.binding import Renumbered
from eutectic.weights.layers import depth_keys

__all__ = ["edited"]

# Words of a stack's name that decide between keys which state the same depth, as in encoder_layers, decoder_layers.
_WORDS = ("encoder", "decoder", "vision", "audio")


def edited(config: Mapping[str, Any], dtype: str | None, renumbered: Sequence[Renumbered]) -> dict[str, Any]:
    """The configuration with the result's dtype and layers; equal to `config` where nothing changed.

    A list with one entry per layer, and a list of layer numbers, follow the layers of the reference model.

    >>> edited({"n_layer": 2, "layer_types": ["a", "b"]}, None, [Renumbered("h.", 2, (1, 0, 1))])
    {'n_layer': 3, 'layer_types': ['b', 'a', 'b']}

    Raises:
        SourceError: no key states the number of layers that the weights have.
    """
    found = copy.deepcopy(dict(config))
    if dtype is not None and not _retyped(found, dtype) and "_class_name" not in found:  # diffusers states no type
        found["dtype"] = dtype
    for stack in renumbered:
        if stack.layers != tuple(range(stack.depth)):
            _renumber(found, stack)
    return found


def _retyped(config: dict[str, Any], dtype: str) -> bool:
    """Write the type where one is stated, in the configurations of towers too; whether one stood at the top."""
    for key, value in config.items():
        if isinstance(value, dict) and key.endswith("_config") and key != "quantization_config":
            _retyped(value, dtype)
    stated = [key for key in ("dtype", "torch_dtype") if key in config]
    config.update(dict.fromkeys(stated, dtype))
    return bool(stated)


def _renumber(config: dict[str, Any], stack: Renumbered) -> None:
    paths = [path for path, depth in depth_keys(config) if depth == stack.depth]
    words = [word for word in _WORDS if word in stack.stack]
    named = [path for path in paths if any(word in "".join(path) for word in words)]
    plain = [path for path in paths if not any(word in "".join(path) for word in _WORDS)]
    chosen = (named or plain or paths)[:1]
    if not chosen:
        raise SourceError(
            f"config.json of the reference model states nowhere that {stack.stack}* has {stack.depth} layers, so it "
            f"cannot say that the result has {len(stack.layers)}; mend that file first"
        )
    owner = config
    for key in chosen[0][:-1]:
        owner = owner[key]
    for key, value in list(owner.items()):
        if key == chosen[0][-1] or (key == "max_window_layers" and value == stack.depth):
            owner[key] = len(stack.layers)
        elif isinstance(value, list) and "layer" in key and len(value) == stack.depth:
            owner[key] = [value[number] for number in stack.layers]
        elif (
            isinstance(value, list) and key.endswith(("_layers", "_idxs", "_indices")) and _numbers(value, stack.depth)
        ):
            owner[key] = [new for new, number in enumerate(stack.layers) if number in value]


def _numbers(value: list[Any], depth: int) -> bool:
    return all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < depth for item in value)
