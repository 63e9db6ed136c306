"""The recipe: what to merge, how, and into which type. mergekit's form, read strictly.

A recipe is frozen and hashable. Two recipes are equal when their canonical forms are: `1` and `1.0` are one
value, key order and the file that a recipe came from do not matter. `load_recipe` is the way in; it
reports every fault at once, each with its place, the value found and what to do.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr, ValidationError

from eutectic.errors import RecipeError
from eutectic.recipes.adapter_form import AdapterForm
from eutectic.recipes.chat_templates import check_template
from eutectic.recipes.document import Document, Location, load_document
from eutectic.recipes.faults import Problem, concerns, mended, problems_of, sources_of, too_deep
from eutectic.recipes.references import FileReference, MergekitReference, Reference, Strict
from eutectic.recipes.tokenizer import ModelText, OtherToken, Tokenizer, TokenSource, taken_from
from eutectic.recipes.values import DTypeName, LayerRange, Parameters, PathText, Scalar, Text, Values, canonical_values

__all__ = [
    "Module",
    "Recipe",
    "Reference",
    "Scalar",
    "Slice",
    "SliceSource",
    "Source",
    "load_recipe",
    "parse_recipe",
    "references",
    "schema_json",
    "walk",
]

Check = Callable[["Recipe", Location], list[Problem]]


class _Frozen(Strict, ABC, frozen=True):
    """What has a canonical form, by which it is compared."""

    @abstractmethod
    def canonical(self) -> dict[str, Any]:
        """Plain data in a fixed key order, without defaults."""

    def fingerprint(self) -> str:
        """BLAKE2b of the canonical JSON: 64 hexadecimal digits."""
        return hashlib.blake2b(self._text().encode("ascii"), digest_size=32).hexdigest()

    def _text(self) -> str:
        return json.dumps(self.canonical(), sort_keys=True, separators=(",", ":"), allow_nan=False)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self is other or (isinstance(other, _Frozen) and self._text() == other._text())

    def __hash__(self) -> int:
        return hash(self._text())


_MODEL = (
    "A model folder or file, a URL, org/name@revision of the hub, model+adapter, a recipe file, or a recipe. Or an "
    "adapter folder, where all sources are."
)
_DTYPE = "Type of the result where out_dtype is absent. Default: that of the base or first source."
_OPTIONS = "Options of the method, and defaults for the sources below."

Shown = Callable[["Reference"], Any]
"""How a reference is written in a recipe's plain data."""


class Source(_Frozen, frozen=True):
    """One input of a merge."""

    model: Reference = Field(description=_MODEL)
    statistics: PathText | None = Field(
        default=None,
        description="A folder that `eutectic stats collect` made of this model, where the method needs one.",
    )
    parameters: Values = Field(default_factory=Parameters, description="Options of the method for this source.")

    def canonical(self) -> dict[str, Any]:
        """Plain data in a fixed key order, without defaults."""
        return self.data(_canonical_reference)

    def data(self, shown: Shown) -> dict[str, Any]:
        """Canonical data with references as `shown` writes them."""
        return {"model": shown(self.model), **self._statistics(shown), **_values(self.parameters)}

    def _statistics(self, shown: Shown) -> dict[str, Any]:
        return {} if self.statistics is None else {"statistics": shown(self.statistics)}


class SliceSource(Source, frozen=True):
    """One input of a slice: some layers of a model, in place."""

    layer_range: LayerRange = Field(description="First layer, and the one behind the last, counted from 0.")

    def data(self, shown: Shown) -> dict[str, Any]:
        """Canonical data with references as `shown` writes them."""
        layers = {"layer_range": list(self.layer_range)}
        return {"model": shown(self.model), **layers, **self._statistics(shown), **_values(self.parameters)}


class Slice(_Frozen, frozen=True):
    """Layers of the result: as many as the range of each of its sources, merged layer by layer."""

    sources: tuple[SliceSource, ...] = Field(min_length=1, description="Layers of models, in the method's order.")
    base_model: Reference | None = Field(None, description="In this slice, instead of the recipe's. " + _MODEL)
    parameters: Values = Field(default_factory=Parameters, description=_OPTIONS)
    residual_weight: None = None

    def canonical(self) -> dict[str, Any]:
        """Plain data in a fixed key order, without defaults."""
        return self.data(_canonical_reference)

    def data(self, shown: Shown) -> dict[str, Any]:
        """Canonical data with references as `shown` writes them."""
        base = {} if self.base_model is None else {"base_model": shown(self.base_model)}
        return {**base, "sources": [source.data(shown) for source in self.sources], **_values(self.parameters)}


