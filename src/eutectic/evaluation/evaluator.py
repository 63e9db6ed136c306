"""`Evaluator`: measures checkpoints, recipes and endpoints on a suite, each thing once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from eutectic.errors import EutecticError
from eutectic.evaluation.endpoint import Endpoint, is_endpoint
from eutectic.evaluation.ledger import Key, Ledger
from eutectic.evaluation.model import Model
from eutectic.evaluation.scores import Failure, Outcome, Scores
from eutectic.evaluation.subject import Subject
from eutectic.evaluation.suite import Suite, load_suite
from eutectic.evaluation.tasks.task import Task
from eutectic.recipes.merge import RecipeLike, plan
from eutectic.recipes.opened import Opened
from eutectic.recipes.options import DEFAULT_MEMORY, Options
from eutectic.recipes.references import RECIPE_SUFFIXES
from eutectic.recipes.schema import Recipe
from eutectic.recipes.semantics import one_thread
from eutectic.weights.adapter import open_adapted
from eutectic.weights.checkpoint import Checkpoint, open_checkpoint
from eutectic.weights.readahead import available_memory

__all__ = ["Evaluator", "evaluate"]

HELD = 1 << 30


class Evaluator:
    """Measures subjects on a suite. Sources are opened once and their tensors kept, up to `held_bytes`.

    Args:
        suite: a `Suite`, a suite file, or a family's folder.
        ledger: a file in which every measurement is kept and looked for first; None: only in memory.
        held_bytes: of sources' tensors to keep in memory between recipes.
        options: how recipes are merged; by default with half of the free memory, as measuring holds a model anyway.

    A task that fails (its data is missing, its program ends with an error, the model answers NaN) gives a `Failure`;
    the others go on.
    """

    def __init__(
        self,
        suite: Suite | str | os.PathLike[str] | Mapping[str, Any],
        *,
        ledger: str | os.PathLike[str] | None = None,
        held_bytes: int = HELD,
        options: Options | None = None,
    ) -> None:
        self.suite = suite if isinstance(suite, Suite) else load_suite(suite)
        self.ledger = None if ledger is None else Ledger(Path(ledger))
        self.options = options or Options(max_memory=max(DEFAULT_MEMORY, available_memory() // 2))
        self.opened = Opened(held_bytes)
        self._known: dict[str, Scores] = {}

    def subject(self, source: RecipeLike | Checkpoint | Subject) -> Subject:
        """What a source means: a model folder or file, a recipe, a checkpoint, or ``openai:URL#model``."""
        if isinstance(source, (Model, Endpoint)):
            return source
        if isinstance(source, Checkpoint):
            return Model(source)
        if isinstance(source, (Recipe, Mapping)):
            return Model(plan(source, self.options, opened=self.opened))
        if not isinstance(source, (str, os.PathLike)):
            return source  # a subject of the caller's own
        text = os.fspath(source)
        if is_endpoint(text):
            return Endpoint(text)
        if Path(text).suffix in (*RECIPE_SUFFIXES, ".json") and Path(text).is_file():
            return Model(plan(text, self.options, opened=self.opened), text)
        from eutectic.recipes.references import resolve_model

        path, adapter = resolve_model(text)
        checkpoint = open_checkpoint(path)
        return Model(checkpoint if adapter is None else open_adapted(checkpoint, adapter), text)

    def measure(
        self,
        source: RecipeLike | Checkpoint | Subject,
        *,
        split: str = "test",
        tasks: Sequence[str] | None = None,
        fidelity: float = 1.0,
        label: str = "",
        report: Callable[[Task, Outcome], None] | None = None,
    ) -> dict[str, Outcome]:
        """The score of every task (or of `tasks`), or why there is none.

        Raises:
            EutecticError: the source cannot be opened, or the suite has no such task.
        """
        suite = self.suite if tasks is None else self.suite.only(tasks)
        subject = self.subject(source)
        found: dict[str, Outcome] = {}
        for task in suite:
            found[task.name] = self._measure(task, subject, split, fidelity, label)
            if report is not None:
                report(task, found[task.name])
        return found

    def _measure(self, task: Task, subject: Subject, split: str, fidelity: float, label: str) -> Outcome:
        try:
            fidelity = task.share(fidelity)
            key = Key(subject.identity, task.name, split, task.fingerprint(split), fidelity)
            known = self._find(key)
            if known is not None:
                return known
            with one_thread(True):  # the same sums on every machine; small networks are no slower for it
                scores = task.score(subject, split, fidelity)
        except EutecticError as error:
            return Failure(str(error))
        except Exception as error:  # a scorer that is not ours: the rest of the suite goes on, and the hole is shown
            return Failure(f"task {task.name}: {type(error).__name__}: {str(error)[:300]}")
        self._known[key.digest] = scores
        if self.ledger is not None:
            recipe = subject.recipe if isinstance(subject, Model) else None
            self.ledger.record(key, scores, label=label or subject.label, recipe=recipe)
        return scores

    def _find(self, key: Key) -> Scores | None:
        known = self._known.get(key.digest)
        return known if known is not None or self.ledger is None else self.ledger.find(key)

    def close(self) -> None:
        """Close the ledger."""
        if self.ledger is not None:
            self.ledger.close()

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def evaluate(
    source: RecipeLike | Checkpoint | Subject,
    suite: Suite | str | os.PathLike[str] | Mapping[str, Any],
    *,
    split: str = "test",
    ledger: str | os.PathLike[str] | None = None,
) -> dict[str, Outcome]:
    """Measure one model or recipe on a suite; a recipe is merged in memory and not written."""
    with Evaluator(suite, ledger=ledger) as evaluator:
        return evaluator.measure(source, split=split)
