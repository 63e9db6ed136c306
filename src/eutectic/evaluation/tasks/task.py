"""`Task`: one thing that a model is measured on. A task is read from a suite, knows its data, and scores samples."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, PrivateAttr

from eutectic.errors import RecipeError, SourceError, nearest
from eutectic.evaluation.scores import Scores, scored
from eutectic.evaluation.statistics import generator
from eutectic.recipes.references import Strict
from eutectic.recipes.values import PathText, Text
from eutectic.weights.checkpoint import open_checkpoint
from eutectic.weights.digest import hash_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eutectic.evaluation.subject import Subject

__all__ = ["DataTask", "Task"]


class Task(Strict, ABC, frozen=True):
    """A task: `score` measures a subject on it. `role` "base" marks what the base could do before (forgetting)."""

    name: Text
    role: Literal["task", "base"] = "task"
    expert: Text | None = Field(None, description="The expert that was trained for this task.")

    _folder: Path | None = PrivateAttr(default=None)

    def model_post_init(self, context: Any, /) -> None:
        """Take the folder of the suite from the validation context."""
        if context:
            self._folder = context["folder"]  # pyright: ignore[reportAttributeAccessIssue]  private: pydantic allows it

    @property
    @abstractmethod
    def unit(self) -> str:
        """What is measured: accuracy, bits/byte, ..."""

    @property
    def higher(self) -> bool:
        """Whether a larger number is better."""
        return True

    @abstractmethod
    def fingerprint(self, split: str) -> str:
        """A digest of everything but the subject that the score depends on."""

    @abstractmethod
    def score(self, subject: Subject, split: str = "test", fidelity: float = 1.0) -> Scores:
        """Measure a subject on a split; `fidelity` is the share of the samples to take, above 0 to 1."""

    def share(self, fidelity: float) -> float:
        """The share of the samples that is measured where `fidelity` is asked for: all, where there are no samples."""
        return 1.0

    def settings(self) -> str:
        """The task's own words as one text, for its fingerprint; names and roles change no score."""
        told = {"name", "role", "expert", "data", "labels"}
        return json.dumps(self.model_dump(mode="json", exclude=told), sort_keys=True)

    def path(self, written: str) -> Path:
        """A path of the suite: from the suite's folder, unless it is absolute."""
        path = Path(written).expanduser()
        return path if path.is_absolute() or self._folder is None else self._folder / path


class DataTask(Task, ABC, frozen=True):
    """A task whose samples lie in one file for each split."""

    data: dict[Text, PathText] = Field(min_length=1, description="A file for each split, such as test.")

    def file(self, split: str) -> Path:
        """The file of a split.

        Raises:
            RecipeError: the task has no such split. SourceError: the file is missing.
        """
        if split not in self.data:
            hint = nearest(split, self.data) or f"; it has {', '.join(self.data)}"
            raise RecipeError(f"task {self.name}: no split {split!r}{hint}")
        path = self.path(self.data[split])
        if not path.is_file():
            raise SourceError(f"task {self.name}: its {split} data {path} is missing; build or fetch it again")
        return path

    def fingerprint(self, split: str) -> str:
        """Of the data's bytes and the task's settings."""
        path = self.file(split)
        facts = path.stat()
        return hash_bytes(f"{_digest(path, facts.st_size, facts.st_mtime_ns)} {self.settings()}".encode())

    def table(self, split: str) -> Mapping[str, np.ndarray]:
        """The arrays of a split's safetensors file, kept between calls."""
        path = self.file(split)
        facts = path.stat()
        return _arrays(path, facts.st_size, facts.st_mtime_ns)

    def column(self, split: str, name: str) -> np.ndarray:
        """One array of a split's file.

        Raises:
            SourceError: the file has no such array.
        """
        table = self.table(split)
        if name not in table:
            raise SourceError(f"{self.file(split)}: task {self.name} needs {name!r}, found {', '.join(sorted(table))}")
        return table[name]

    def share(self, fidelity: float) -> float:
        return fidelity

    @abstractmethod
    def count(self, split: str) -> int:
        """How many samples a split has."""

    @abstractmethod
    def measure(self, subject: Subject, split: str, rows: np.ndarray) -> np.ndarray:
        """The score of each of the samples `rows`, in their order."""

    def score(self, subject: Subject, split: str = "test", fidelity: float = 1.0) -> Scores:
        """Measure a subject on a split; the samples of a smaller fidelity are among those of a larger one."""
        if not 0 < fidelity <= 1:
            raise RecipeError(f"fidelity must lie above 0 and be at most 1, not {fidelity:g}")
        count = self.count(split)
        if not count:
            raise SourceError(f"{self.file(split)}: task {self.name} has no samples")
        rows = np.arange(count)
        if fidelity < 1:
            rows = np.sort(generator(0, f"fidelity {count}").permutation(count)[: max(2, round(fidelity * count))])
        started = time.perf_counter()
        return scored(self.measure(subject, split, rows), time.perf_counter() - started)


@lru_cache(maxsize=256)
def _digest(path: Path, size: int, modified: int) -> str:
    return hash_bytes(path.read_bytes())


@lru_cache(maxsize=64)
def _arrays(path: Path, size: int, modified: int) -> Mapping[str, np.ndarray]:
    return {name: tensor.to_numpy() for name, tensor in open_checkpoint(path).items()}