class Module(_Frozen, frozen=True):
    """One part of a model of several parts: a tower, a decoder, a projector."""

    models: tuple[Source, ...] = Field((), min_length=1, description="Whole models, in the method's order.")
    slices: tuple[Slice, ...] = Field((), min_length=1, description="Layers of models, one slice after another.")
    parameters: Values = Field(default_factory=Parameters, description=_OPTIONS)

    def canonical(self) -> dict[str, Any]:
        """Plain data in a fixed key order, without defaults."""
        return self.data(_canonical_reference)

    def data(self, shown: Shown) -> dict[str, Any]:
        """Canonical data with references as `shown` writes them."""
        return {**_sources(self, shown), **_values(self.parameters)}


Modules = Annotated[Mapping[Text, Module], Field(min_length=1)]


class Recipe(_Frozen, frozen=True):
    """What to merge, how, and into which type."""

    merge_method: Text = Field(description="Name of the method, such as linear, slerp, ties or dare_ties.")
    models: tuple[Source, ...] = Field((), min_length=1, description="The sources, in the method's order.")
    slices: tuple[Slice, ...] = Field((), min_length=1, description="Layers of models, one slice after another.")
    modules: Modules = Field(default_factory=dict, description="The parts of a model of several parts, by name.")
    base_model: Reference | None = Field(None, description="What deltas are taken from. " + _MODEL)
    parameters: Values = Field(default_factory=Parameters, description="Options, and defaults for all sources.")
    dtype: DTypeName = Field(None, description=_DTYPE)
    out_dtype: DTypeName = Field(None, description="Type of the result.")
    semantics: Literal["mergekit", "paper"] = Field(
        "mergekit", description="Whose meaning an option has where mergekit departs from the method's paper."
    )
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**64)] | None = Field(
        None, description="Of the random numbers. Default: that of the recipe around this one, or 0."
    )
    name: Text | None = Field(None, description="A name for people.")
    tokenizer_source: ModelText | None = Field(
        None, description="Whose tokens the result has: union (of all models), base, or a model."
    )
    tokenizer: Tokenizer | None = Field(None, description="The same, and where single embeddings come from.")
    chat_template: Annotated[Text, AfterValidator(check_template)] | None = Field(
        None, description="auto (what most sources have), a name such as chatml, or a template in Jinja."
    )

    adapter: AdapterForm | None = Field(
        None, description="Where all sources are adapters: how the adapter that they become is written."
    )

    _folder: Path | None = PrivateAttr(default=None)

    def model_post_init(self, context: Any, /) -> None:
        """Take the folder of the recipe file from the validation context."""
        if context:
            self._folder = context["folder"]  # pyright: ignore[reportAttributeAccessIssue]  private: pydantic allows it

    @property
    def folder(self) -> Path | None:
        """The folder of the file that this recipe was read from. No part of equality, hash or fingerprint."""
        return self._folder

    @property
    def vocabulary(self) -> Tokenizer | None:
        """Which tokens the result has; None where the recipe does not say."""
        return self.tokenizer or (None if self.tokenizer_source is None else taken_from(self.tokenizer_source))

    def canonical(self) -> dict[str, Any]:
        """Plain data in a fixed key order, without defaults: the same for recipes that mean the same.

        >>> load_recipe("models: [{parameters: {weight: 1.0}, model: a}]\\nmerge_method: linear").canonical()
        {'merge_method': 'linear', 'models': [{'model': 'a', 'parameters': {'weight': 1}}]}
        """
        return self.data(_canonical_reference)

    def data(self, shown: Shown) -> dict[str, Any]:
        """Canonical data with references as `shown` writes them."""
        base, source = self.base_model, self.tokenizer_source
        data = {
            "name": self.name,
            "merge_method": self.merge_method,
            "base_model": None if base is None else shown(base),
            **_sources(self, shown),
            "modules": {name: module.data(shown) for name, module in self.modules.items()} or None,
            "parameters": canonical_values(self.parameters) or None,
            "dtype": self.dtype,
            "out_dtype": self.out_dtype,
            "semantics": None if self.semantics == "mergekit" else self.semantics,
            "seed": self.seed,
            "tokenizer_source": None if source is None else taken_from(source).data(shown)["source"],
            "tokenizer": None if self.tokenizer is None else self.tokenizer.data(shown),
            "chat_template": self.chat_template,
            "adapter": None if self.adapter is None else self.adapter.data(),
        }
        return {key: value for key, value in data.items() if value is not None}


def _values(parameters: Parameters) -> dict[str, Any]:
    return {"parameters": canonical_values(parameters)} if parameters else {}


def _sources(owner: Recipe | Module, shown: Shown) -> dict[str, Any]:
    if owner.slices:
        return {"slices": [part.data(shown) for part in owner.slices]}
    return {"models": [source.data(shown) for source in owner.models]} if owner.models else {}


for _model in (Source, SliceSource, Slice, Module):
    _model.model_rebuild()
