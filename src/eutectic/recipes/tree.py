"""From a recipe to a tree of merges over opened checkpoints; parameters checked and settled on the way.

A `Merge` combines whole models name by name. A `Stack` is a model made of parts: modules, slices of layers; each part
is a merge of its own. `binding.py` says for each tensor which merge, of which tensors, with which parameters.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from eutectic.errors import MethodError, RecipeError
from eutectic.methods import get_method
from eutectic.methods.method import Method
from eutectic.recipes.adapter_sources import absent_from, check_adapters, check_words
from eutectic.recipes.document import Location
from eutectic.recipes.groups import Group, bind, faults_of, groups_of, place_of, settings_of
from eutectic.recipes.opened import Opened
from eutectic.recipes.opening import absent, open_source, real
from eutectic.recipes.references import RECIPE_SUFFIXES, Reference, resolve_model
from eutectic.recipes.schema import Recipe, SliceSource, Source, load_recipe
from eutectic.recipes.settings import Settings
from eutectic.recipes.source_statistics import statistics_of
from eutectic.weights.adapter_delta import Changes
from eutectic.weights.checkpoint import Checkpoint
from eutectic.weights.dtypes import DType, dtype_of
from eutectic.weights.files import Place, RemotePath
from eutectic.weights.keymap import presented_as
from eutectic.weights.tensor_ref import TensorRef

__all__ = ["Leaf", "Merge", "Node", "Part", "Stack", "Tree", "build_tree", "check_parameters", "expand"]

MOST_NESTING = 16


@dataclass(frozen=True, eq=False)
class Leaf:
    """One opened checkpoint. `label` is what the recipe calls it; equal paths share one leaf.

    Where a slice takes layers of one checkpoint twice, each has a leaf of its own.
    """

    index: int
    label: str
    checkpoint: Checkpoint
    dequantised: str | None = None
    """How its weights are stored, where they are quantised and `checkpoint` has the dense ones."""
    adapter: Place | None = None
    """The adapter that `checkpoint` is read with, where the recipe names one behind the model."""
    statistics: str | None = None
    """The kind, where these are statistics of a source and no source themselves."""


@dataclass(frozen=True, eq=False)
class Merge:
    """One merge: `inputs` in the order of the method's rows, `base` first where the method works on deltas.

    `place` is where the recipe lists its sources. Where `settings` vary from tensor to tensor, `parameters` is empty
    until a tensor is bound. `instead` is the index of the merge that this one replaces for a tensor whose entries must
    all count.
    """

    index: int
    method: Method
    parameters: dict[str, Any]
    base: Node | None
    sources: tuple[Node, ...]
    seed: int
    dtype: DType | None
    semantics: str
    reference: Node
    settings: Settings | None = None
    instead: int | None = None
    place: str = ""
    statistics: tuple[Leaf, ...] = ()
    """Where the method needs them, those of each source: bound to the same tensors, of other shapes perhaps."""

    @property
    def inputs(self) -> tuple[Node, ...]:
        """Every input, the base first if the method takes one."""
        return self.sources if self.base is None else (self.base, *self.sources)

    def walk(self) -> Iterator[Merge]:
        """This merge and those below it, inner ones first."""
        for node in self.inputs:
            if not isinstance(node, Leaf):
                yield from node.walk()
        yield self

    @cached_property
    def merges(self) -> tuple[Merge, ...]:
        """This merge and those below it, inner ones first."""
        return tuple(self.walk())

    @cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """The checkpoints that it reads, each once."""
        found = (node for merge in self.merges for node in merge.inputs if isinstance(node, Leaf))
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a stack: a merge of whole models, or (with `ranges`, one for each of its inputs) of some layers."""

    merge: Merge
    place: str
    module: str | None
    ranges: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, eq=False)
