"""`Ablation`: a recipe measured on one task with some of its experts left out, everywhere or in some layers.

Every score goes through the evaluator and its ledger: nothing is measured twice, sources are opened once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import cached_property

import numpy as np

from eutectic.errors import RecipeError, SourceError, nearest
from eutectic.evaluation.evaluator import Evaluator
from eutectic.evaluation.scores import Failure
from eutectic.evaluation.subject import Subject
from eutectic.evaluation.tasks.task import Task
from eutectic.recipes.experts import alone, experts_of, without, without_in
from eutectic.recipes.merge import plan
from eutectic.recipes.schema import Recipe
from eutectic.weights.layers import follows_layers, layer_of

__all__ = ["BASE", "Ablation", "depths_of"]

BASE, EMBEDDINGS, HEAD = "base", "embeddings", "head"


class Ablation:
    """Scores of a recipe's samples, larger being better, without some of its experts.

    Args:
        task: a name; may be None where the suite has one task.
        report: called with a line for each merge that is measured.

    Raises:
        RecipeError: the suite has no such task, or the recipe no experts that could be left out.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        recipe: Recipe,
        task: str | None = None,
        *,
        split: str = "validation",
        fidelity: float = 1.0,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self.evaluator, self.recipe, self.split, self.fidelity = evaluator, recipe, split, fidelity
        self.task = _task(evaluator, task)
        self.experts = tuple(experts_of(recipe))
        self.report = report
        self.samples: int | None = None
        self._known: dict[Recipe, np.ndarray] = {}

    @property
    def sign(self) -> int:
        """1 where a larger score is better, else -1: it turns oriented scores into the task's own, and back."""
        return 1 if self.task.higher else -1

    def expert(self, name: str) -> str:
        """The name, if an expert is called so.

        Raises:
            RecipeError: none is.
        """
        if name not in self.experts:
            hint = nearest(name, self.experts) or f"; its experts are {', '.join(self.experts)}"
            raise RecipeError(f"the recipe has no expert {name!r}{hint}")
        return name

    def whole(self) -> np.ndarray:
        """The merge itself."""
        return self._samples(self.recipe, "the merge")

    def reference(self, against: str = BASE) -> np.ndarray:
        """What the merge is compared with: its base, one of its experts, or any model, recipe or endpoint."""
        if against == BASE and self.recipe.base_model is not None:
            return self._samples(alone(self.recipe, self.recipe.base_model), "the base")
        if against in self.experts:
            return self._samples(alone(self.recipe, experts_of(self.recipe)[against]), against)
        if against == BASE:
            raise RecipeError("the recipe has no base_model to compare with; --against names another reference")
        return self._samples(self.evaluator.subject(against), against)

    def without(self, experts: Collection[str]) -> np.ndarray:
        """The merge without some experts; without all of them it is the base."""
        gone = sorted(map(self.expert, experts), key=self.experts.index)
        return self._samples(without(self.recipe, gone), f"without {_listed(gone)}")

    def without_layers(self, expert: str, depths: Iterable[str]) -> np.ndarray:
        """The merge without one expert in these layers (see `depths`)."""
        chosen = [depth for depth in self.depths if depth in set(depths)]
        if len(chosen) == len(self.depths):
            return self.without([expert])
        tensors = [name for depth in chosen for name in self.depths[depth]]
        return self._samples(without_in(self.recipe, [expert], tensors), f"without {expert} in {_listed(chosen)}")

    @cached_property
    def depths(self) -> dict[str, tuple[str, ...]]:
        """The merged tensors by where they lie, from the input to the output: see `depths_of`."""
        planned = plan(self.recipe, self.evaluator.options, opened=self.evaluator.opened)
        return depths_of(step.name for step in planned.steps if step.action == "merge")

    def _samples(self, source: Recipe | Subject, label: str) -> np.ndarray:
        if not isinstance(source, Recipe):
            return self._measure(source, label)
        if source not in self._known:
            self._known[source] = self._measure(source, label)
        return self._known[source]

    def _measure(self, source: Recipe | Subject, label: str) -> np.ndarray:
        found = self.evaluator.measure(
            source, split=self.split, tasks=[self.task.name], fidelity=self.fidelity, label=label
        )[self.task.name]
        if isinstance(found, Failure):
            reason = found.reason.removeprefix(f"task {self.task.name}: ")
            raise SourceError(f"{label} cannot be measured on task {self.task.name}: {reason}")
        if len(found.samples) < 2:
            raise RecipeError(
                f"task {self.task.name} tells no scores of single samples, which are compared here; let it return a "
                "number for each of at least two"
            )
        self.samples = self.samples or len(found.samples)
        if len(found.samples) != self.samples:
            raise RecipeError(
                f"task {self.task.name} scored {self.samples} samples before and {len(found.samples)} of {label}; "
                "only the same samples can be compared"
            )
        if self.report is not None:
            self.report(f"{label}: {found.value:.4f}")
        return self.sign * found.samples


def depths_of(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Tensors by where they lie: what comes before the layers, each layer of each stack, what follows them.

    >>> list(depths_of(["lm_head.weight", "h.1.w", "h.0.w", "h.0.b", "wte.weight"]))
    ['embeddings', 'h.0', 'h.1', 'head']
    """
    found: dict[str, list[str]] = {EMBEDDINGS: []}
    behind: list[str] = []
    stacks: dict[str, dict[int, list[str]]] = {}
    for name in names:
        layer = layer_of(name)
        if layer is not None:
            stacks.setdefault(layer.stack, {}).setdefault(layer.number, []).append(name)
        else:
            (behind if follows_layers(name) else found[EMBEDDINGS]).append(name)
    for stack, layers in stacks.items():
        found |= {f"{stack}{number}": layers[number] for number in sorted(layers)}
    found[HEAD] = behind
    return {depth: tuple(inside) for depth, inside in found.items() if inside}


def _task(evaluator: Evaluator, name: str | None) -> Task:
    suite = evaluator.suite
    if name is None and len(suite.tasks) > 1:
        raise RecipeError(f"suite {suite.name} has several tasks: --task chooses one of {', '.join(suite.tasks)}")
    return next(iter(suite if name is None else suite.only([name])))


def _listed(names: Collection[str]) -> str:
    listed = list(names)
    return ", ".join(listed) if len(listed) <= 3 else f"{listed[0]} ... {listed[-1]}"
