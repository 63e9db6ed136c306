"""From a recipe to a tree of merges over opened checkpoints; parameters checked and settled on the way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eutectic.errors import MethodError, RecipeError, SourceError
from eutectic.methods import get_method
from eutectic.methods.method import Method, Parameter
from eutectic.recipes.schema import Recipe, Reference, Source, load_recipe, resolve
from eutectic.weights.checkpoint import Checkpoint, open_checkpoint
from eutectic.weights.dtypes import DType, dtype_of

__all__ = ["Leaf", "Merge", "Node", "Tree", "build_tree", "check_parameters", "expand"]

Location = tuple[str | int, ...]
MOST_NESTING = 16
RECIPE_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, eq=False)
class Leaf:
    """One opened checkpoint. `label` is what the recipe calls it; equal paths share one leaf."""

    index: int
    label: str
    checkpoint: Checkpoint


@dataclass(frozen=True, eq=False)
class Merge:
    """One merge: `inputs` in the order of the method's rows, `base` first where the method works on deltas."""

    index: int
    method: Method
    parameters: dict[str, Any]
    base: Node | None
    sources: tuple[Node, ...]
    seed: int
    dtype: DType | None
    semantics: str
    reference: Node

    @property
    def inputs(self) -> tuple[Node, ...]:
        """Every input, the base first if the method takes one."""
        return self.sources if self.base is None else (self.base, *self.sources)

    def walk(self) -> Iterator[Merge]:
        """This merge and those below it, inner ones first."""
        for node in self.inputs:
            if isinstance(node, Merge):
                yield from node.walk()
        yield self


Node = Leaf | Merge


def check_parameters(recipe: Recipe, location: Location) -> list[tuple[Location, str]]:
    """What is wrong with a recipe's method, its parameters and the number of its sources, each with its place."""
    try:
        method = get_method(recipe.merge_method)
    except MethodError as error:
        return [((*location, "merge_method"), str(error))]
    problems: list[tuple[Location, str]] = []
    base, inputs = _bind(recipe, method)
    if method.base == "required" and base is None:
        problems.append(((*location, "merge_method"), f"{method.name} needs a base_model"))
    if method.base == "unused" and base_is_extra(recipe):
        problems.append((
            (*location, "base_model"),
            f"{method.name} has no base. List it under models (with its weight) if it should take part, as mergekit "
            "would make it, or leave it out",
        ))  # fmt: skip
    count = len(inputs)
    fewest, most = method.sources
    if count < fewest or (most is not None and count > most):
        besides = " besides the base" if base is not None else ""
        besides = " (base_model counts as the first)" if method.base == "first" else besides
        problems.append(
            ((*location, "models"), f"{method.name} merges {method.count_in_words()}{besides}, not {count}")
        )
    positions = {id(source): at for at, source in enumerate(recipe.models)}
    for at, source in enumerate(recipe.models):
        for name in source.parameters:
            parameter = method.parameters.get(name)
            if parameter is not None and not parameter.per_source:
                where = (*location, "models", at, "parameters", name)
                problems.append((where, f"{name} is one value for the whole merge: put it under the top parameters"))
    _, faults = _settle(recipe, method, inputs)
    for source, name, why in faults:
        where: Location = (*location, "parameters")
        if source is not None:
            where = (*location, "models", positions[id(source)])
            where = (*where, "parameters", name) if name in source.parameters else where
        elif name in recipe.parameters:
            where = (*where, name)
        else:
            where = (*location, "merge_method")
        problems.append((where, why))
    return problems


def base_is_extra(recipe: Recipe) -> bool:
    """Whether base_model is none of the models."""
    return recipe.base_model is not None and all(source.model != recipe.base_model for source in recipe.models)


def _bind(recipe: Recipe, method: Method) -> tuple[Reference | None, list[Source]]:
    """The base, and the sources that the method merges. A model that is the base adds no delta of its own."""
    base = recipe.base_model
    if method.base == "unused" or base is None:
        return base if method.base in ("required", "optional") else None, list(recipe.models)
    others = [source for source in recipe.models if source.model != base]
    if method.base in ("required", "optional"):
        return base, others
    return None, [next((s for s in recipe.models if s.model == base), Source(model=base)), *others]


def _settle(
    recipe: Recipe, method: Method, inputs: list[Source]
) -> tuple[dict[str, Any], list[tuple[Source | None, str, str]]]:
    """Parameters for the method, and faults as (source or None, parameter, why)."""
    faults: list[tuple[Source | None, str, str]] = []
    given: dict[str, Any] = dict(recipe.parameters)
    for source in recipe.models:
        for name in source.parameters:
            if name not in method.parameters:
                _, unknown = method.settle({name: source.parameters[name]}, 0)
                faults += [(source, n, why) for n, why in unknown if n == name and n not in method.parameters]
    for name, parameter in method.parameters.items():
        if parameter.per_source and any(name in source.parameters for source in inputs):
            default = method.paper.get(name, parameter.default) if recipe.semantics == "paper" else parameter.default
            values = [source.parameters.get(name, recipe.parameters.get(name, default)) for source in inputs]
            for source, value in zip(inputs, values, strict=True):
                if why := _fault(parameter, value):
                    faults.append((source, name, why))
            given[name] = values if not any(fault[1] == name for fault in faults) else 0.5
    settled, more = method.settle(given, len(inputs), recipe.semantics)
    faulty = {name for _, name, _ in faults}
    faults += [(None, name, why) for name, why in more if name not in faulty]
    return settled, faults


