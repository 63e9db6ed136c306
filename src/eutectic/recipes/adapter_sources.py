"""Adapters as the sources of a recipe: found out, kept apart from models, and what each of them lacks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eutectic.errors import RecipeError, SourceError
from eutectic.recipes.adapter_form import AdapterForm
from eutectic.recipes.references import RECIPE_SUFFIXES, resolve_model
from eutectic.recipes.schema import Recipe, load_recipe, references
from eutectic.weights.adapter_delta import Changes, ZeroTensor
from eutectic.weights.checkpoint import Checkpoint
from eutectic.weights.files import RemotePath
from eutectic.weights.lora import is_lone_adapter
from eutectic.weights.tensor_ref import TensorRef

__all__ = ["absent_from", "are_adapters", "check_adapters", "check_words", "lacks_base"]

Leaves = Mapping[int, tuple[str, Checkpoint]]
"""The label and the checkpoint of every leaf, by its index."""


def are_adapters(recipe: Recipe) -> bool:
    """Whether a recipe says that its sources are adapters, or names nothing but folders here that hold one."""
    return recipe.adapter is not None or all(_is_adapter(reference, recipe) for _, reference in references(recipe))


def lacks_base(recipe: Recipe, method: str) -> str:
    """The fault of a recipe that has no base_model, is not known to be of adapters, and needs one of the two."""
    named = [resolve_model(reference, recipe) for _, reference in references(recipe) if isinstance(reference, str)]
    remote = any(isinstance(path, RemotePath) and adapter is None for path, adapter in named)
    hint = "; if these are adapters, which are merged without one, say so with 'adapter: {}'" if remote else ""
    return f"{method} needs a base_model{hint}"


def _is_adapter(reference: Any, recipe: Recipe) -> bool:
    inner = _recipe_of(reference, recipe)
    if inner is not None:
        return are_adapters(inner)
    path, adapter = resolve_model(reference, recipe)
    return adapter is None and not isinstance(path, RemotePath) and is_lone_adapter(path)  # no server is asked


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
        value = getattr(recipe, key)
        if value is not None and value != AdapterForm.model_validate({}):
            raise RecipeError(f"{key}: one adapter comes of a recipe and those inside it; say it in the outermost")
    for _, reference in references(recipe):
        found = _recipe_of(reference, recipe)
        if found is not None:
            check_words(found, of_adapters=True, inner=True)


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
