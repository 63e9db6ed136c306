"""References: every way to name a model, and where names point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eutectic.errors import RecipeError
from eutectic.recipes.references import resolve, resolve_model
from eutectic.recipes.schema import load_recipe, walk
from eutectic.recipes.yaml_text import dump_yaml

small = {"merge_method": "linear", "models": [{"model": "a"}]}


def nested(depth: int) -> dict[str, Any]:
    recipe: dict[str, Any] = {"merge_method": "x", "models": [{"model": "./leaf"}]}
    for _ in range(depth):
        recipe = {"merge_method": "x", "models": [{"model": recipe}]}
    return recipe


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("./a", "./a"),
        ({"path": "org/name", "revision": "main"}, "org/name@main"),
        ({"model": "./a"}, "./a"),
        ({"model": {"path": "./a"}, "lora": None}, "./a"),
        ({"model": {"path": "./a"}, "lora": {"path": "./l"}}, "./a+./l"),
        ({"model": "./a", "lora": "./l", "override_architecture": None}, "./a+./l"),
    ],
)
def test_mergekits_mappings_are_text(written: Any, meant: str) -> None:
    assert load_recipe({"merge_method": "linear", "models": [{"model": written}]}).models[0].model == meant


@pytest.mark.parametrize(
    ("written", "place"),
    [
        ({"path": "./a", "revison": "x"}, "models[0].model.revison"),
        ({"model": "./a", "lore": "./l"}, "models[0].model.lore"),
        ({"model": "./a", "override_architecture": "Llama"}, "models[0].model.override_architecture"),
        (3, "models[0].model"),
    ],
)
def test_what_is_no_reference_is_refused_with_its_place(written: Any, place: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe({"merge_method": "linear", "models": [{"model": written}]})
    assert place in str(caught.value)


def test_a_plus_is_an_adapter_unless_the_name_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_model("a+b") == (Path("a"), Path("b"))
    assert resolve_model("a+b+c") == (Path("a+b"), Path("c"))
    assert resolve_model("a+") == (Path("a+"), None) and resolve_model("+a") == (Path("+a"), None)
    (tmp_path / "a+b").mkdir()
    assert resolve_model("a+b") == (Path("a+b"), None)


def test_paths_are_sought_here_first_and_then_beside_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here / "both", there / "both", there / "only"):
        folder.mkdir(parents=True)
    (there / "r.yaml").write_text(dump_yaml({"merge_method": "x", "models": [{"model": nested(1)}]}))
    monkeypatch.chdir(here)
    recipe = load_recipe("../there/r.yaml")
    assert recipe.folder is not None
    assert recipe.folder.samefile(there)
    assert all(inner.folder == recipe.folder for _, inner in walk(recipe))
    assert resolve("both", recipe) == Path("both")
    assert resolve("only", recipe).resolve() == there / "only"
    assert resolve("absent", recipe) == Path("absent")
    assert resolve("only", load_recipe(small)) == Path("only")
    assert resolve(str(there / "only"), recipe) == there / "only"
    assert resolve("x" * 5000, recipe) == Path("x" * 5000)
    assert resolve("~/m") == Path.home() / "m"
    assert resolve("~no-such-user-here/m", recipe) == Path("~no-such-user-here/m")
    elsewhere = load_recipe(recipe.canonical())
    assert elsewhere.folder is None
    assert elsewhere == recipe
