"""The checkpoints of a training run, ordered by step: RUN/checkpoint-<step> as transformers' Trainer saves them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eutectic.errors import SourceError
from eutectic.weights.checkpoint import read_json

__all__ = ["TRAINER_STATE", "Saved", "find_checkpoints"]

TRAINER_STATE = "trainer_state.json"
_ADAPTER = "adapter_config.json"
_WEIGHTS = re.compile(r"(?:.*\.safetensors|pytorch_model.*\.bin)(?:\.index\.json)?")
_ADAPTER_WEIGHTS = re.compile(r"adapter_model\.(?:safetensors|bin)")
_FOLDER = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Saved:
    """One checkpoint of a run.

    `step` is None where neither its name nor its trainer_state.json tells; `rank` says an adapter's ranks, by module.
    """

    path: Path
    step: int | None = None
    adapter: bool = False
    rank: str = ""

    @property
    def name(self) -> str:
        """The name of its folder or file."""
        return self.path.name


def find_checkpoints(sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Saved]:
    """The checkpoints of a run's folder, or of a list of folders and weight files, ordered by step.

    A list of which not every step is known stays in its order. Optimiser states beside a model are not looked at.

    Raises:
        SourceError: there are none, one holds no model, two have one step, or models and adapters are mixed.
    """
    listed = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    paths = [Path(source) for source in listed]
    if not paths:
        raise SourceError("no checkpoint is named; name a run's folder, or its checkpoints")
    for path in paths:
        if not path.exists():
            raise SourceError(f"{path}: no such file or folder; checkpoints of a run are read from this machine")
    try:
        found = [_read(path) for path in (_of_run(paths[0]) if len(paths) == 1 else paths)]
    except OSError as error:
        raise SourceError(f"{error.filename}: cannot be read: {error.strerror}") from None
    kinds = {saved.adapter: saved.path for saved in found}
    if len(kinds) == 2:
        raise SourceError(f"{kinds[True]} is an adapter and {kinds[False]} a model; average them apart")
    steps: dict[int, Path] = {}
    for saved in found:
        if saved.step is not None and (other := steps.setdefault(saved.step, saved.path)) is not saved.path:
            raise SourceError(f"{other} and {saved.path} are both of step {saved.step}; name one of them")
    if len(steps) == len(found):
        found.sort(key=lambda saved: saved.step or 0)
    return found


def _of_run(run: Path) -> list[Path]:
    if not run.is_dir():
        raise SourceError(f"{run}: is one file; name a run's folder, or two or more checkpoints")
    inside = sorted(path for path in run.iterdir() if _FOLDER.fullmatch(path.name) and path.is_dir())
    if not inside:
        cure = "it is a checkpoint itself: name two or more" if _holds_weights(run) else "name a run's folder"
        raise SourceError(f"{run}: holds no folder checkpoint-<step>, as a Trainer saves them; {cure}")
    return inside


def _holds_weights(folder: Path) -> bool:
    names = _ADAPTER_WEIGHTS if (folder / _ADAPTER).is_file() else _WEIGHTS
    return any(names.fullmatch(path.name) for path in folder.iterdir())


def _read(path: Path) -> Saved:
    if path.is_dir() and not _holds_weights(path):
        # the states of optimisers and generators beside it are weight files, too, and must not be taken for a model
        raise SourceError(f"{path}: holds no weights of a model or adapter; is it whole, and saved as one model?")
    if not (path / _ADAPTER).is_file():
        return Saved(path, _step(path))
    config = read_json(path / _ADAPTER)
    rank = json.dumps([config.get("r"), config.get("rank_pattern") or {}], sort_keys=True)
    return Saved(path, _step(path), True, rank)


def _step(path: Path) -> int | None:
    named = re.search(r"(?:checkpoint|step)[-_]?(\d+)\Z", path.name if path.is_dir() else path.stem)
    if named:
        return int(named[1])
    if (path / TRAINER_STATE).is_file():
        step = read_json(path / TRAINER_STATE).get("global_step")
        return step if isinstance(step, int) and not isinstance(step, bool) else None
    return None
