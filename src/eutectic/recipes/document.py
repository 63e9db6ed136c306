"""A recipe's text as plain data, with the place of every key: YAML, JSON, or a mapping from Python.

Only dict, list, str, int, float, bool and None come out. Bounds: 1 MiB of YAML, 16 MiB of JSON (lock files),
64 levels, and in YAML 100,000 values after aliases are expanded. Whatever is wrong with the text is a
`RecipeError` whose problems start with their place.
"""

from __future__ import annotations

import json
import numbers
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from eutectic.errors import RecipeError, nearest
from eutectic.recipes.yaml_text import MOST_DEPTH, integer, position, read_yaml, refused, well_formed

__all__ = ["Document", "Location", "load_document"]

Location = tuple[str | int, ...]

MOST_BYTES = 1 << 20
MOST_JSON_BYTES = 16 << 20
MOST_JSON_NODES = 4_000_000

EXAMPLE = """\
    merge_method: linear
    models:
      - {model: ./models/a, parameters: {weight: 0.5}}
      - {model: ./models/b, parameters: {weight: 0.5}}
    dtype: float32"""


@dataclass(frozen=True, eq=False)
class Document:
    """Plain `data` with the place of each key. `name` is what places start with; `folder` is the file's."""

    name: str
    data: Any
    folder: Path | None = None
    _root: yaml.Node | None = field(default=None, repr=False)
    _data: Any = field(default=None, repr=False)  # the whole document, where `data` is a part
    _above: Location = ()

    def place(self, loc: Location) -> str:
        """``recipe.yaml:7:5``, or ``recipe.lock.json: models[1].model``; the nearest place around a missing key.

        >>> load_document("merge_method: linear\\nmodels:\\n  - model: a", name="r.yaml").place(("models", 0, "model"))
        'r.yaml:3:5'
        >>> load_document({"models": [{"model": "a"}]}).place(("models", 0, "model"))
        'recipe: models[0].model'
        """
        if self._root is not None:
            line, column = position(self._root, self._above + loc)
            return f"{self.name}:{line}:{column}"
        known = [step for step, _ in self._steps(loc)]
        path = "".join(_shown_step(step) for step in known).lstrip(".")
        return f"{self.name}: {path}" if path else self.name

    def order(self, loc: Location) -> tuple[int, ...]:
        """A sort key: places in the order in which a reader meets them."""
        if self._root is not None:
            return position(self._root, self._above + loc)
        return tuple(index for _, index in self._steps(loc))

    def part(self, *loc: str | int) -> Document:
        """The document below `loc`, with places that still count from the top (the recipe in a lock file)."""
        data = self.data
        for step in loc:
            data = data[step]
        return replace(self, data=data, _data=self._whole(), _above=self._above + loc)

    def _whole(self) -> Any:
        return self._data if self._above else self.data

    def _steps(self, loc: Location) -> Iterator[tuple[str | int, int]]:
        node = self._whole()
        for step in self._above + loc:
            if isinstance(node, dict) and step in node:
                yield step, list(node).index(step)
                node = node[step]
            elif isinstance(node, list) and isinstance(step, int) and 0 <= step < len(node):
                yield step, step
                node = node[step]
            else:
                return


def load_document(source: str | bytes | os.PathLike[str] | Mapping[str, Any], *, name: str | None = None) -> Document:
    """Read a file (a path object), a text (str or bytes) or a mapping, into plain data with places.

    Args:
        source: what to read; a `str` is the text itself, a path must be a `Path`.
        name: what places start with; the path as given, or ``recipe``. A name ending in ``.json`` is read as
            JSON, everything else as YAML.

    Raises:
        RecipeError: unreadable, too large, not UTF-8, malformed, ambiguous (duplicate keys) or empty.

    >>> load_document("t: 0.5").data
    {'t': 0.5}
    """
    if isinstance(source, Mapping):
        name = name or "recipe"
        return Document(name, _Plain(name).build(source, ()))
    folder = None
    if isinstance(source, os.PathLike):
        name = name or os.fspath(source)
        source, folder = _read(Path(source), name), Path(source).absolute().parent
    name = name or "recipe"
    text = _decode(source, name) if isinstance(source, bytes) else source
    most = _most_bytes(name)
    if len(text) > most:
        raise refused(name, f"{name}: longer than {most >> 20} MiB; a recipe never needs that")
    if name.endswith(".json"):
        data, root = _read_json(text, name), None
    else:
        data, root = read_yaml(text, name)
    if data is None:
        raise RecipeError(f"{name} is an empty recipe; a small one looks like this:\n{EXAMPLE}")
    return Document(name, data, folder, root)


