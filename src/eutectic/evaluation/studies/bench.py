"""`Bench`: one family under study. Everything measured on its suite; choices on validation, reports on test.

The multi-task score of a model is the mean over tasks of its score divided by that of the task's own expert (the
inverse where lower is better), so that 1 is as good as all experts at once. Where a task names no expert, it is the one
that is best on validation.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from eutectic.errors import EutecticError, SourceError
from eutectic.evaluation.collecting.collect import collect_statistics
from eutectic.evaluation.collecting.through_merged import collect_through_merged
from eutectic.evaluation.ensemble import Ensemble
from eutectic.evaluation.evaluator import Evaluator
from eutectic.evaluation.family import Family
from eutectic.evaluation.fitting.fit import fit
from eutectic.evaluation.model import Model
from eutectic.evaluation.results import write_text
from eutectic.evaluation.scores import Failure, Outcome, Scores
from eutectic.evaluation.studies.candidates import Candidate
from eutectic.evaluation.subject import weights_of
from eutectic.evaluation.tasks.task import Task
from eutectic.methods import get_method
from eutectic.ops.spectrum_cache import SpectrumCache
from eutectic.recipes.plan import Plan
from eutectic.weights.checkpoint import read_json
from eutectic.weights.digest import hash_bytes

__all__ = ["Bench", "Measured", "Tuning"]


SAMPLES = 256  # that statistics are collected on, as in the papers


@dataclass(frozen=True)
class Tuning:
    """What a method's scale was chosen to be on validation: `scores` holds every scale that was tried."""

    scale: float
    scores: Mapping[float, float]

    @property
    def at_edge(self) -> bool:
        """Whether the best scale is the smallest or the largest that was tried, so that a better one may lie beyond."""
        return len(self.scores) > 1 and self.scale in (min(self.scores), max(self.scores))


@dataclass(frozen=True)
class Measured:
    """One model on the test split: its outcomes by task, and what it took."""

    id: str
    label: str
    group: str
    outcomes: Mapping[str, Outcome]
    needs: str = "nothing"
    recipe: Mapping[str, Any] | None = None
    tuning: Tuning | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    bytes: Mapping[str, int] = field(default_factory=dict)


