"""recipe.lock.json read back: what a merge was made from, strictly checked before anything relies on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eutectic.errors import FormatError
from eutectic.recipes.document import load_document
from eutectic.recipes.schema import Recipe, parse_recipe
from eutectic.recipes.tree import check_parameters
from eutectic.weights.checkpoint import read_json

__all__ = ["Lock", "is_lock", "load_lock", "read_lock"]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class LockedFile(_Strict):
    """One weight file of a source as it was; `etag` if a server gave it, `blake3` if all of its bytes were hashed."""

    name: str
    bytes: int
    modified_ns: int
    header: str
    etag: str | None = None
    blake3: str | None = None


class LockedSource(_Strict):
    """One source as it was."""

    path: str
    name: str
    revision: str | None
    files: list[LockedFile]


class LockedOptions(_Strict):
    """The options that decide the bytes."""

    seed: int = Field(ge=0)
    shard_bytes: int = Field(gt=0)
    allow_mismatch: bool
    allow_nonfinite: bool
    torch_only: bool
    device: Literal["cpu", "cuda"] = "cpu"


class LockedOutput(_Strict):
    """Digests of everything that was written."""

    digest: str
    headers: dict[str, str]
    tensors: dict[str, str]
    files: dict[str, str]


class Lock(_Strict):
    """A whole lock file."""

    lock: Literal[1]  # LOCK_VERSION of provenance.py
    eutectic: str
    fingerprint: str
    recipe: dict[str, Any]
    text: str
    sources: list[LockedSource]
    options: LockedOptions
    versions: dict[str, str]
    output: LockedOutput


def is_lock(path: Path) -> bool:
    """Whether a file is a lock file rather than a recipe written as JSON."""
    return path.suffix == ".json" and path.is_file() and "lock" in read_json(path)


def read_lock(path: Path) -> Lock:
    """A lock file's content.

    Raises:
        FormatError: it is not JSON, or a part is missing, unknown or of the wrong kind.
    """
    try:
        return Lock.model_validate(read_json(path))
    except ValidationError as error:
        places = [".".join(map(str, fault["loc"])) or "the whole file" for fault in error.errors(include_url=False)]
        shown = ", ".join(list(dict.fromkeys(places))[:6])
        raise FormatError(
            f"{path} is not a lock file that this version reads; missing, unknown or of the wrong kind: {shown}"
        ) from None


def load_lock(path: Path) -> tuple[Recipe, Lock]:
    """The recipe in a lock file, and everything that was recorded with it.

    Raises:
        FormatError: see `read_lock`. RecipeError: its recipe no longer makes sense.
    """
    lock = read_lock(path)
    return parse_recipe(load_document(path).part("recipe"), check=check_parameters), lock
