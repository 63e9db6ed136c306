"""Several recipes in one text: joined by name, run as one merge, nothing written in between."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from eutectic.errors import RecipeError
from eutectic.recipes.merge import merge
from eutectic.recipes.schema import Recipe, load_recipe

TWO = """\
name: half
merge_method: linear
models: [{model: a}, {model: b}]
parameters: {weight: 1}
---
merge_method: task_arithmetic
base_model: base
models:
  - {model: half, parameters: {weight: 2}}
dtype: float32
"""


def test_a_named_recipe_is_a_source_of_the_last(family: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(TWO)
    merge(tmp_path / "two.yaml", tmp_path / "out", fsync=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "base", "out", "two.yaml"]
    base, a, b, out = (load_file(tmp_path / n / "model.safetensors") for n in ("base", "a", "b", "out"))
    name = "layers.0.weight"
    np.testing.assert_allclose(out[name], base[name] + 2 * ((a[name] + b[name]) / 2 - base[name]), rtol=1e-5)


def test_the_order_of_documents_does_not_matter() -> None:
    first, second = TWO.split("---\n")
    assert load_recipe(f"{second}---\n{first}") == load_recipe(TWO)
    inner = load_recipe(TWO).models[0].model
    assert isinstance(inner, Recipe) and inner.name == "half"


def test_empty_documents_are_skipped() -> None:
    assert load_recipe(f"---\n{TWO}---\n") == load_recipe(TWO)


def test_places_are_those_of_the_text() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(TWO.replace("weight: 1", "weight: .nan"), name="r.yaml")
    assert caught.value.problems == ("r.yaml:4:14: 'weight' must be a finite number; found .nan",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (TWO.replace("half", "one", 1), "r.yaml:6:1: exactly one recipe must be left that no other uses"),
        (f"{TWO}---\nname: half\n", "r.yaml:12:7: another document is named 'half', too"),
        (f"{TWO}---\njust text\n", "r.yaml:12:1: every document must be a recipe"),
        ("name: a\nmodel: b\n---\nname: b\nmodel: a\n", "is made, by way of others, from itself"),
    ],
)
def test_what_cannot_be_joined_is_refused(text: str, problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(text, name="r.yaml")
    assert any(problem in line for line in caught.value.problems), caught.value.problems


def test_a_recipe_may_name_a_folder_of_its_own_name() -> None:
    recipe = load_recipe("name: a\nmerge_method: linear\nmodels: [{model: a}]\n---\n")
    assert recipe.models[0].model == "a"
