"""What a checkpoint's own files say that it was made from, against what was found in its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eutectic.errors import FormatError, RecipeError, SourceError
from eutectic.evaluation.licences import conflicts
from eutectic.evaluation.trace import Trace
from eutectic.recipes.card import CARD, LOCK, front_matter, locked_names, stated_base
from eutectic.recipes.document import load_document
from eutectic.recipes.provenance import RECIPE, public_name
from eutectic.weights.checkpoint import Checkpoint
from eutectic.weights.files import Place, open_file

__all__ = ["Declared", "Lineage", "declared_parents", "licence_of", "trace_lineage"]

RECIPES = ("mergekit_config.yml", "mergekit_config.yaml", RECIPE)
MOST_BYTES = (1 << 20) + 1  # one more than a recipe may have
MODEL_KEYS = ("model", "base_model")  # of a recipe, at any depth


@dataclass(frozen=True)
class Declared:
    """A parent that a file of the checkpoint names."""

    name: str
    file: str


@dataclass(frozen=True)
class Lineage:
    """Declared parents against found ones, by candidates' names, and what may conflict in their licences.

    `undeclared`: found and not declared. `without_part`: declared candidates whose coefficients are negligible.
    `not_examined`: declared, but not among the candidates. `unreadable` has a sentence for each file that could not
    be read; `licences` maps the checkpoint ("") and every candidate to the licence that its card states.
    """

    declared: tuple[Declared, ...]
    undeclared: tuple[str, ...]
    without_part: tuple[str, ...]
    not_examined: tuple[str, ...]
    unreadable: tuple[str, ...]
    licences: Mapping[str, str | None]
    conflicts: tuple[str, ...]


def trace_lineage(checkpoint: Checkpoint, candidates: Mapping[str, Checkpoint], found: Trace) -> Lineage:
    """Compare what `checkpoint`'s files declare with the parents that `trace` found among `candidates`.

    Names are compared by their last part, without case: a folder's name, or what follows the organisation on a hub.
    The base counts as found wherever a declaration names it: its coefficient is zero where the others' sum is one.
    """
    folder = _folder(checkpoint)
    declared, unreadable = ([], []) if folder is None else declared_parents(folder)
    keys = {label: _keys(label, candidate) for label, candidate in candidates.items()}
    said = {_last(entry.name) for entry in declared}
    parents = list(found.parents)
    named = [label for label in candidates if keys[label] & said]
    base = found.candidates[0] if found.based else None
    known = set().union(*keys.values()) if keys else set()
    licences = {"": licence_of(checkpoint), **{label: licence_of(c) for label, c in candidates.items()}}
    return Lineage(
        tuple(declared),
        tuple(label for label in parents if label not in named),
        tuple(label for label in named if label not in parents and label != base),
        tuple(dict.fromkeys(entry.name for entry in declared if _last(entry.name) not in known)),
        tuple(unreadable),
        licences,
        tuple(conflicts(licences[""], {label: licences[label] for label in parents})),
    )


def declared_parents(folder: Place) -> tuple[list[Declared], list[str]]:
    """The parents that the lock file, the recipe and the model card in `folder` name, and what could not be read."""
    declared: dict[tuple[str, str], Declared] = {}
    unreadable = []

    def add(names: Sequence[str], file: str) -> None:
        for name in names:
            declared.setdefault((_last(name), file), Declared(name, file))

    if (folder / LOCK).is_file():
        try:
            add(locked_names(folder / LOCK), LOCK)
        except FormatError as error:
            unreadable.append(str(error))
    for file in RECIPES:
        if (folder / file).is_file():
            try:
                opened = open_file(folder / file)
                data = load_document(bytes(opened.read(0, min(opened.size, MOST_BYTES))), name=file).data
                add([part for name in _models(data) for part in name.split("+")], file)
            except (RecipeError, SourceError) as error:
                unreadable.append(" ".join(str(error).split())[:200])
    add(stated_base(folder / CARD), CARD)
    return list(declared.values()), unreadable


def licence_of(checkpoint: Checkpoint) -> str | None:
    """The licence that the model card beside a checkpoint states; the name that the card gives to an "other" one."""
    folder = _folder(checkpoint)
    front = {} if folder is None else front_matter(folder / CARD)
    stated, name = front.get("license"), front.get("license_name")
    if stated == "other" and isinstance(name, str):
        return name
    return stated if isinstance(stated, str) else None


def _models(data: Any) -> Iterator[str]:
    """Every model that a recipe refers to."""
    if isinstance(data, list):
        for item in data:
            yield from _models(item)
    elif isinstance(data, dict):
        for key, value in data.items():
            if key in MODEL_KEYS and isinstance(value, str):
                yield value
            elif key in MODEL_KEYS and isinstance(value, dict) and isinstance(value.get("path"), str):
                yield value["path"]  # also spelled as a mapping: {path: ..., revision: ...}
            else:
                yield from _models(value)


def _folder(checkpoint: Checkpoint) -> Place | None:
    if checkpoint.path is None:
        return None
    return checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent


def _keys(label: str, checkpoint: Checkpoint) -> set[str]:
    """The names that a declaration may use for a candidate."""
    names = {_last(part) for part in label.split("+")}
    return names if checkpoint.path is None else names | {_last(public_name(checkpoint.path)[0])}


def _last(name: str) -> str:
    """The last part of a path or hub id, without a revision, in lower case."""
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2].partition("@")[0].lower()
