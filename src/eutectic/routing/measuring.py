"""A Twin pool measured: its router, and beside it what the router is to be held against.

Every sample is routed by itself, by its features alone: the order of a stream, and what a batch holds besides, change
nothing, and no task's name is read. What *is* known without the router: which head of several reads an encoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eutectic.errors import EutecticError
from eutectic.evaluation.evaluator import Evaluator
from eutectic.evaluation.scores import Outcome, Scores
from eutectic.evaluation.suite import Suite
from eutectic.evaluation.tasks.bits_per_byte import BitsPerByte
from eutectic.evaluation.tasks.classification import Classification
from eutectic.pools.pool import Pool
from eutectic.routing.fitting import expert_tasks, load_router
from eutectic.routing.twin_pool import MixedModel, Mixer
from eutectic.weights.checkpoint import Checkpoint, open_checkpoint
from eutectic.weights.statistics_folder import identity_of

__all__ = ["Measured", "measure_pool"]

SHARED, ROUTER, ORACLE, FINE_TUNED = "shared", "router", "oracle", "fine-tuned"


@dataclass(frozen=True)
class Measured:
    """Scores by way of mixing and task.

    The ways: ``shared`` (the shared expert alone), ``router``, ``oracle`` (each task with its own expert), ``#NAME``
    (one expert for everything), ``fine-tuned`` (the models that were packed, each on its own task; those that are still
    where they were). `routed` is the share of each task's samples that the router gives to the task's expert.
    """

    scores: Mapping[str, Mapping[str, Outcome]]
    routed: Mapping[str, Scores]
    notes: Sequence[str]

    @property
    def accuracy(self) -> float | None:
        """The mean over tasks of `routed`; None without a router."""
        return float(np.mean([found.value for found in self.routed.values()])) if self.routed else None


def measure_pool(
    pool: Pool,
    suite: Suite,
    *,
    split: str = "test",
    learned: bool = True,
    soft: bool = False,
    report: Callable[[str], None] | None = None,
) -> Measured:
    """Measure a Twin pool on a suite in every way to mix its experts.

    Args:
        learned: ask the pool's router; otherwise only what needs none.
        soft: mix all experts by the router's probabilities, instead of taking the likeliest.

    Raises:
        RecipeError: a pool of another scheme, or a suite that does not fit it. SourceError: the pool has no router, or
            that of other experts.
    """
    mixer = Mixer(pool)
    tasks = expert_tasks(pool, suite)
    fitted = load_router(pool) if learned else None
    own = {task.name: expert for expert, found in tasks.items() for task in found}
    scores: dict[str, dict[str, Outcome]] = {}
    with Evaluator(suite, held_bytes=0) as evaluator:

        def measure(name: str, model: MixedModel | Checkpoint, only: Sequence[str] | None = None) -> None:
            if report is not None:
                report(name)
            found = evaluator.measure(model, split=split, tasks=only)
            scores.setdefault(name, {}).update(found)

        measure(SHARED, mixer.shared())
        routed: dict[str, Scores] = {}
        if fitted is not None:
            for task in suite:
                model = mixer.routed(fitted.router, soft=soft)
                measure(ROUTER, model, [task.name])
                if task.name in own and model.chosen:
                    at = mixer.experts.index(own[task.name])
                    routed[task.name] = _share(model, at)
        scores[ORACLE] = {}
        for expert in mixer.experts:
            measure(f"#{expert}", mixer.single(expert))
            for task in tasks[expert]:
                scores[ORACLE][task.name] = scores[f"#{expert}"][task.name]
        for expert, source in _sources(pool).items():
            measure(FINE_TUNED, source, [task.name for task in tasks[expert]])
    return Measured(scores, routed, _notes(pool, suite, fitted is not None))


def _share(model: MixedModel, expert: int) -> Scores:
    """How often an expert has the largest weight of a batch's samples."""
    from eutectic.evaluation.scores import scored

    return scored(np.concatenate([(weights.argmax(-1) == expert).double().numpy() for weights in model.chosen]))


def _sources(pool: Pool) -> dict[str, Checkpoint]:
    """The models that were packed, where they still are what they were."""
    found = {}
    for name, expert in pool.manifest.experts.items():
        if not Path(expert.source).exists():
            continue
        try:
            checkpoint = open_checkpoint(expert.source)
        except EutecticError:  # something else lies there now, which is not what was packed
            continue
        if identity_of(checkpoint) == expert.identity:
            found[name] = checkpoint
    return found


def _notes(pool: Pool, suite: Suite, learned: bool) -> list[str]:
    """What a reader of the scores has to know."""
    headed = [task.name for task in suite if isinstance(task, Classification) and task.head is not None]
    found = []
    if headed:
        found.append(f"{', '.join(headed)}: which head reads the encoder is known here; only the experts are chosen")
    sliced = [task for task in suite if isinstance(task, BitsPerByte)]
    if sliced and learned:
        cost = math.log2(len(pool))
        found.append(
            f"{', '.join(task.name for task in sliced)}: the router reads the whole slice that it is scored on; naming "
            f"its choice would take {cost:.1f} bits a slice"
        )
    return found