def _fault(parameter: Parameter, value: Any) -> str:
    if parameter.required and value is parameter.default:
        return f"this source needs the parameter {parameter.name}: {parameter.meaning or parameter.expected}"
    return parameter.fault(value)


class _Builder:
    def __init__(self, seed: int | None) -> None:
        self.seed = seed
        self.leaves: list[Leaf] = []
        self.by_path: dict[Path, Leaf] = {}
        self.merges = 0

    def recipe(self, recipe: Recipe, inherited: int, depth: int) -> Merge:
        if depth > MOST_NESTING:
            raise RecipeError(f"recipes are nested more than {MOST_NESTING} deep; does one of them contain itself?")
        problems = check_parameters(recipe, ())
        if problems:
            lines = [f"{'.'.join(map(str, where))}: {why}" for where, why in problems]
            raise RecipeError(f"the recipe {recipe.name or recipe.merge_method} cannot be merged", lines)
        method = get_method(recipe.merge_method)
        seed = recipe.seed if recipe.seed is not None else inherited
        if depth == 0 and self.seed is not None:
            seed = self.seed
        base, inputs = _bind(recipe, method)
        settled, _ = _settle(recipe, method, inputs)
        base_node = self.node(base, recipe, seed, depth) if base is not None else None
        sources = tuple(self.node(source.model, recipe, seed, depth) for source in inputs)
        reference = base_node or sources[0]
        if base_node is None and recipe.base_model is not None:
            reference = self.node(recipe.base_model, recipe, seed, depth)
        stored = recipe.out_dtype or recipe.dtype
        self.merges += 1
        return Merge(
            self.merges - 1, method, settled, base_node, sources, seed, dtype_of(stored) if stored else None,
            recipe.semantics, reference,
        )  # fmt: skip

    def node(self, reference: Reference, recipe: Recipe, seed: int, depth: int) -> Node:
        if isinstance(reference, Recipe):
            return self.recipe(reference, seed, depth + 1)
        path = resolve(reference, recipe)
        if path.suffix in RECIPE_SUFFIXES and path.is_file():
            return self.recipe(load_recipe(path, check=check_parameters), seed, depth + 1)
        if not os.path.exists(path):  # noqa: PTH110  (never raises)
            if path.is_absolute():
                raise SourceError(f"{reference}: no such folder or file")
            beside = f" or in {recipe.folder}" if recipe.folder else ""
            raise SourceError(
                f"{reference}: no such folder or file in the current directory{beside}. Names of a model hub are not "
                "fetched by this version: download the model and give its folder."
            )
        key = path.resolve()
        if key not in self.by_path:
            leaf = Leaf(len(self.leaves), str(reference), open_checkpoint(path))
            self.leaves.append(leaf)
            self.by_path[key] = leaf
        return self.by_path[key]


@dataclass(frozen=True, eq=False)
class Tree:
    """A recipe's merges and the checkpoints that they read."""

    root: Merge
    leaves: tuple[Leaf, ...]
    merges: tuple[Merge, ...] = field(default=())

    @property
    def reference(self) -> Leaf:
        """The checkpoint whose names, config and side files the result takes: the base, or the first source."""
        node: Node = self.root
        while isinstance(node, Merge):
            node = node.reference
        return node


def build_tree(recipe: Recipe, *, seed: int | None = None) -> Tree:
    """Open every source of a recipe (headers only) and settle every parameter.

    Raises:
        RecipeError: parameters that the methods refuse, all of them at once.
        SourceError: a source that cannot be opened.
    """
    builder = _Builder(seed)
    root = builder.recipe(recipe, seed or 0, 0)
    return Tree(root, tuple(builder.leaves), tuple(root.walk()))


def expand(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data that stands alone: absolute paths, and recipe files written out in place."""
    data = recipe.canonical()
    if recipe.base_model is not None:
        data["base_model"] = _expand_reference(recipe.base_model, recipe)
    for source, entry in zip(recipe.models, data["models"], strict=True):
        entry["model"] = _expand_reference(source.model, recipe)
    return data


def _expand_reference(reference: Reference, recipe: Recipe) -> Any:
    if isinstance(reference, Recipe):
        return expand(reference)
    path = resolve(reference, recipe)
    if path.suffix in RECIPE_SUFFIXES and path.is_file():
        return expand(load_recipe(path))
    return str(path.absolute())
