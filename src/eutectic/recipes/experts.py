"""The experts of a recipe, and the recipe without some of them: everywhere, or in some tensors only.

"Without an expert" means what the recipe would be had it never named it: a method that normalises hands its share to
the others. In a set T of tensors it is, tensor by tensor, m' where the name lies in T and m elsewhere, m being the
merge and m' the merge without the expert; so it is defined for any method, and all tensors together are m'.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from eutectic.errors import RecipeError, nearest
from eutectic.methods import get_method
from eutectic.pools.manifest import CORE, FILE, read_manifest
from eutectic.recipes.lock import is_lock, load_lock
from eutectic.recipes.references import Reference
from eutectic.recipes.schema import Recipe, Source, load_recipe
from eutectic.recipes.tree import check_parameters
from eutectic.recipes.values import Case, Parameters

__all__ = ["alone", "experts_of", "recipe_of", "without", "without_in"]


def recipe_of(source: Recipe | str | os.PathLike[str] | Mapping[str, Any]) -> Recipe:
    """What names a merge of experts as a recipe: a recipe, its file or a lock file, a mapping, or a pool.

    A pool stands for the sum of its members' deltas, task arithmetic at weight 1.

    Raises:
        RecipeError: it is none, or it has faults.
    """
    if isinstance(source, Recipe):
        return source
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if (path / FILE).is_file():
            return _sum_of(path)
        if path.is_dir():
            raise RecipeError(f"{path}: a folder, not a recipe; name the recipe that it was merged from")
        if path.suffix == ".json" and is_lock(path):
            return load_lock(path)[0]
    return load_recipe(source, check=check_parameters)


def _sum_of(folder: Path) -> Recipe:
    facts = read_manifest(folder)
    base = (folder / CORE) if facts.core.stored else Path(facts.core.source)
    if facts.base is not None:
        raise RecipeError(
            f"{folder}: a pool of scheme {facts.scheme} holds a shared expert, not the base that a sum needs; "
            "write a recipe of its sources"
        )
    members = [{"model": f"{folder.absolute()}#{name}", "parameters": {"weight": 1.0}} for name in facts.experts]
    document = {"merge_method": "task_arithmetic", "base_model": str(base.absolute()), "models": members}
    return load_recipe(document, check=check_parameters)


def experts_of(recipe: Recipe) -> dict[str, Reference]:
    """The models that a recipe adds to its base, by short names (whole ones where those clash), in its order.

    Raises:
        RecipeError: it merges slices or modules, or names no model besides the base.

    >>> list(experts_of(load_recipe({"merge_method": "linear", "models": [{"model": "x/a"}, {"model": "x/b"}]})))
    ['a', 'b']
    """
    if not recipe.models:
        raise RecipeError("the recipe merges slices or modules; experts are told apart in recipes of 'models'")
    found = list(dict.fromkeys(s.model for s in recipe.models if s.model != recipe.base_model))
    if not found:
        raise RecipeError("the recipe names no model besides its base")
    whole = [ref if isinstance(ref, str) else ref.name or f"recipe {at}" for at, ref in enumerate(found, 1)]
    short = [Path(text.rpartition("#")[2]).name or text for text in whole]
    names = [a if short.count(a) == 1 else b for a, b in zip(short, whole, strict=True)]
    names = [n if names.count(n) == 1 else f"{n} ({at})" for at, n in enumerate(names, 1)]
    return dict(zip(names, found, strict=True))


def without(recipe: Recipe, names: Collection[str]) -> Recipe:
    """The recipe without some of its experts.

    Where the method cannot merge what is left, that counts alone: the one expert, or else the base. Under a stochastic
    method the experts stay with weight 0, so that the random numbers of the others, which go by their places, do.

    Raises:
        RecipeError: there is no such expert, or nothing is left.
    """
    experts = experts_of(recipe)
    for name in names:
        if name not in experts:
            hint = nearest(name, experts) or f"; its experts are {', '.join(experts)}"
            raise RecipeError(f"the recipe has no expert {name!r}{hint}")
    gone = [experts[name] for name in dict.fromkeys(names)]
    left = [experts[name] for name in experts if name not in names]
    if not gone:
        return recipe
    method = get_method(recipe.merge_method)
    if not left and recipe.base_model is None:
        raise RecipeError("nothing is left without these experts: the recipe has no base_model")
    count = len(left) + (method.base == "first" and recipe.base_model is not None)
    if not left or count < method.sources[0]:
        return alone(recipe, left[0] if left else recipe.base_model, stored=True)  # pyright: ignore[reportArgumentType]
    if method.stochastic and "weight" in method.parameters:
        zero = {"weight": 0}
        models = tuple(
            s.model_copy(update={"parameters": Parameters({**s.parameters, **zero})}) if s.model in gone else s
            for s in recipe.models
        )
    else:
        models = tuple(s for s in recipe.models if s.model not in gone)
    return recipe.model_copy(update={"models": models})


def without_in(recipe: Recipe, names: Collection[str], tensors: Collection[str]) -> Recipe:
    """The recipe without some of its experts in these tensors, and as it is in all others."""
    if not tensors:
        return recipe
    taken = "re:^(?:" + "|".join(map(re.escape, sorted(tensors))) + ")$"
    models = [
        Source(model=part, parameters=Parameters({"weight": (Case(inside, taken), Case(1 - inside))}))
        for part, inside in ((recipe, 0), (without(recipe, names), 1))
    ]
    return _around(recipe, {"merge_method": "linear", "models": models}, stored=True)


def alone(recipe: Recipe, reference: Reference, *, stored: bool = False) -> Recipe:
    """One model of a recipe by itself, in its own type or (`stored`) in that of the recipe's result."""
    return _around(recipe, {"merge_method": "linear", "models": [_source(reference)]}, stored=stored)


def _source(reference: Reference) -> Source:
    return Source(model=reference, parameters=Parameters({"weight": 1}))


def _around(recipe: Recipe, data: dict[str, Any], *, stored: bool) -> Recipe:
    """A recipe in the place of another: its folder and seed and (`stored`) the type and the tokens of its result."""
    kept = ("seed", *(("dtype", "out_dtype", "tokenizer_source", "tokenizer", "chat_template") if stored else ()))
    data |= {name: getattr(recipe, name) for name in kept if getattr(recipe, name) is not None}
    return Recipe.model_validate(data, context={"folder": recipe.folder})
