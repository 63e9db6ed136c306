"""Experts of a recipe: which they are, and the recipe without them, everywhere or in some tensors, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eutectic
from eutectic.errors import RecipeError
from eutectic.methods import BUILT_IN
from eutectic.recipes.experts import alone, experts_of, recipe_of, without, without_in

METHODS = [m.name for m in BUILT_IN.values() if m.needs is None and m.sources[1] is None]


def document(method: str, models: list[str], **top: Any) -> dict[str, Any]:
    known = BUILT_IN[method]
    parameters = {p.name: 0.4 for p in known.parameters.values() if p.required}
    base = {} if known.base == "unused" else {"base_model": "base"}
    return {"merge_method": method, "models": [{"model": m} for m in models], **base, "parameters": parameters, **top}


@pytest.fixture
def models(family: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """`base`, `a` and `b`, named from their folder."""
    monkeypatch.chdir(family["base"].parent)
    return family


def arrays(recipe: Any) -> dict[str, np.ndarray]:
    return {name: tensor.to_numpy() for name, tensor in eutectic.plan(recipe).items()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_in_some_tensors_it_is_the_other_merge_to_the_bit(models: Any, method: str, dtype: str | None) -> None:
    top = {} if dtype is None else {"dtype": dtype}
    recipe = recipe_of(document(method, ["a", "b"], **top))
    whole, gone = eutectic.plan(recipe), eutectic.plan(without(recipe, ["b"]))
    mixed = eutectic.plan(without_in(recipe, ["b"], ["layers.0.weight"]))
    assert [*mixed] == [*whole]
    for name, tensor in mixed.items():
        source = gone if name == "layers.0.weight" else whole
        assert bytes(tensor.read(0, tensor.numel)) == bytes(source[name].read(0, tensor.numel)), name
        assert tensor.dtype == source[name].dtype


def test_without_is_the_recipe_that_never_named_it(models: Any) -> None:
    recipe = recipe_of(document("linear", ["a", "b"]))
    assert without(recipe, ["b"]) == recipe_of(document("linear", ["a"]))
    assert without(recipe, []) == recipe
    found = arrays(without(recipe, ["a"]))
    assert np.array_equal(found["embed.weight"], eutectic.open("b")["embed.weight"].to_numpy())


def test_random_masks_of_the_others_stay(models: Any) -> None:
    """Under DARE the places of the sources key their masks: without the first, the second keeps its own."""
    recipe = recipe_of(document("dare_linear", ["a", "b"]) | {"parameters": {"weight": 1.0, "density": 0.5}})
    whole, first, second = (arrays(without(recipe, gone)) for gone in ([], ["b"], ["a"]))
    base = eutectic.open("base")["embed.weight"].to_numpy()
    name = "embed.weight"
    total = (first[name] - base) + (second[name] - base)
    assert np.allclose(whole[name] - base, total, atol=1e-5)


def test_what_the_method_cannot_merge_counts_alone(models: Any) -> None:
    stock = recipe_of(document("model_stock", ["a", "b"]))
    assert np.array_equal(arrays(without(stock, ["a"]))["embed.weight"], arrays(alone(stock, "b"))["embed.weight"])
    nothing = arrays(without(stock, ["a", "b"]))
    assert np.array_equal(nothing["embed.weight"], eutectic.open("base")["embed.weight"].to_numpy())
    with pytest.raises(RecipeError, match="nothing is left"):
        without(recipe_of(document("linear", ["a"])), ["a"])


def test_relative_paths_count_from_the_recipe(
    family: dict[str, Path], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_recipe("task_arithmetic", ["a", "b"], base="base", weight=0.5)
    recipe = recipe_of(path)
    for made in (without(recipe, ["a"]), without(recipe, ["a", "b"]), without_in(recipe, ["a"], ["embed.weight"])):
        assert "embed.weight" in eutectic.plan(made)
    eutectic.merge(path, tmp_path / "out")
    assert experts_of(recipe_of(tmp_path / "out" / "recipe.lock.json")).keys() == {"a", "b"}


def test_names(family: dict[str, Path]) -> None:
    inner = {"merge_method": "linear", "models": [{"model": "x"}], "parameters": {"weight": 1}}
    models = [{"model": "p/a"}, {"model": "q/a"}, {"model": "base"}, {"model": inner}, {"model": "pool#c"}]
    recipe = {"merge_method": "task_arithmetic", "base_model": "base", "models": models, "parameters": {"weight": 1}}
    assert list(experts_of(recipe_of(recipe))) == ["p/a", "q/a", "recipe 3", "c"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"merge_method": "passthrough", "slices": [{"sources": [{"model": "a", "layer_range": [0, 1]}]}]}, "slices"),
        (document("task_arithmetic", ["base"]), "at least 1 source"),
        (".", "a folder, not a recipe"),
    ],
)
def test_what_has_no_experts(source: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        experts_of(recipe_of(source))


def test_an_expert_that_is_none() -> None:
    with pytest.raises(RecipeError, match="no expert 'alpa'; did you mean 'alpha'"):
        without(recipe_of(document("linear", ["alpha", "beta"])), ["alpa"])
