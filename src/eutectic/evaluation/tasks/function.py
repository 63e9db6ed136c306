"""A Python function that measures: it gets the checkpoint and returns a number, or one for each sample."""

from __future__ import annotations

import math
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from eutectic.errors import NonFiniteError, RecipeError
from eutectic.evaluation.scores import Scores, scored
from eutectic.evaluation.subject import Subject, weights_of
from eutectic.evaluation.tasks.task import Task
from eutectic.recipes.values import Text
from eutectic.weights.digest import hash_bytes

__all__ = ["Function", "as_scores"]


class Function(Task, frozen=True):
    """``module:function``, called with the `Checkpoint` and the split's name; a suite that names one runs its code.

    The module is installed, or a file beside the suite. The function returns a number, a sequence with a number for
    each sample, or `Scores`.
    """

    kind: Literal["python"]
    function: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]
    lower_is_better: bool = False
    unit_name: Text = Field("score", alias="unit", description="What is measured, for tables.")
    version: str = Field("", description="Change it when the function changes, so that nothing old is reused.")

    @property
    def unit(self) -> str:
        return self.unit_name

    @property
    def higher(self) -> bool:
        return not self.lower_is_better

    def fingerprint(self, split: str) -> str:
        """Of the function's name and version: what it reads is not known here."""
        return hash_bytes(f"{split} {self.settings()}".encode())

    def score(self, subject: Subject, split: str = "test", fidelity: float = 1.0) -> Scores:
        model = weights_of(subject, self.name)
        module, _, attribute = self.function.partition(":")
        try:
            found: Any = _imported(module, self._folder)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise RecipeError(f"task {self.name}: {self.function} cannot be imported: {error}") from None
        started = time.perf_counter()
        return as_scores(found(model.checkpoint, split), self.name, time.perf_counter() - started)


def _imported(module: str, folder: Path | None) -> Any:
    """A module; the suite's folder is looked in after everything that is installed."""
    if folder is None:
        return import_module(module)
    place = str(folder.absolute())
    sys.path.append(place)
    try:
        return import_module(module)
    finally:
        sys.path.remove(place)


def as_scores(found: Any, task: str, seconds: float) -> Scores:
    """What a function returned, as scores.

    Raises:
        RecipeError: it is no number. NonFiniteError: it is NaN or infinite.
    """
    if isinstance(found, Scores):
        return found
    if isinstance(found, (int, float, np.floating, np.integer)) and not isinstance(found, bool):
        if not math.isfinite(found):
            raise NonFiniteError(f"task {task}: scored {found}")
        return Scores(float(found), math.nan, 1, seconds)
    try:
        return scored(np.asarray(found, dtype=np.float64), seconds)
    except (TypeError, ValueError):
        raise RecipeError(f"task {task}: returned {type(found).__name__}; return a number or a sequence") from None