class Bench:
    """A family and the evaluator that measures it.

    Args:
        family: its experts are the models that are merged.
        evaluator: over the family's suite.
        folder: of the run; the statistics that methods need are collected in it.
        fidelity: share of the validation samples that choices are made on.
    """

    def __init__(self, family: Family, evaluator: Evaluator, folder: Path, *, fidelity: float = 1.0) -> None:
        self.family, self.evaluator, self.folder, self.fidelity = family, evaluator, folder, fidelity
        self.experts = {name: str(path) for name, path in family.experts.items()}
        self.base = str(family.base)
        self._references: dict[str, dict[str, float]] = {}
        self._collected: set[tuple[str | None, str]] = set()
        self._merged_grams: dict[str, list[Path]] = {}
        self.tasks = [task for task in evaluator.suite if task.role == "task"]
        self.kept = [task for task in evaluator.suite if task.role == "base"]
        for task in self.tasks:
            if task.expert is not None and task.expert not in self.experts:
                raise SourceError(
                    f"{family.path}: task {task.name} names the expert {task.expert}, which is none of the family's: "
                    f"{', '.join(self.experts)}"
                )

    @property
    def identity(self) -> str:
        """Of the family's files: the same for two copies of one family."""
        return json.dumps(self.family.description["files"], sort_keys=True)

    # ------------------------------------------------------------------ measuring

    def outcomes(self, source: Any, split: str, label: str, tasks: Sequence[Task] | None = None) -> dict[str, Outcome]:
        """The outcomes of all tasks (or some) for a path, a recipe or a model."""
        names = None if tasks is None else [task.name for task in tasks]
        fidelity = self.fidelity if split == "validation" else 1.0
        return self.evaluator.measure(source, split=split, tasks=names, label=label, fidelity=fidelity)

    @cached_property
    def owners(self) -> dict[str, str]:
        """The expert whose score is the measure of all others, for each task: its own, or the best on validation."""
        found = {task.name: task.expert for task in self.tasks if task.expert is not None}
        for task in self.tasks:
            if task.name not in found:
                scores = {name: self._of_expert(name, task, "validation") for name in self.experts}
                found[task.name] = max(scores, key=lambda name: scores[name] if task.higher else -scores[name])
        return found

    def experts_on(self, split: str) -> dict[str, float]:
        """Each task's score by the expert that it is measured by."""
        if split not in self._references:
            found = {task.name: self._of_expert(self.owners[task.name], task, split) for task in self.tasks}
            for task, value in found.items():
                if value <= 0:
                    owner = f"{self.family.path}: expert {self.owners[task]}"
                    raise SourceError(f"{owner} scores {value:g} on {task}: no measure for other models")
            self._references[split] = found
        return self._references[split]

    def _of_expert(self, name: str, task: Task, split: str) -> float:
        outcome = self.outcomes(self.experts[name], split, f"expert {name}", [task])[task.name]
        if isinstance(outcome, Failure):
            raise SourceError(f"expert {name} cannot be measured, so nothing can be: {outcome.reason}")
        if not len(outcome.samples):
            raise SourceError(
                f"task {task.name}: reports its mean alone, and studies compare sample by sample; give it the role "
                "base, or let it report a number for each sample"
            )
        return outcome.value

    def multitask(self, outcomes: Mapping[str, Outcome], split: str) -> float:
        """The multi-task score; NaN where a task could not be measured."""
        reference = self.experts_on(split)
        values = []
        for task in self.tasks:
            outcome = outcomes.get(task.name)
            if not isinstance(outcome, Scores):
                return float("nan")
            values.append(normalised(outcome.value, reference[task.name], task.higher))
        return float(np.mean(values))

    # ------------------------------------------------------------------ choosing

    def tune(self, candidate: Candidate, grid: Sequence[float], sources: Sequence[Any] | None = None) -> Tuning:
        """The scale with the best multi-task score on validation; a tie goes to the smaller scale.

        Raises:
            EutecticError: no scale could be measured.
        """
        scores: dict[float, float] = {}
        found: Mapping[str, Outcome] = {}
        for scale in sorted(candidate.grid(grid)):
            recipe = self.recipe(candidate, scale, sources)
            found = self.outcomes(recipe, "validation", f"{candidate.id} at {scale:g}", self.tasks)
            scores[scale] = self.multitask(found, "validation")
        known = {scale: score for scale, score in scores.items() if np.isfinite(score)}
        if not known:
            failed = next(o for o in found.values() if isinstance(o, Failure))
            raise SourceError(f"{candidate.label}: no scale could be measured: {failed.reason}")
        return Tuning(max(known, key=lambda scale: (known[scale], -scale)), scores)

    def recipe(self, candidate: Candidate, scale: float, sources: Sequence[Any] | None = None) -> dict[str, Any]:
        """A candidate's recipe over the family's experts (or other sources: paths, or recipes within)."""
        chosen = list(self.experts.values()) if sources is None else sources
        if candidate.learned:
            return self._learned(candidate, chosen)
        if candidate.through_merged:
            return candidate.recipe(self.base, self._through_merged(candidate, chosen), scale, self.family.seed)
        if (kind := get_method(candidate.method).needs) is not None:
            chosen = [{"model": source, "statistics": str(self.statistics(source, kind))} for source in chosen]
        return candidate.recipe(self.base, chosen, scale, self.family.seed)

    def _learned(self, candidate: Candidate, sources: Sequence[Any]) -> dict[str, Any]:
        """The recipe with weights learned from the inputs of all tasks' training data; kept in the run's folder."""
        start = candidate.recipe(self.base, sources, 1.0, self.family.seed)
        key = hash_bytes(json.dumps([self.identity, start]).encode())[:12]
        file = self.folder / "learned" / f"{self.family.path.name}-{candidate.id}-{key}.json"
        if not file.is_file():
            names = [task.name for task in self.tasks]
            found = fit(
                start, self.evaluator.suite, tasks=names, granularity=candidate.learned or "source",
                opened=self.evaluator.opened,
            )  # fmt: skip
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps({"recipe": found.recipe, "facts": found.facts}, indent=2))
        return read_json(file)["recipe"]

    def _through_merged(self, candidate: Candidate, sources: Sequence[Any]) -> list[dict[str, Any]]:
        """The sources with Gram matrices collected through the layers that were merged before."""
        if not all(isinstance(source, str) for source in sources):
            raise SourceError(f"{candidate.label}: its Gram matrices are of stored experts, not of changed ones")
        start = candidate.recipe(self.base, sources, 1.0, self.family.seed)
        key = hash_bytes(json.dumps([self.identity, start]).encode())[:12]
        folder = self.folder / "statistics" / f"{self.family.path.name}-{candidate.id}-{key}"
        if key not in self._merged_grams:
            owned = {path: name for name, path in self.experts.items()}
            tasks = {task.expert: task.name for task in self.tasks}
            names = [tasks.get(owned.get(source, "")) for source in sources]
            if None in names:
                raise SourceError(f"{candidate.label}: an expert has no task of its own to collect Gram matrices on")
            found = collect_through_merged(
                start, self.evaluator.suite, folder, tasks=[name for name in names if name], limit=SAMPLES
            )
            self._merged_grams[key] = found
        folders = self._merged_grams[key]
        return [{"model": source, "statistics": str(at)} for source, at in zip(sources, folders, strict=True)]

    def statistics(self, source: Any, kind: str) -> Path:
        """The folder of an expert's statistics on (at most `SAMPLES`) training samples of its own task.

        Raises:
            SourceError: it is no expert, or one without a task of its own.
        """
        name = next((name for name, path in self.experts.items() if path == source), None)
        task = next((task for task in self.tasks if task.expert == name and name is not None), None)
        if task is None:
            raise SourceError(f"{name or 'a changed expert'}: has no task of its own to collect its {kind} on")
        folder = self.folder / "statistics" / f"{self.family.path.name}-{name}"
        if (name, kind) not in self._collected:
            collect_statistics(
                weights_of(self.evaluator.subject(source), task.name), task, folder, kinds=[kind], limit=SAMPLES
            )
            self._collected.add((name, kind))
        return folder

    def tested(self, candidate: Candidate, scale: float, sources: Sequence[Any], label: str) -> float:
        """The multi-task score on test.

        Raises:
            SourceError: it could not be measured.
        """
        return self._whole(self.outcomes(self.recipe(candidate, scale, sources), "test", label, self.tasks))

    @cached_property
    def tested_base(self) -> float:
        """The base's multi-task score on test."""
        return self._whole(self.outcomes(self.base, "test", "base", self.tasks))

    def _whole(self, outcomes: Mapping[str, Outcome]) -> float:
        for outcome in outcomes.values():
            if isinstance(outcome, Failure):
                raise SourceError(outcome.reason)
        return self.multitask(outcomes, "test")

    # ------------------------------------------------------------------ reporting

    def report(self, id: str, label: str, group: str, source: Any, **facts: Any) -> Measured:
        """A model on the test split; one that cannot be opened or merged is a row of holes."""
        try:
            return self._report(id, label, group, source, **facts)
        except EutecticError as error:
            return self._holes(id, label, group, str(error), facts.get("needs", "nothing"))

    def _holes(self, id: str, label: str, group: str, why: str, needs: str) -> Measured:
        return Measured(id, label, group, {task.name: Failure(why) for task in self.evaluator.suite}, needs=needs)

    def _from_run(self, recipe: Any) -> Any:
        """The recipe with paths below the run's folder as they are from there."""
        if isinstance(recipe, Mapping):
            return {key: self._from_run(value) for key, value in recipe.items()}
        if isinstance(recipe, list):
            return [self._from_run(value) for value in recipe]
        return recipe.removeprefix(f"{self.folder}/") if isinstance(recipe, str) else recipe

    def _report(self, id: str, label: str, group: str, source: Any, **facts: Any) -> Measured:
        recipe = self._from_run(source) if isinstance(source, Mapping) else None
        started = time.perf_counter()
        subject = self.evaluator.subject(source)
        seconds: dict[str, float] = {}
        nbytes: dict[str, int] = {}
        if isinstance(subject, Model):
            with SpectrumCache(0):  # merged here, and timed as if it were the only merge
                _ = subject.networks
            checkpoint = subject.checkpoint
            nbytes["model"] = checkpoint.nbytes * (len(subject.members) if isinstance(subject, Ensemble) else 1)
            if isinstance(checkpoint, Plan) and not isinstance(subject, Ensemble):
                seconds["merge"] = time.perf_counter() - started
                nbytes["peak"] = checkpoint.peak
        started = time.perf_counter()
        outcomes = self.outcomes(subject, "test", label)
        measured = [o for o in outcomes.values() if isinstance(o, Scores)]
        if measured:
            seconds["latency"] = sum(o.seconds for o in measured) / sum(o.n for o in measured)
        seconds |= facts.pop("seconds", {})
        return Measured(id, label, group, outcomes, recipe=recipe, seconds=seconds, bytes=nbytes, **facts)

    def method(self, candidate: Candidate, grid: Sequence[float]) -> Measured:
        """A candidate, tuned on validation and measured on test; what goes wrong is a hole in its row."""
        started = time.perf_counter()
        try:
            tuning = self.tune(candidate, grid)
        except EutecticError as error:
            return self._holes(candidate.id, candidate.label, "merged", str(error), candidate.needs)
        return self.report(
            candidate.id, candidate.label, "merged", self.recipe(candidate, tuning.scale), needs=candidate.needs,
            tuning=tuning, seconds={"tune": time.perf_counter() - started},
        )  # fmt: skip


def normalised(value: Any, expert: Any, higher: bool) -> Any:
    """A score (or an array of them) in shares of the expert's: 1 is as good."""
    return value / expert if higher else expert / value


Report = Callable[[str], None]
