"""`eutectic new recipe` and `eutectic schema`: what they write is read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from eutectic.methods import BUILT_IN
from eutectic.recipes.schema import load_recipe
from eutectic.recipes.starter import starter
from eutectic.recipes.tree import check_parameters


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_method_has_a_recipe_that_passes(name: str) -> None:
    text = starter(BUILT_IN[name])
    recipe = load_recipe(text, check=check_parameters)
    assert recipe.merge_method == name
    assert all(f"{parameter}: " in text for parameter in BUILT_IN[name].parameters)


@pytest.mark.parametrize("name", BUILT_IN)
def test_comments_become_options(name: str) -> None:
    """With every commented line made real the recipe still passes: names and defaults are the method's."""
    text = starter(BUILT_IN[name], dtype="float32").replace("# parameters:", "parameters:")
    lines = [line.replace("#   ", "  ", 1) if line.lstrip().startswith("#   ") else line for line in text.splitlines()]
    lines = [
        line.replace("  # ", "  ", 1) if line.lstrip().startswith("# ") and ":" in line else line for line in lines
    ]
    load_recipe("\n".join(lines), check=check_parameters)


def test_a_recipe_is_written_once(cli: Callable[..., Result], tmp_path: Path) -> None:
    out = tmp_path / "r.yaml"
    done = cli("new", "recipe", "ties", "-m", "x", "-m", "y: z", "--base", "b", "--dtype", "bfloat16", "-o", out)
    assert done.exit_code == 0, done.stderr
    recipe = load_recipe(out)
    assert [source.model for source in recipe.models] == ["x", "y: z"] and recipe.base_model == "b"
    assert cli("new", "recipe", "ties", "-o", out).exit_code == 5
    assert cli("new", "recipe", "ties", "-o", out, "--force").exit_code == 0
    assert cli("new", "recipe", "tise").exit_code == 3
    assert cli("new", "recipe", "slerp", "-m", "a", "-m", "b", "-m", "c").exit_code == 3
    assert cli("new", "recipe", "ties", "--dtype", "int8").exit_code == 3


def test_the_schema_is_json(cli: Callable[..., Result]) -> None:
    done = cli("schema")
    assert done.exit_code == 0 and json.loads(done.stdout)["$schema"].startswith("https://json-schema.org")
