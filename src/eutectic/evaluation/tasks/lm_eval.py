"""Tasks of EleutherAI's lm-evaluation-harness: its names, its metric keys, its numbers; the model stays in memory."""

from __future__ import annotations

import math
import time
from functools import lru_cache
from importlib import import_module
from importlib.metadata import version
from typing import Any, Literal

from pydantic import Field

from eutectic.errors import MissingDependencyError, RecipeError, SourceError, nearest
from eutectic.evaluation.model import Model
from eutectic.evaluation.scores import Scores
from eutectic.evaluation.subject import Subject, weights_of
from eutectic.evaluation.tasks.task import Task
from eutectic.recipes.values import PathText, Text
from eutectic.weights.digest import hash_bytes

__all__ = ["LmEval"]


class LmEval(Task, frozen=True):
    """One metric of one task, such as ``acc,none`` of ``arc_easy``.

    The harness has no validation split to tune on: tune on other tasks. `include` is a folder of task files. Whether
    its data is here is the harness's business (HF_HUB_OFFLINE=1 keeps it from asking).
    """

    kind: Literal["lm_eval"]
    task: Text
    metric: Text = "acc,none"
    num_fewshot: int | None = Field(None, ge=0)
    limit: int | None = Field(None, ge=1, description="Samples, from the first.")
    batch_size: int = Field(8, ge=1)
    include: PathText | None = None

    @property
    def unit(self) -> str:
        return self.metric.partition(",")[0]

    @property
    def higher(self) -> bool:
        return not self.unit.startswith(("ppl", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"))

    def fingerprint(self, split: str) -> str:
        """Of the task's name and settings and the harness's version; and of the task files in `include`."""
        own = ""
        if self.include is not None:
            files = sorted(entry for entry in self.path(self.include).rglob("*") if entry.is_file())
            own = " ".join(hash_bytes(entry.read_bytes()) for entry in files)
        return hash_bytes(f"{self.settings()} {_version()} {own}".encode())

    def score(self, subject: Subject, split: str = "test", fidelity: float = 1.0) -> Scores:
        if split != "test":
            raise RecipeError(f"task {self.name}: a task of lm-eval has the split test only")
        started = time.perf_counter()
        found = self._run(weights_of(subject, self.name))
        results = found["results"].get(self.task) or next(iter(found["results"].values()))
        if self.metric not in results:
            known = [key for key in results if "," in key and "_stderr" not in key]
            raise RecipeError(
                f"task {self.name}: {self.task} has no metric {self.metric!r}"
                f"{nearest(self.metric, known) or '; it has ' + ', '.join(known)}"
            )
        value = results[self.metric]
        metric, _, filtered = self.metric.partition(",")
        stderr = results.get(f"{metric}_stderr,{filtered}")
        counts = (found.get("n-samples") or {}).get(self.task) or {}
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise SourceError(f"task {self.name}: lm-eval answers {value!r} for {self.metric}")
        error = float(stderr) if isinstance(stderr, (int, float)) else math.nan
        return Scores(float(value), error, int(counts.get("effective", 0)), time.perf_counter() - started)

    def _run(self, model: Model) -> dict[str, Any]:
        _version()
        evaluator: Any = import_module("lm_eval.evaluator")
        models: Any = import_module("lm_eval.models.huggingface")
        tokenizer = model.tokenizer
        if tokenizer is None:
            raise SourceError(f"{model.label}: lm-eval needs a tokenizer, and this is a model of bytes without one")
        manager = _manager(None if self.include is None else str(self.path(self.include)))
        if self.task not in manager.all_tasks:
            raise RecipeError(
                f"task {self.name}: lm-eval knows no task {self.task!r}{nearest(self.task, manager.all_tasks)}"
            )
        harness = models.HFLM(pretrained=model.network, tokenizer=tokenizer, batch_size=self.batch_size, device="cpu")
        try:
            found = evaluator.simple_evaluate(
                harness, tasks=[self.task], num_fewshot=self.num_fewshot, limit=self.limit, task_manager=manager,
                log_samples=False,
            )  # fmt: skip
        except (OSError, ConnectionError, ValueError) as error:  # a data set that is not here
            raise SourceError(f"task {self.name}: lm-eval could not run {self.task}: {str(error)[:300]}") from None
        if not found:
            raise SourceError(f"task {self.name}: lm-eval returned nothing for {self.task}")
        return dict(found)


@lru_cache(maxsize=4)
def _manager(include: str | None) -> Any:
    """The harness's list of tasks, which takes seconds to read."""
    tasks: Any = import_module("lm_eval.tasks")
    return tasks.TaskManager(include_path=include)


def _version() -> str:
    try:
        return version("lm-eval")
    except ImportError:
        raise MissingDependencyError("tasks of kind lm_eval need lm-eval; pip install 'eutectic[lm-eval]'") from None
