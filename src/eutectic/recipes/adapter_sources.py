"""Adapters as the sources of a recipe: found out, checked against one another, and what each of them lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eutectic.errors import RecipeError, SourceError
from eutectic.recipes.references import RECIPE_SUFFIXES, resolve_model
from eutectic.recipes.schema import Recipe, load_recipe, references
from eutectic.weights.adapter_delta import Changes, ZeroTensor
from eutectic.weights.checkpoint import Checkpoint
from eutectic.weights.lora import is_lone_adapter
from eutectic.weights.tensor_ref import TensorRef

__all__ = ["absent_from", "are_adapters", "base_of", "check_adapters", "check_alike", "check_words"]

Leaves = Mapping[int, tuple[str, Checkpoint]]
"""The label and the checkpoint of every leaf, by its index."""


def are_adapters(recipe: Recipe) -> bool:
    """Whether every model that a recipe names is an adapter; asks of each only until one is not."""
    return all(_is_adapter(reference, recipe) for _, reference in references(recipe))


def _is_adapter(reference: Any, recipe: Recipe) -> bool:
    inner = _recipe_of(reference, recipe)
    if inner is not None:
        return are_adapters(inner)
    path, adapter = resolve_model(reference, recipe)
    return adapter is None and is_lone_adapter(path)


def _recipe_of(reference: Any, recipe: Recipe) -> Recipe | None:
    """The recipe that a reference is or leads to."""
    if isinstance(reference, Recipe):
        return reference
    path, _ = resolve_model(reference, recipe)
    return load_recipe(path) if isinstance(path, Path) and path.suffix in RECIPE_SUFFIXES and path.is_file() else None


def check_adapters(leaves: Leaves) -> bool:
    """Whether the leaves are adapters; refuses some among models."""
    adapters = [checkpoint for _, checkpoint in leaves.values() if isinstance(checkpoint, Changes)]
    models = [checkpoint for _, checkpoint in leaves.values() if checkpoint and not isinstance(checkpoint, Changes)]
    if adapters and models:
        path = adapters[0].path
        raise SourceError(
            f"{path} is an adapter, not a model: its factors mean nothing apart, and averaging them is not averaging "
            f"what they add. Write the model in front of it: ./model+{path}"
        )
    return bool(adapters)


def check_words(recipe: Recipe, *, of_adapters: bool, inner: bool = False) -> None:
    """Refuse keys of a recipe that mean nothing for adapters, and `adapter` where there are none."""
    if not of_adapters:
        if recipe.adapter is not None:
            raise RecipeError(
                "adapter: says how merged adapters are written, and the sources are models, of which a model comes; "
                "remove the key, or name adapter folders alone"
            )
        return
    for key in ("slices", "modules", "tokenizer_source", "tokenizer", "chat_template"):
        if getattr(recipe, key):
            raise RecipeError(f"{key}: adapters are merged whole and have no tokens of their own; remove the key")
    for key in ("adapter", "dtype", "out_dtype") if inner else ():
        if getattr(recipe, key) is not None:
            raise RecipeError(f"{key}: one adapter comes of a recipe and those inside it; say it in the outermost")
    for _, reference in references(recipe):
        found = _recipe_of(reference, recipe)
        if found is not None:
            check_words(found, of_adapters=True, inner=True)


def check_alike(adapters: Sequence[tuple[str, Changes]], *, allow_mismatch: bool) -> None:
    """Refuse adapters that cannot be of one base, by what their configurations say.

    Raises:
        SourceError: other bases, other layouts of the weights, or tensors saved whole by some of them only.
    """
    (first, origin), *others = adapters
    for label, changes in others:
        for module, pair in changes.adapter.pairs.items():
            known = origin.adapter.pairs.get(module, pair)
            if (known.turned, known.embeds) != (pair.turned, pair.embeds):
                raise SourceError(
                    f"{label}: fan_in_fan_out differs from that of {first} ({module}): one of the two takes the "
                    "weight as transposed; correct its adapter_config.json"
                )
        here, there = base_of(changes), base_of(origin)
        if here and there and here != there and not allow_mismatch:
            raise SourceError(
                f"{label} is an adapter of {here}, {first} of {there} (base_model_name_or_path): a change of one model "
                "means nothing in another. If they are one model under two names, accept it with --allow-mismatch."
            )
    whole = {name: label for label, changes in adapters for name in changes.trained}
    for name, holder in whole.items():
        lacking = [label for label, changes in adapters if name not in changes]
        if lacking and not allow_mismatch:
            raise SourceError(
                f"{lacking[0]}: has no {name}, which {holder} saved whole (modules_to_save, biases), and the base's is "
                "not here. Write the model in front of both, as ./base+./adapter; or take it as it is with "
                "--allow-mismatch."
            )


def base_of(changes: Changes) -> str:
    """The name of the model that an adapter was trained on, or an empty text."""
    name = changes.adapter.config.get("base_model_name_or_path")
    return name.rstrip("/") if isinstance(name, str) else ""


def absent_from(leaves: Leaves) -> dict[int, dict[str, TensorRef]]:
    """Zeros for every change that a leaf lacks. The base of all (no tensors) also has them for what all saved whole."""
    adapters = [checkpoint for _, checkpoint in leaves.values() if isinstance(checkpoint, Changes)]
    shapes = {name: ref.shape for changes in adapters for name, ref in changes.items()}
    everywhere = {name for name in shapes if all(name in changes for changes in adapters)}
    whole = {name for changes in adapters for name in changes.trained}
    found: dict[int, dict[str, TensorRef]] = {}
    for index, (_, checkpoint) in leaves.items():
        needs = set(shapes) - whole | (set() if checkpoint else everywhere)
        found[index] = {
            name: ZeroTensor(name, shape) for name, shape in shapes.items() if name in needs and name not in checkpoint
        }
    return found