class Stack:
    """A model made of parts: those of one module (None: of the whole model) follow one another."""

    parts: tuple[Part, ...]

    @property
    def reference(self) -> Node:
        """The node whose config and side files the whole takes."""
        return self.parts[0].merge.reference

    @property
    def method(self) -> Method:
        """The method of all parts."""
        return self.parts[0].merge.method

    @property
    def seed(self) -> int:
        """The seed of all parts."""
        return self.parts[0].merge.seed

    @property
    def dtype(self) -> DType | None:
        """The type of all parts."""
        return self.parts[0].merge.dtype

    @cached_property
    def modules(self) -> dict[str | None, tuple[Part, ...]]:
        """The parts by module, in order."""
        names = dict.fromkeys(part.module for part in self.parts)
        return {name: tuple(part for part in self.parts if part.module == name) for name in names}

    def walk(self) -> Iterator[Merge]:
        """The merges of all parts and those below them, inner ones first."""
        for part in self.parts:
            yield from part.merge.walk()


Node = Leaf | Merge | Stack


def check_parameters(recipe: Recipe, location: Location) -> list[tuple[Location, str]]:
    """What is wrong with a recipe's method, its parameters and the number of its sources, each with its place."""
    try:
        method = get_method(recipe.merge_method)
    except MethodError as error:
        return [((*location, "merge_method"), str(error))]
    found = [fault for group in groups_of(recipe, location) for fault in faults_of(group, method)]
    return list(dict.fromkeys(found))  # what stands above several groups is told once


