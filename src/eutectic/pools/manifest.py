"""pool.json: what a pool holds, strictly checked before anything relies on it.

POOL/pool.json                  this
POOL/core/                      a model folder: what the experts are differences to; absent where it lies elsewhere
POOL/shared.safetensors         what the experts have in common besides the core
POOL/experts/NAME.safetensors   what is one expert's own
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eutectic.errors import FormatError, RecipeError, SourceError
from eutectic.weights.checkpoint import read_json

__all__ = [
    "CORE", "EXPERTS", "FILE", "SHARED", "VERSION", "Core", "Entry", "Expert", "Manifest", "Stored", "check_name",
    "expert_file", "read_manifest",
]  # fmt: skip

FILE, CORE, SHARED, EXPERTS = "pool.json", "core", "shared.safetensors", "experts"
VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Stored(_Strict):
    """One file of the pool as it was written: BLAKE3 of all its bytes."""

    bytes: int = Field(ge=0)
    blake3: str


class Core(_Strict):
    """What the experts are differences to: where it was, which it is, and its files where they are stored."""

    source: str
    name: str
    identity: str
    stored: bool
    licence: str | None = None
    files: dict[str, Stored] = {}


class Expert(_Strict):
    """One expert: where it was packed from, its file, and how far from it the rebuilt one is.

    `file` is null where it differs from the core in nothing. `error` is the L2 norm of what the rebuilt tensors miss
    over that of their deltas, measured when it was packed (null: of
    an expert that changes nothing, something is missed);
    `absent` are tensors of integers that differ and are taken from the core.
    """

    source: str
    name: str
    identity: str
    licence: str | None
    file: Stored | None
    error: float | None
    settings: dict[str, Any] = {}
    absent: list[str] = []


class Entry(_Strict):
    """One line of the log: what was done with which experts, the pool's bytes after it, and who all of them are."""

    time: str
    action: str
    experts: list[str]
    scheme: str
    bytes: int
    identities: dict[str, str]


class Manifest(_Strict):
    """A whole pool.json.

    `settings` are those of the scheme that all tensors and experts have in common, `tensors` those that differ from
    tensor to tensor. `base` is what it was packed from, where the core is another model than the base.
    """

    pool: int
    eutectic: str
    scheme: str
    settings: dict[str, Any]
    tensors: dict[str, dict[str, Any]] = {}
    core: Core
    base: Core | None = None
    shared: Stored | None
    experts: dict[str, Expert]
    log: list[Entry]

    def text(self) -> str:
        """The document as it is written."""
        return json.dumps(self.model_dump(), indent=1) + "\n"

    @property
    def files(self) -> dict[str, Stored]:
        """Every file that belongs to the pool besides this one, by its name below the folder."""
        found = {f"{CORE}/{name}": file for name, file in self.core.files.items()}
        if self.shared is not None:
            found[SHARED] = self.shared
        own = {expert_file(name): expert.file for name, expert in self.experts.items()}
        return found | {name: file for name, file in own.items() if file is not None}


def expert_file(name: str) -> str:
    """The file of an expert, below the pool's folder."""
    return f"{EXPERTS}/{name}.safetensors"


def check_name(name: str) -> str:
    """A name that an expert may have.

    Raises:
        RecipeError: another one, which could not be part of a reference or of a file's name.
    """
    if not _NAME.fullmatch(name):
        raise RecipeError(
            f"{name!r:.80} cannot name an expert: letters, digits, '.', '_' and '-' only, a letter or digit first; "
            "give it a name with NAME=PATH"
        )
    return name


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a pool.

    Raises:
        SourceError: there is none. FormatError: it is malformed, or of another version.
    """
    path = folder / FILE
    if not path.is_file():
        raise SourceError(f"{folder}: no pool ({FILE} is missing); `eutectic pool pack` makes one")
    document = read_json(path)
    version = document.get("pool")
    if version != VERSION or isinstance(version, bool):
        newer = "; a newer version of eutectic made it" if isinstance(version, int) and version > VERSION else ""
        raise FormatError(f"{path}: a pool of version {version!r:.20}; this reads {VERSION}{newer}")
    try:
        found = Manifest.model_validate(document)
    except ValidationError as error:
        places = [".".join(map(str, fault["loc"])) or "the whole file" for fault in error.errors(include_url=False)]
        shown = ", ".join(list(dict.fromkeys(places))[:6])
        raise FormatError(f"{path}: missing, unknown or of the wrong kind: {shown}") from None
    for name in found.experts:
        if not _NAME.fullmatch(name):  # it is part of a file's name, which must lie in the pool
            raise FormatError(f"{path}: {name!r:.80} cannot name an expert")
    odd = [name for name in found.experts if not _NAME.fullmatch(name)]
    odd += [name for name in found.core.files if ".." in Path(name).parts or Path(name).is_absolute()]
    if odd:
        raise FormatError(f"{path}: {odd[0]!r:.80} cannot be a file of a pool")
    return found
