"""Writing a family: staged beside its place, finished at once or not at all, and found again when asked for twice.

What is in the folder is told in `eutectic.evaluation.family`.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from eutectic.errors import OutputError, RecipeError, SourceError, VerificationError
from eutectic.evaluation.family import Family, load_family
from eutectic.weights.checkpoint import read_json
from eutectic.weights.digest import hash_bytes
from eutectic.weights.exchange import exchange_folders
from eutectic.weights.safetensors import write_safetensors

__all__ = ["SPLITS", "FamilyWriter", "Report", "build_family"]

Report = Callable[[str], None]
SPLITS = ("train", "validation", "test")
OWN_FILES = re.compile(
    r"family\.json|suite\.json|(data|heads)/[^/]+\.safetensors"
    r"|(base|joint|(experts|mixtures)/[^/]+)/(config\.json|model\.safetensors|(tokenizer|special_tokens|vocab)[^/]*)"
    r"|adapters/[^/]+/adapter_(config\.json|model\.safetensors)"
)


class FamilyWriter:
    """Collects a family in a folder: models, adapters, tasks with their data, then the two documents about them."""

    def __init__(self, folder: Path, report: Report) -> None:
        self.folder = folder
        self.report = report
        self.facts: dict[str, Any] = {}
        """More of family.json: whatever should be known about the making."""
        self._places: dict[str, Any] = {}
        self._tasks: list[dict[str, Any]] = []
        self._files: dict[str, dict[str, Any]] = {}

    def add_model(self, place: str, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> None:
        """One model, laid out as transformers lays it out. `place`: base, joint, experts/NAME or mixtures/NAME."""
        self._remember(place)
        self._write_tensors(f"{place}/model.safetensors", tensors)
        self._write_json(f"{place}/config.json", config)

    def add_adapter(self, name: str, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> None:
        """One adapter of PEFT's format, trained from the base."""
        self._remember(f"adapters/{name}")
        self._write_tensors(f"adapters/{name}/adapter_model.safetensors", tensors)
        self._write_json(f"adapters/{name}/adapter_config.json", config)

    def add_head(self, name: str, tensors: Mapping[str, np.ndarray]) -> str:
        """A task's own last layer, which stays outside the models that are merged; returns its path."""
        self._write_tensors(f"heads/{name}.safetensors", tensors)
        return f"heads/{name}.safetensors"

    def add_task(
        self, name: str, kind: str, splits: Mapping[str, Mapping[str, np.ndarray]], *, role: str = "task", **more: Any
    ) -> None:
        """A task and its data. `more` goes to the suite as it is: `expert`, `verifier`, `head`."""
        data = {split: f"data/{name}.{split}.safetensors" for split in SPLITS}
        for split, place in data.items():
            self._write_tensors(place, splits[split])
        self._tasks.append({"name": name, "kind": kind, "role": role, **more, "data": data})

    def add_file(self, place: str, data: bytes) -> None:
        """Any other file, a tokenizer's for one."""
        (self.folder / place).write_bytes(data)
        self._record(place)

    def finish(self, identity: Mapping[str, Any], packages: tuple[str, ...]) -> None:
        """Write suite.json and family.json; nothing may follow."""
        title = f"{identity['name']}-{identity['variant']}"
        self._write_json("suite.json", {"suite": 1, "name": title, "tasks": self._tasks})
        made_with = {package: version(package) for package in packages}
        description = {**identity, **self._places, "suite": "suite.json", **self.facts, "made_with": made_with}
        self._write_json("family.json", {**description, "files": dict(sorted(self._files.items()))})

    def _remember(self, place: str) -> None:
        kind, _, name = place.partition("/")
        if name:
            self._places.setdefault(kind, {})[name] = place
        else:
            self._places[kind] = place

    def _write_tensors(self, place: str, tensors: Mapping[str, np.ndarray]) -> None:
        path = self.folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(path, tensors, {"format": "pt"})
        self._record(place)

    def _write_json(self, place: str, document: Mapping[str, Any]) -> None:
        self.add_file(place, (json.dumps(document, indent=2) + "\n").encode())

    def _record(self, place: str) -> None:
        data = (self.folder / place).read_bytes()
        self._files[place] = {"bytes": len(data), "blake3": hash_bytes(data)}


def build_family(
    out: str | Path,
    identity: Mapping[str, Any],
    prepare: Callable[[], Callable[[FamilyWriter], None]],
    *,
    packages: tuple[str, ...] = ("torch",),
    force: bool = False,
    report: Report | None = None,
) -> Family:
    """Build the family of this identity in the folder `out`, or return it if it lies there finished.

    Args:
        identity: name, variant, version (of the construction), seed, regime, and what else tells families apart.
        prepare: loads the data, and returns what fills the folder. What either raises ends the build, and nothing is
            left; what the first raises comes before any folder is made.
        packages: whose versions family.json records.
        force: replace what lies at `out`, provided that it holds nothing but a family's own files.

    Raises:
        OutputError: `out` exists and is not this family, or cannot be written.
    """
    seed = identity["seed"]
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise RecipeError(f"seed {seed!r} is not an integer from 0 to 2**63 - 1")
    out = Path(out).resolve()
    finished = _reuse(out, identity, force)
    if finished is not None:
        return finished
    write = prepare()
    try:
        present = next(p for p in (out, *out.parents) if p.exists())
        if out != present and not present.is_dir():
            raise OutputError(f"{present}: exists and is not a folder")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{out.name}.partial-", dir=out.parent) as staging:
            new = Path(staging) / out.name
            new.mkdir()
            writer = FamilyWriter(new, report or (lambda line: None))
            write(writer)
            writer.finish(identity, packages)
            if force and out.exists():
                exchange_folders(new, out)
            else:
                new.rename(out)  # fails, as it should, if another build was faster
    except OSError as error:
        raise OutputError(f"{out}: the family cannot be written: {error.strerror or error}") from None
    return load_family(out)


def _reuse(out: Path, identity: Mapping[str, Any], force: bool) -> Family | None:
    """The finished family at `out`, or None if the way is free to build one; otherwise an error."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not out.is_dir():
        raise OutputError(f"{out}: exists and is not a folder")
    if force:
        entries = (entry for entry in out.rglob("*") if entry.is_symlink() or not entry.is_dir())
        foreign = next(
            (name for name in (e.relative_to(out).as_posix() for e in entries) if not _is_own(out, name)), ""
        )
        if foreign:  # a merge stored inside the family, or a mistaken path: not ours to delete
            raise OutputError(f"{out}: holds {foreign}, which is no part of a family; move it away first")
        return None
    if not (out / "family.json").is_file():
        raise OutputError(f"{out}: is not empty and holds no family; choose another folder")
    try:
        family = load_family(out)
    except (SourceError, VerificationError) as error:
        raise OutputError(f"{error}. Choose another folder, or build anew with --force.") from None
    for key, wanted in identity.items():
        found = family.description.get(key)
        if found != wanted:
            raise OutputError(
                f"{out}: holds the family of {key} {found}, not {wanted}; "
                "choose another folder, or replace it with --force"
            )
    return family


def _is_own(out: Path, name: str) -> bool:
    """Whether a family's builder wrote the file: as family.json lists it, or, without a list, by its place."""
    try:
        listed = read_json(out / "family.json")["files"]
        return name == "family.json" or name in listed
    except (SourceError, KeyError, TypeError):
        return OWN_FILES.fullmatch(name) is not None