class _Builder:
    def __init__(self, seed: int | None, opened: Opened) -> None:
        self.seed, self.opened = seed, opened
        self.leaves: list[Leaf] = []
        self.checkpoints: dict[tuple[Place, Place | None], tuple[Checkpoint, str | None]] = {}
        self.lead: Checkpoint | None = None  # the first opened, in whose names the others are read
        self.by_path: dict[tuple[tuple[Place, Place | None], tuple[int, ...]], Leaf] = {}
        self.pinned: dict[str, RemotePath] = {}
        self.stored: dict[tuple[Place, Place | None], Checkpoint] = {}  # as opened, in their own names
        self.merges = 0
        self.zero: Leaf | None = None
        self.copies = False
        self.words: dict[str, Any] = {}

    def recipe(self, recipe: Recipe, inherited: int, depth: int, scope: tuple[int, ...]) -> Merge | Stack:
        if depth > MOST_NESTING:
            raise RecipeError(f"recipes are nested more than {MOST_NESTING} deep; does one of them contain itself?")
        problems = check_parameters(recipe, ())
        if problems:
            lines = [f"{'.'.join(map(str, where))}: {why}" for where, why in problems]
            raise RecipeError(f"the recipe {recipe.name or recipe.merge_method} cannot be merged", lines)
        if depth == 0:
            self.words = _words_about_tokens(recipe)
        elif _words_about_tokens(recipe) not in ({}, self.words):
            raise RecipeError(
                f"the recipe {recipe.name or recipe.merge_method} inside another one says which tokens its result has; "
                "there is one vocabulary for all: say it in the outermost recipe"
            )
        self.copies = depth == 0 and _only_copies(recipe)
        seed = recipe.seed if recipe.seed is not None else inherited
        if depth == 0 and self.seed is not None:
            seed = self.seed
        groups = list(groups_of(recipe))
        if recipe.models:
            return self.merge(groups[0], seed, depth, scope)
        return Stack(tuple(self.part(group, seed, depth, scope) for group in groups))

    def part(self, group: Group, seed: int, depth: int, scope: tuple[int, ...]) -> Part:
        merge = self.merge(group, seed, depth, scope)
        base, inputs = bind(group, merge.method)
        rows = inputs if base is None else [base, *inputs]
        ranges = tuple(source.layer_range for source in rows if isinstance(source, SliceSource))
        return Part(merge, place_of(group.location), group.module, ranges)

    def merge(self, group: Group, seed: int, depth: int, scope: tuple[int, ...]) -> Merge:
        recipe = group.recipe
        method = get_method(recipe.merge_method)
        base, inputs = bind(group, method)
        settings = settings_of(group, method, inputs)
        if base is None and group.base is not None and not isinstance(group.base, Recipe):
            self.open(group.base, recipe)  # the result takes its names

        def node(source: Source, row: int) -> Node:
            inside = (*scope, row) if group.sliced else scope
            return self.node(source.model, recipe, seed, depth, inside)

        base_node = node(base, 0) if base is not None else None
        sources = tuple(node(source, row) for row, source in enumerate(inputs, base is not None))
        statistics = tuple(self.statistics(source, method, recipe) for source in inputs) if method.needs else ()
        reference = base_node or sources[0]
        if method.base == "required" and base_node is None:
            base_node = self.nothing()
        if base is None and group.base is not None:
            at = next((at for at, source in enumerate(inputs) if source.model == group.base), None)
            reference = sources[at] if at is not None else self.node(group.base, recipe, seed, depth, scope)
        stored = recipe.out_dtype or recipe.dtype
        if isinstance(_reference_of(sources[0]).checkpoint, Changes):
            stored = None  # the type of the factors; what adapters change is merged in float32
        self.merges += 1
        return Merge(
            self.merges - 1, method, {} if settings.varies else settings.at("", 0.0), base_node, sources, seed,
            dtype_of(stored) if stored else None, recipe.semantics, reference, settings if settings.varies else None,
            place=place_of((*group.location, group.key)), statistics=statistics,
        )  # fmt: skip

    def statistics(self, source: Source, method: Method, recipe: Recipe) -> Leaf:
        """The statistics of one source, found to be of its very tensors."""
        assert method.needs is not None and source.statistics is not None  # `check_parameters` has seen to it
        key = None if isinstance(source.model, Recipe) else self.open(source.model, recipe)
        if not isinstance(key, tuple):
            raise RecipeError(f"{source.statistics}: statistics are of a stored model, not of a recipe; merge it first")
        named, stored = self.checkpoints[key][0], self.stored[key]
        found = statistics_of(source.statistics, str(source.model), method.needs, stored, named, recipe)
        leaf = Leaf(len(self.leaves), source.statistics, found, statistics=method.needs)
        self.leaves.append(leaf)
        return leaf

    def node(self, reference: Reference, recipe: Recipe, seed: int, depth: int, scope: tuple[int, ...]) -> Node:
        if isinstance(reference, Recipe):
            return self.recipe(reference, seed, depth + 1, scope)
        opened = self.open(reference, recipe)
        if isinstance(opened, Path):
            return self.recipe(load_recipe(opened, check=check_parameters), seed, depth + 1, scope)
        if (opened, scope) not in self.by_path:
            leaf = Leaf(len(self.leaves), str(reference), *self.checkpoints[opened], opened[1])
            self.leaves.append(leaf)
            self.by_path[opened, scope] = leaf
        return self.by_path[opened, scope]

    def open(self, reference: str, recipe: Recipe) -> Path | tuple[Place, Place | None]:
        """The key of an opened checkpoint, in the names of the first; the path where it is a recipe file."""
        path, adapter = resolve_model(reference, recipe)
        if isinstance(path, Path) and adapter is None and path.suffix in RECIPE_SUFFIXES and path.is_file():
            return path
        for wanted in (path, adapter):
            if isinstance(wanted, Path) and not os.path.exists(wanted):  # noqa: PTH110  (never raises)
                raise absent(reference, wanted, recipe)
        path, adapter = self.pin(path), None if adapter is None else self.pin(adapter)
        key = (real(path), None if adapter is None else real(adapter))
        if key not in self.checkpoints:
            as_stored = self.copies
            found, words = self.opened.get((*key, as_stored), lambda: open_source(path, adapter, as_stored=as_stored))
            self.stored[key] = found
            self.lead = found if self.lead is None else self.lead
            named = found if isinstance(found, Changes) else presented_as(found, self.lead)
            self.checkpoints[key] = named, words
        return key

    def nothing(self) -> Leaf:
        """The base of adapters: the change that is zero everywhere."""
        if self.zero is None:
            self.zero = Leaf(len(self.leaves), "no change", Checkpoint({}))
            self.leaves.append(self.zero)
        return self.zero

    def pin(self, place: Place) -> Place:
        """The place at one revision, asked for once however many sources name it."""
        if not isinstance(place, RemotePath):
            return place
        if str(place) not in self.pinned:
            self.pinned[str(place)] = place.pinned()
        return self.pinned[str(place)]


def _reference_of(node: Node) -> Leaf:
    while not isinstance(node, Leaf):
        node = node.reference
    return node