def _most_bytes(name: str) -> int:
    return MOST_JSON_BYTES if name.endswith(".json") else MOST_BYTES


def _read(path: Path, name: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_most_bytes(name) + 1)
    except FileNotFoundError:
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise RecipeError(f"{name} does not exist{nearest(path.name, beside)}") from None
    except IsADirectoryError:
        raise RecipeError(f"{name} is a folder, not a recipe file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise RecipeError(f"{name!r} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _decode(raw: bytes, name: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        sentence = f"the byte {raw[error.start]:#04x} is not UTF-8; save the file as UTF-8"
        raise refused(name, f"{name}:{line}:{column}: {sentence}") from None


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as written, duplicate keys included."""


class _TooLarge:
    """A JSON integer of more than 64 bits, kept until its place is known."""

    def __init__(self, sentence: str) -> None:
        self.sentence = sentence


def _json_integer(digits: str) -> Any:
    try:
        return integer(digits)
    except ValueError as error:
        return _TooLarge(str(error))


def _read_json(text: str, name: str) -> Any:
    if not text.strip():
        return None
    try:
        data = json.loads(text, object_pairs_hook=_Pairs, parse_int=_json_integer)
    except json.JSONDecodeError as error:
        raise refused(name, f"{name}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
    except RecursionError:
        raise refused(name, f"{name}: nested more than {MOST_DEPTH} deep; a recipe never needs that") from None
    return _Plain(name).build(data, ())


class _Plain:
    """A copy made of plain data only, from parsed JSON or from a user's objects; all faults in one error."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes = 0
        self.problems: list[str] = []

    def build(self, value: Any, loc: Location) -> Any:
        data = self.copy(value, loc)
        if self.problems:
            raise refused(self.name, *self.problems)
        return data

    def fault(self, loc: Location, sentence: str) -> None:
        path = "".join(_shown_step(step) for step in loc).lstrip(".")
        self.problems.append(f"{self.name}: {path}: {sentence}" if path else f"{self.name}: {sentence}")

    def copy(self, value: Any, loc: Location) -> Any:
        self.nodes += 1
        if len(loc) > MOST_DEPTH or self.nodes > MOST_JSON_NODES:
            what = "nested more than 64 deep" if len(loc) > MOST_DEPTH else "too many values"
            raise refused(self.name, f"{self.name}: {what}; a recipe never needs that")
        if isinstance(value, _Pairs):
            return self.mapping(value, loc)
        if isinstance(value, Mapping):
            return self.mapping(list(value.items()), loc)
        if isinstance(value, (list, tuple)):
            return [self.copy(item, (*loc, index)) for index, item in enumerate(value)]
        try:
            return _plain_scalar(value)
        except ValueError as error:
            self.fault(loc, str(error))

    def mapping(self, pairs: list[tuple[Any, Any]], loc: Location) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key, value in pairs:
            if not isinstance(key, str):
                self.fault(loc, f"a key must be text; found {str(key)[:40]}")
            elif key in data:
                self.fault((*loc, key), f"key {key[:60]!r} appears twice")
            else:
                data[key] = self.copy(value, (*loc, key))
        return data


def _plain_scalar(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return well_formed(str.__str__(value))
    if isinstance(value, os.PathLike):
        return well_formed(str(os.fspath(value)))
    if isinstance(value, numbers.Integral):  # numpy's integers too
        return integer(str(int(value))) if abs(int(value)) < 1 << 70 else integer("9" * 24)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, _TooLarge):
        raise ValueError(value.sentence)
    raise ValueError(f"a {type(value).__name__} is not plain data; use text, numbers, lists and mappings")


def _shown_step(step: str | int) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step}" if step.isidentifier() or step.replace("-", "_").isidentifier() else f"[{step[:40]!r}]"
