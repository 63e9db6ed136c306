"""The recipe of an average: a run's checkpoints with their weights, for the engine that runs every other recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from eutectic.errors import RecipeError
from eutectic.recipes.training_run import Saved
from eutectic.recipes.yaml_text import dump_yaml

__all__ = ["SPACES", "average_recipe", "recipe_text"]

SPACES = ("product", "factors")


def average_recipe(
    saved: Sequence[Saved],
    weights: Sequence[float],
    *,
    name: str | None = None,
    space: str | None = None,
    rank: int | None = None,
    max_error: float | None = None,
) -> dict[str, Any]:
    """θ = Σ w_i θ_i as a recipe for `eutectic.merge`. A checkpoint of weight 0 is left out.

    Args:
        saved, weights: as many of one as of the other; weights >= 0. They are taken as they are: give a sum of 1.
        name: of the recipe, for people.
        space: of adapters. product (the default) averages the changes B A, factors the factors A and B apart.
        rank, max_error: of the adapter that the space product gives.

    Raises:
        RecipeError: weights that are none, or options of adapters that do not fit.

    >>> from pathlib import Path
    >>> run = [Saved(Path("run/checkpoint-1")), Saved(Path("run/checkpoint-2"))]
    >>> average_recipe(run, [0.25, 0.75])["models"][1]
    {'model': 'run/checkpoint-2', 'parameters': {'weight': 0.75}}
    """
    if len(weights) != len(saved):
        raise RecipeError(f"there are {len(weights)} weights for {len(saved)} checkpoints")
    bad = next((weight for weight in weights if not (math.isfinite(weight) and weight >= 0)), None)
    if bad is not None or not any(weights):
        raise RecipeError(f"a weight is {bad}; give finite weights from 0 up" if any(weights) else "every weight is 0")
    chosen = [(entry, float(weight)) for entry, weight in zip(saved, weights, strict=True) if weight > 0]
    adapter = _adapter([entry for entry, _ in chosen], {"space": space, "rank": rank, "max_error": max_error})
    return {
        **({} if name is None else {"name": name}),
        "merge_method": "linear",
        "models": [{"model": str(entry.path), "parameters": {"weight": weight}} for entry, weight in chosen],
        "parameters": {"normalize": False},  # the weights are shares already; a second division could round
        **adapter,
    }


def _adapter(chosen: Sequence[Saved], asked: dict[str, Any]) -> dict[str, Any]:
    """The key `adapter` of a recipe of adapters."""
    asked = {key: value for key, value in asked.items() if value is not None}
    if not chosen[0].adapter:
        if asked:
            raise RecipeError(f"{', '.join(asked)}: these checkpoints are models; only adapters have such options")
        return {}
    space = asked.setdefault("space", "product")
    if space not in SPACES:
        raise RecipeError(f"there is no space {space!r}; choose {' or '.join(SPACES)}")
    if space == "factors":
        if len(asked) > 1:
            raise RecipeError("rank and max_error are of the space product; factors keep their rank")
        other = next((entry for entry in chosen if entry.rank != chosen[0].rank), None)
        if other is not None:
            raise RecipeError(
                f"{chosen[0].path} and {other.path} are adapters of different ranks, whose factors cannot be averaged; "
                "choose the space product"
            )
    return {"adapter": asked}


def recipe_text(recipe: dict[str, Any], comments: Sequence[str] = ()) -> str:
    """The recipe as YAML, under lines of comment."""
    return "".join(f"# {' '.join(line.split(chr(10)))}".rstrip() + "\n" for line in comments) + dump_yaml(recipe)
