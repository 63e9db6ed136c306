"""A program that measures: it gets the model's folder and prints a number."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import time
from typing import Any, Literal, TypeGuard

from pydantic import Field

from eutectic.errors import NonFiniteError, SourceError
from eutectic.evaluation.scores import Scores, scored
from eutectic.evaluation.subject import Subject, weights_of
from eutectic.evaluation.tasks.task import Task
from eutectic.recipes.values import Text
from eutectic.weights.digest import hash_bytes

__all__ = ["Command"]


class Command(Task, frozen=True):
    """A command line, run without a shell; ``{model}`` is the model's folder, ``{split}`` the split's name.

    The last line that it prints is a number, or a JSON object with ``value`` and perhaps ``stderr``, ``n`` or
    ``samples``. A recipe is written to a temporary folder first.
    """

    kind: Literal["command"]
    command: Text
    lower_is_better: bool = False
    unit_name: Text = Field("score", alias="unit", description="What is measured, for tables.")
    timeout: float = Field(3600, gt=0, description="Seconds.")
    version: str = Field("", description="Change it when the program changes, so that nothing old is reused.")

    @property
    def unit(self) -> str:
        return self.unit_name

    @property
    def higher(self) -> bool:
        return not self.lower_is_better

    def fingerprint(self, split: str) -> str:
        """Of the command line and its version: what the program reads is not known here."""
        return hash_bytes(f"{split} {self.settings()}".encode())

    def score(self, subject: Subject, split: str = "test", fidelity: float = 1.0) -> Scores:
        started = time.perf_counter()
        with weights_of(subject, self.name).folder() as folder:
            words = [
                word.replace("{model}", str(folder)).replace("{split}", split) for word in shlex.split(self.command)
            ]
            try:
                done = subprocess.run(
                    words, capture_output=True, text=True, timeout=self.timeout, cwd=self._folder, check=False
                )
            except FileNotFoundError:
                raise SourceError(f"task {self.name}: there is no program {words[0]!r}") from None
            except subprocess.TimeoutExpired:
                raise SourceError(f"task {self.name}: {words[0]} took longer than {self.timeout:g} s") from None
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "it printed nothing").splitlines()[-1]
            raise SourceError(f"task {self.name}: {words[0]} ended with {done.returncode}: {last[:200]}")
        return read_score(self.name, done.stdout, time.perf_counter() - started)


def read_score(task: str, printed: str, seconds: float) -> Scores:
    """The score in the last line that a program printed.

    Raises:
        SourceError: it is no number. NonFiniteError: it is NaN or infinite.

    >>> read_score("t", "loading ...\\n0.5", 0.0).value
    0.5
    """
    lines = printed.strip().splitlines()
    line = lines[-1].strip() if lines else ""
    try:
        found: Any = json.loads(line)
    except ValueError:
        found = None
    value = found.get("value") if isinstance(found, dict) else found
    if isinstance(found, dict) and isinstance(found.get("samples"), list):
        try:
            return scored([float(sample) for sample in found["samples"]], seconds)
        except (TypeError, ValueError):
            raise SourceError(f"task {task}: 'samples' must be numbers") from None
    if not _is_number(value):
        raise SourceError(f'task {task}: printed {line[:80]!r}, neither a number nor {{"value": ...}}')
    if not math.isfinite(value):
        raise NonFiniteError(f"task {task}: scored {value}")
    facts = found if isinstance(found, dict) else {}
    stderr, count = facts.get("stderr"), facts.get("n", 1)
    stderr = math.nan if stderr is None else stderr
    if not _is_number(stderr) or stderr < 0 or not isinstance(count, int) or count < 1:
        raise SourceError(f"task {task}: printed {line[:80]!r}; 'stderr' must be a number and 'n' a whole one above 0")
    return Scores(float(value), float(stderr), count, seconds)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