_KNOWN = {
    "recipe": list(Recipe.model_fields),
    "source": list(Source.model_fields),
    "slice source": list(SliceSource.model_fields),
    "slice": [name for name in Slice.model_fields if name != "residual_weight"],
    "module": list(Module.model_fields),
    "file": list(FileReference.model_fields),
    "mergekit": [name for name in MergekitReference.model_fields if name != "override_architecture"],
    "tokenizer": list(Tokenizer.model_fields),
    "token": list(TokenSource.model_fields),
    "other token": list(OtherToken.model_fields),
    "adapter": list(AdapterForm.model_fields),
}


def _canonical_reference(reference: Reference) -> Any:
    return reference.canonical() if isinstance(reference, Recipe) else reference


def load_recipe(
    source: str | os.PathLike[str] | Mapping[str, Any], *, name: str | None = None, check: Check | None = None
) -> Recipe:
    """Read a recipe from a YAML or JSON file, from its text, or from a mapping.

    Args:
        source: a path; or the text itself, told by a line break or a leading ``{``; or a mapping.
        name: what places start with; the path as given, or ``recipe``.
        check: see `parse_recipe`.

    Raises:
        RecipeError: the file cannot be read or the recipe has faults; all of them are in `problems`.

    >>> load_recipe({"merge_method": "linear", "models": [{"model": "./a"}], "dtype": "bf16"}).dtype
    'bfloat16'
    """
    if isinstance(source, str) and not (source.lstrip().startswith("{") or "\n" in source or not source.strip()):
        source = Path(source)
    return parse_recipe(load_document(source, name=name), check=check)


def parse_recipe(document: Document, *, check: Check | None = None) -> Recipe:
    """A document as a recipe, or one error that lists every fault in the order of the document.

    `check(recipe, location)` is called for the recipe and for every recipe written inside it, and returns
    further problems as (location from the top, sentence). It also sees a recipe that has other faults, as
    far as the rest of it can be read.
    """
    problems = too_deep(document.data)
    recipe: Recipe | None = None
    if not problems:
        recipe, problems = _validate(document.data, document.folder)
    if check is not None and isinstance(document.data, dict):  # else there is nothing to look further into
        faulty = [loc for loc, _ in problems]
        readable = recipe or _validate(mended(document.data, faulty), document.folder)[0]
        found = [problem for loc, part in walk(readable) for problem in check(part, loc)] if readable else []
        problems += [problem for problem in found if not concerns(problem, faulty)]
    if recipe is None or problems:
        problems.sort(key=lambda problem: document.order(problem[0]))
        lines = list(dict.fromkeys(f"{document.place(loc)}: {sentence}" for loc, sentence in problems))
        raise RecipeError(f"{document.name} has {len(lines)} problem{'s'[: len(lines) != 1]}:", lines)
    return recipe


def _validate(data: Any, folder: Path | None) -> tuple[Recipe | None, list[Problem]]:
    forms = sources_of(data)
    try:
        recipe = Recipe.model_validate(data, context={"folder": folder})
    except ValidationError as error:
        return None, forms + problems_of(error.errors(include_url=False), _KNOWN)
    return (None if forms else recipe), forms


def references(recipe: Recipe) -> Iterator[tuple[Location, Reference]]:
    """Every model that a recipe itself names, with its location."""
    if recipe.base_model is not None:
        yield ("base_model",), recipe.base_model
    owners: list[tuple[Location, Recipe | Module]] = [((), recipe)]
    owners += [(("modules", name), module) for name, module in recipe.modules.items()]
    for loc, owner in owners:
        for at, source in enumerate(owner.models):
            yield (*loc, "models", at, "model"), source.model
        for at, part in enumerate(owner.slices):
            if part.base_model is not None:
                yield (*loc, "slices", at, "base_model"), part.base_model
            for number, source in enumerate(part.sources):
                yield (*loc, "slices", at, "sources", number, "model"), source.model


def walk(recipe: Recipe, loc: Location = ()) -> Iterator[tuple[Location, Recipe]]:
    """The recipe and every recipe written inside it, each with its location, outer ones first."""
    yield loc, recipe
    for where, reference in references(recipe):
        if isinstance(reference, Recipe):
            yield from walk(reference, (*loc, *where))


def schema_json() -> str:
    """The JSON schema of a recipe, for editors; `tests/golden/recipe.schema.json` is the reviewed copy."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
    return json.dumps(_untitled(schema), indent=2) + "\n"


def _untitled(node: Any) -> Any:
    """Without the titles that pydantic makes from field names."""
    if isinstance(node, dict):
        return {key: _untitled(value) for key, value in node.items() if key != "title" or not isinstance(value, str)}
    return [_untitled(item) for item in node] if isinstance(node, list) else node
