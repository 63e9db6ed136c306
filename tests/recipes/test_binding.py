"""Binding: the result's names, the tensors that each is made of, one merge for equal parameters, unused filters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eutectic.errors import RecipeError
from eutectic.recipes.binding import Binding, Renumbered
from eutectic.recipes.schema import load_recipe
from eutectic.recipes.tree import build_tree

WEIGHTED = {"merge_method": "linear", "parameters": {"weight": 1}}


@pytest.fixture
def bind(make_model: Callable[..., Path]) -> Callable[..., Binding]:
    """``bind(**recipe)`` over the models ``a`` (3 layers) and ``b`` (4); values name them as ``{a}`` and ``{b}``."""
    names = {n: ["embed.w", *(f"h.{i}.w" for i in range(depth)), "norm.w"] for n, depth in (("a", 3), ("b", 4))}
    paths = {
        model: str(make_model(model, {n: np.full(2, i, "f4") for i, n in enumerate(names[model])}, {}))
        for model in names
    }

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(item) for key, item in value.items()}
        return [filled(item) for item in value] if isinstance(value, list) else paths.get(str(value), value)

    return lambda **recipe: Binding(build_tree(load_recipe(filled(WEIGHTED | recipe)), seed=None))


def refs(binding: Binding, name: str) -> list[str | None]:
    bound = binding.bound(name)
    assert bound is not None
    return [None if ref is None else ref.name for ref in bound.needed]


def test_whole_models_bind_by_name_and_tell_what_is_absent(bind: Callable[..., Binding]) -> None:
    binding = bind(models=[{"model": "a"}, {"model": "b"}])
    assert binding.names == ("embed.w", "h.0.w", "h.1.w", "h.2.w", "norm.w", "h.3.w")
    assert refs(binding, "h.1.w") == ["h.1.w", "h.1.w"] and refs(binding, "h.3.w") == [None, "h.3.w"]


def test_slices_renumber_and_keep_the_edges(bind: Callable[..., Binding]) -> None:
    parts = [("a", [0, 2]), ("b", [1, 4])]
    binding = bind(slices=[{"sources": [{"model": m, "layer_range": r}]} for m, r in parts])
    assert binding.names == ("embed.w", *(f"h.{i}.w" for i in range(5)), "norm.w")
    assert [refs(binding, f"h.{i}.w")[0] for i in range(5)] == ["h.0.w", "h.1.w", "h.1.w", "h.2.w", "h.3.w"]
    assert binding.renumbered == [Renumbered("h.", 3, (0, 1, 1, 2, 3))]
    assert binding.bound("h.5.w") is None


def test_equal_merges_are_one_object(bind: Callable[..., Binding]) -> None:
    weight = [{"filter": "h.0", "value": 1}, {"value": 2}]
    binding = bind(models=[{"model": "a"}, {"model": "a"}], parameters={"weight": weight})
    first, second, third = (binding.bound(name) for name in ("h.0.w", "h.1.w", "h.2.w"))
    assert first and second and third
    assert second.merge is third.merge and first.merge is not second.merge
    binding.check_filters()


def test_numbers_and_truth_values_are_not_one_merge(bind: Callable[..., Binding]) -> None:
    binding = bind(models=[{"model": "a"}, {"model": "a"}], parameters={"weight": [1, 2, 1]})
    merges = [binding.bound(f"h.{i}.w") for i in range(3)]
    assert merges[0] and merges[1] and merges[2]
    assert merges[0].merge is merges[2].merge is not merges[1].merge


def test_a_filter_that_takes_nothing_is_refused(bind: Callable[..., Binding]) -> None:
    weight = [{"filter": "h.9", "value": 1}, {"value": 2}]
    binding = bind(models=[{"model": "a"}, {"model": "a"}], parameters={"weight": weight})
    for name in binding.names:
        binding.bound(name)
    with pytest.raises(RecipeError, match=r"weight: filter 'h\.9'"):
        binding.check_filters()


def test_a_range_beyond_the_model_is_refused(bind: Callable[..., Binding]) -> None:
    binding = bind(slices=[{"sources": [{"model": "a", "layer_range": [1, 4]}]}])
    with pytest.raises(RecipeError, match=r"layer_range \[1, 4\] goes beyond .* are \[0, 3\]"):
        _ = binding.names
