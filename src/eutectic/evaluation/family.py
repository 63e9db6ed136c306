"""A family on disk: a base, its experts, and what they are measured by. Read here, written by `eutectic.zoo`.

family.json   name, variant, version, seed, regime; the models' folders; each file's size and digest
suite.json    the tasks: name, kind, role, data of the train, validation and test splits
base/, experts/NAME/, joint/, mixtures/NAME/   models;   adapters/NAME/   the experts as PEFT folders
data/TASK.SPLIT.safetensors
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from eutectic.errors import FormatError, SourceError, VerificationError
from eutectic.weights.checkpoint import read_json
from eutectic.weights.digest import hash_file
from eutectic.weights.files import SourceFile

__all__ = ["Family", "load_family"]


@dataclass(frozen=True)
class Family:
    """A finished family. Paths are absolute or relative as `path` is; `description` is family.json.

    `joint` is one model trained from the base on all experts' data for the sum of their steps, `mixtures` are such
    models for other shares of the data, `adapters` are low-rank fine-tunes of the experts' names. `suite` is the file
    of the tasks.
    """

    path: Path
    name: str
    variant: str
    version: int
    seed: int
    regime: str
    base: Path
    experts: Mapping[str, Path]
    adapters: Mapping[str, Path]
    joint: Path | None
    mixtures: Mapping[str, Path]
    unlabelled: Mapping[str, Path]
    suite: Path
    description: Mapping[str, Any]


def load_family(path: str | Path, *, verify: bool = True) -> Family:
    """Open the family in a folder; with `verify`, every file must still have its recorded bytes.

    Raises:
        SourceError: there is none.
        FormatError: family.json does not describe one.
        VerificationError: a file is missing or was changed.
    """
    path = Path(path)
    if not (path / "family.json").is_file():
        raise SourceError(f"{path}: holds no family.json; build a family there first")
    description = read_json(path / "family.json")
    try:
        digests = {_inside(file): str(facts["blake3"]) for file, facts in description["files"].items()}
        folders = {
            key: {str(name): path / _inside(place) for name, place in description.get(key, {}).items()}
            for key in ("experts", "adapters", "mixtures", "unlabelled")
        }
        family = Family(
            path=path,
            name=str(description["name"]),
            variant=str(description["variant"]),
            version=int(description["version"]),
            seed=int(description["seed"]),
            regime=str(description["regime"]),
            base=path / _inside(description["base"]),
            joint=path / _inside(description["joint"]) if "joint" in description else None,
            suite=path / _inside(description["suite"]),
            description=description,
            **folders,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{path / 'family.json'}: does not describe a family ({error!r:.80})") from None
    if not family.experts:
        raise FormatError(f"{path / 'family.json'}: does not describe a family (it has no experts)")
    if verify:
        _verify(family, digests)
    return family


def _inside(place: Any) -> str:
    """A relative path that stays below the family's folder."""
    parts = PurePosixPath(place)
    if parts.is_absolute() or ".." in parts.parts:
        raise ValueError(f"{place} leaves the folder")
    return str(place)


def _verify(family: Family, digests: Mapping[str, str]) -> None:
    path = family.path
    models = [family.base, *family.experts.values(), *family.mixtures.values(), *([family.joint] * bool(family.joint))]
    wanted = {(model / file).relative_to(path).as_posix() for model in models if model for file in MODEL_FILES}
    for file in sorted({*digests, *wanted, family.suite.relative_to(path).as_posix()}):
        if not (path / file).is_file():
            raise VerificationError(f"{path / file}: is missing from a finished family; build it again")
        if hash_file(SourceFile(path / file)) != digests.get(file):
            raise VerificationError(f"{path / file}: was changed since the family was built; build it again")


MODEL_FILES = ("config.json", "model.safetensors")
