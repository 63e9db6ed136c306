"""What a fit leaves: the recipe with the learned numbers, what they were learned from, and an unfinished run's state.

OUT.yaml           the recipe, an ordinary one; comments say how it was made
OUT.fit.json       objective, data and its fingerprint, steps, seed, objective before and after, learning curve
OUT.fit.partial    while it runs: values and Adam's state, a few numbers
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eutectic.errors import OutputError
from eutectic.evaluation.fitting.blend import Blend
from eutectic.evaluation.results import write_text
from eutectic.recipes.average import recipe_text

if TYPE_CHECKING:
    import torch

__all__ = ["Fitted", "Partial", "learned_recipe", "partial_of"]


@dataclass(frozen=True)
class Fitted:
    """A recipe with learned numbers, as plain data, and `facts`: how it was learned."""

    recipe: dict[str, Any]
    facts: dict[str, Any]

    def save(self, target: Path) -> None:
        """Write the recipe, and the facts beside it; the recipe comes last."""
        facts = self.facts
        means = [sum(facts[when].values()) / len(facts[when]) for when in ("before", "after")]
        data = ", ".join(f"{name} ({of['samples']:,} of {of['split']})" for name, of in facts["data"].items())
        comments = [
            f"{facts['parameter']} learned by eutectic fit, one value for each {facts['granularity']}: "
            f"{facts['objective']} {means[0]:.4f} before, {means[1]:.4f} after {facts['steps']} steps",
            f"data: {data}; all about it in {facts_file(target).name}",
        ]
        write_text(facts_file(target), json.dumps(facts, indent=2) + "\n")
        write_text(target, recipe_text(self.recipe, comments))


def facts_file(target: Path) -> Path:
    """Where the facts about a fitted recipe stand."""
    return target.with_name(f"{target.stem}.fit.json")


def learned_recipe(blend: Blend, values: torch.Tensor, target: Path | None) -> dict[str, Any]:
    """The blend's recipe with these values in place of its own; paths as written where `target` lies beside it."""
    recipe = blend.plan.recipe
    beside = target is not None and recipe.folder is not None and _same(target.parent, recipe.folder)
    data = recipe.canonical() if beside else blend.plan.expanded
    shared = {name: value for name, value in data.get("parameters", {}).items() if name != blend.name}
    if blend.parameter.per_source:
        for column, source in enumerate(data["models"]):
            source["parameters"] = {**source.get("parameters", {}), blend.name: _value(blend, values[:, column])}
    else:
        shared[blend.name] = _value(blend, values[:, 0])
    data.pop("parameters", None)
    return {**data, "parameters": shared} if shared else data


def _value(blend: Blend, column: torch.Tensor) -> Any:
    """One number, or one for each tensor by its exact name; the mean of the start for tensors that are only copied."""
    numbers = column.tolist()
    if list(blend.groups) == [""]:
        return numbers[0]
    cases: list[dict[str, Any]] = [
        {"filter": f"re:^{re.escape(name)}$", "value": number}
        for number, names in zip(numbers, blend.groups.values(), strict=True)
        for name in names
    ]
    return [*cases, {"value": sum(numbers) / len(numbers)}]


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


class Partial:
    """The state of an unfinished fit in a file beside its target; `key` says of which."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key, self.saved = path, key, time.monotonic()

    def due(self, seconds: float) -> bool:
        """Whether so much time has passed since the last saving."""
        return time.monotonic() - self.saved >= seconds

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the state in place of the last one."""
        write_text(self.path, json.dumps({"key": self.key, **state}))
        self.saved = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The state; None where there is none.

        Raises:
            OutputError: the file is of another fit.
        """
        if not self.path.is_file():
            return None
        try:
            state = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError:
            state = None
        if not isinstance(state, dict) or state.get("key") != self.key:
            raise OutputError(f"{self.path} is of another fit (recipe, data or settings differ); --force drops it")
        return state

    def drop(self) -> None:
        """Remove the state of a finished run."""
        self.path.unlink(missing_ok=True)


def partial_of(target: Path | None, key: str, *, resume: bool, force: bool) -> Partial | None:
    """The unfinished run of a target, to be continued or begun; None without a target.

    Raises:
        OutputError: there is one, and it is neither to be resumed nor to be dropped.
    """
    if target is None:
        return None
    partial = Partial(target.with_name(f"{target.stem}.fit.partial"), key)
    if partial.path.exists() and not resume:
        if not force:
            raise OutputError(f"{partial.path} holds an unfinished fit: --resume continues it, --force drops it")
        partial.drop()
    return partial