def _words_about_tokens(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says about the vocabulary of its result, as one form of its two keys."""
    vocabulary = recipe.vocabulary
    words = {} if vocabulary is None else vocabulary.data(str)
    return {**words, **({"chat_template": recipe.chat_template} if recipe.chat_template else {})}


def _only_copies(recipe: Recipe) -> bool:
    """Whether a recipe does nothing to the tensors of one model, so that codes may stay codes."""
    same = recipe.merge_method == "passthrough" and len(recipe.models) == 1 and recipe.base_model is None
    changes = (recipe.dtype, recipe.out_dtype, recipe.tokenizer, recipe.tokenizer_source)
    return same and not any(changes) and not recipe.parameters and not recipe.models[0].parameters


@dataclass(frozen=True, eq=False)
class Tree:
    """A recipe's merges and the checkpoints that they read."""

    root: Merge | Stack
    leaves: tuple[Leaf, ...]
    merges: tuple[Merge, ...] = field(default=())
    pinned: Mapping[str, RemotePath] = field(default_factory=dict)
    """The places on other machines, by the name that the recipe has for them."""
    absent: Mapping[int, Mapping[str, TensorRef]] = field(default_factory=dict)
    """Where the sources are adapters: the zero changes that stand for what a leaf lacks, by its index."""

    @property
    def of_adapters(self) -> bool:
        """Whether adapters are merged, without their base."""
        return isinstance(self.reference.checkpoint, Changes)

    @property
    def reference(self) -> Leaf:
        """The checkpoint whose names, config and side files the result takes: the base, or the first source."""
        return _reference_of(self.root)

    @cached_property
    def sources(self) -> tuple[Leaf, ...]:
        """A leaf for every checkpoint, however many of its layers are read: the reference first."""
        own = [leaf for leaf in self.leaves if leaf.statistics is None]
        leaves = [leaf for leaf in own if leaf.checkpoint]  # without the zero change
        found = {id(leaf.checkpoint): leaf for leaf in (*reversed(leaves), self.reference)}
        rest = [leaf for leaf in leaves if found[id(leaf.checkpoint)] is leaf and leaf is not self.reference]
        return (self.reference, *rest)

    @cached_property
    def statistics(self) -> tuple[Leaf, ...]:
        """The statistics of the sources, where the method needs some."""
        return tuple(leaf for leaf in self.leaves if leaf.statistics is not None)


def build_tree(recipe: Recipe, *, seed: int | None = None, opened: Opened | None = None) -> Tree:
    """Open every source of a recipe (headers only; those in `opened` are open already) and settle every parameter.

    Raises:
        RecipeError: parameters that the methods refuse, all of them at once; words about adapters without adapters.
        SourceError: a source that cannot be opened, or adapters among models.
    """
    builder = _Builder(seed, opened or Opened())
    root = builder.recipe(recipe, seed or 0, 0, ())
    leaves = {leaf.index: (leaf.label, leaf.checkpoint) for leaf in builder.leaves if leaf.statistics is None}
    absent = absent_from(leaves) if check_adapters(leaves) else {}
    check_words(recipe, of_adapters=bool(absent))
    return Tree(root, tuple(builder.leaves), tuple(root.walk()), builder.pinned, absent)


def expand(recipe: Recipe, pinned: Mapping[str, RemotePath] | None = None) -> dict[str, Any]:
    """The recipe as plain data that stands alone: absolute paths, `pinned` revisions, recipe files written out."""
    return recipe.data(lambda reference: _expand_reference(reference, recipe, pinned or {}))


def _expand_reference(reference: Reference, recipe: Recipe, pinned: Mapping[str, RemotePath]) -> Any:
    if isinstance(reference, Recipe):
        return expand(reference, pinned)
    path, adapter = resolve_model(reference, recipe)
    if isinstance(path, Path) and adapter is None and path.suffix in RECIPE_SUFFIXES and path.is_file():
        return expand(load_recipe(path), pinned)
    places = [place for place in (path, adapter) if place is not None]
    return "+".join(str(p.absolute() if isinstance(p, Path) else pinned.get(str(p), p)) for p in places)
