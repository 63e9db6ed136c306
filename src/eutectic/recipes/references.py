"""References: how a recipe names a model, and where a name points.

A path, a URL, a pool's member, a repository of the hub, a model with an adapter, mergekit's mappings of these, or a
recipe in place.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import AfterValidator, BaseModel, Discriminator, Tag

from eutectic.recipes.faults import FILE, MERGEKIT, NOTHING, PATH, RECIPE
from eutectic.recipes.values import PathText
from eutectic.weights.files import Place
from eutectic.weights.locate import is_remote_text, locate
from eutectic.weights.member import MemberPath, member_at

if TYPE_CHECKING:
    from eutectic.recipes.schema import Recipe

__all__ = ["RECIPE_SUFFIXES", "FileReference", "MergekitReference", "Reference", "Strict", "resolve", "resolve_model"]

RECIPE_SUFFIXES = (".yaml", ".yml")


class Strict(BaseModel, frozen=True, extra="forbid"):
    """Frozen, and without keys that nobody reads."""


def _kind(value: Any) -> str | None:
    """Which kind of reference a value is meant to be."""
    if isinstance(value, str):
        return PATH
    if not isinstance(value, Mapping):
        return RECIPE if isinstance(value, BaseModel) else None
    if {"merge_method", "models", "slices", "modules"} & value.keys():
        return RECIPE
    return FILE if "path" in value else MERGEKIT if "model" in value else RECIPE


def _kind_of_adapter(value: Any) -> str | None:
    return _kind_of_model(value) if value is not None else NOTHING


def _kind_of_model(value: Any) -> str | None:
    return PATH if isinstance(value, str) else FILE if isinstance(value, Mapping) else None


class FileReference(Strict, frozen=True):
    """mergekit's mapping for one model: its path or hub id, and the revision of the latter."""

    path: PathText
    revision: PathText | None = None


class MergekitReference(Strict, frozen=True):
    """mergekit's mapping for a model, perhaps with an adapter."""

    model: Annotated[
        Annotated[PathText, Tag(PATH)] | Annotated[FileReference, Tag(FILE)], Discriminator(_kind_of_model)
    ]
    lora: Annotated[
        Annotated[PathText, Tag(PATH)] | Annotated[FileReference, Tag(FILE)] | Annotated[None, Tag(NOTHING)],
        Discriminator(_kind_of_adapter),
    ] = None
    override_architecture: None = None


def _text_of(reference: Any) -> Any:
    if isinstance(reference, MergekitReference):
        model = _text_of(reference.model)
        return model if reference.lora is None else f"{model}+{_text_of(reference.lora)}"
    if isinstance(reference, FileReference):
        return reference.path if reference.revision is None else f"{reference.path}@{reference.revision}"
    return reference


if TYPE_CHECKING:
    Reference = Union[str, "Recipe"]  # noqa: UP007  a forward reference
else:
    Reference = Annotated[
        Annotated[PathText, Tag(PATH)]
        | Annotated[FileReference, Tag(FILE)]
        | Annotated[MergekitReference, Tag(MERGEKIT)]
        | Annotated["Recipe", Tag(RECIPE)],
        Discriminator(_kind),
        AfterValidator(_text_of),
    ]


def resolve(reference: str, recipe: Recipe | None = None) -> Place:
    """Where a reference of a recipe points: from the current directory, or else from the recipe file's folder.

    What is no path there may be elsewhere: see `eutectic.weights.locate`. Failing that, the path is returned as
    written; whoever opens it reports that.

    >>> str(resolve("./models/base"))
    'models/base'
    """
    if is_remote_text(reference):
        return locate(reference)
    try:
        path = Path(reference).expanduser()
    except RuntimeError:  # "~nobody/model"
        path = Path(reference)
    folder = None if recipe is None else recipe.folder
    if "#" in reference:
        for place in (path, *(() if folder is None else (folder / path,))):
            if (member := member_at(place)) is not None:
                return member
    if folder is not None and not os.path.exists(path) and os.path.exists(folder / path):  # noqa: PTH110  no raise
        return folder / path
    return path if str(path) != str(Path(reference)) else locate(reference)


def resolve_model(reference: str, recipe: Recipe | None = None) -> tuple[Place, Place | None]:
    """Where a reference points, and where the adapter behind its last ``+`` does, if there is one.

    >>> [str(path) for path in resolve_model("./base+./lora")]
    ['base', 'lora']
    """
    model, plus, adapter = reference.rpartition("+")
    if not plus or not model or not adapter:
        return resolve(reference, recipe), None
    whole = None if is_remote_text(reference) else resolve(reference, recipe)
    if isinstance(whole, MemberPath) or (isinstance(whole, Path) and os.path.exists(whole)):  # noqa: PTH110  no raise
        return whole, None
    return resolve(model, recipe), resolve(adapter, recipe)
