"""The demonstration: families of real experts, merged by several methods, tuned on validation, reported on test."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from eutectic.evaluation.views import ViewScores
from eutectic.recipes.merge import merge, plan
from eutectic.zoo.digits import Family, build_digits

__all__ = ["Candidate", "Result", "run_demo"]

Report = Callable[[str], None]


@dataclass(frozen=True)
class Candidate:
    """A method with the one number that is tuned: `knob` is a parameter of the recipe, `grid` what it may be."""

    label: str
    method: str
    parameters: Mapping[str, Any]
    knob: str
    grid: tuple[float, ...]

    def recipe(self, family: Family, sources: list[str], value: float | None) -> dict[str, Any]:
        """The recipe for these experts with the knob at `value`."""
        chosen = {**self.parameters, **({self.knob: value} if value is not None else {})}
        document: dict[str, Any] = {"merge_method": self.method}
        if self.method != "linear":
            document["base_model"] = str(family.experts[sources[0]] if self.method == "slerp" else family.base)
        document["models"] = [{"model": str(family.experts[name])} for name in sources[self.method == "slerp" :]]
        return {**document, "parameters": chosen, "seed": family.seed}


SMALL = (0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7)
LARGE = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
CANDIDATES = (
    Candidate("linear (average)", "linear", {"weight": 1.0}, "", ()),
    Candidate("slerp of the best two", "slerp", {}, "t", (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)),
    Candidate("task_arithmetic", "task_arithmetic", {"weight": 1.0}, "lambda", SMALL),
    Candidate("ties, density 0.5", "ties", {"weight": 1.0, "density": 0.5}, "lambda", LARGE),
    Candidate("dare_linear, density 0.5", "dare_linear", {"weight": 1.0, "density": 0.5}, "lambda", SMALL),
    Candidate("dare_ties, density 0.5", "dare_ties", {"weight": 1.0, "density": 0.5}, "lambda", SMALL),
)


@dataclass(frozen=True)
class Result:
    """One line of the table: test accuracy per view and on average, each the mean over families.

    `stderr` is the standard error of `mean`: over families, or over images where there is one family;
    `settings` are the tuned numbers by seed.
    """

    label: str
    group: str
    views: dict[str, float]
    mean: float
    stderr: float
    settings: dict[int, float]
    at_edge: bool


def run_demo(out: Path, *, seeds: int = 3, force: bool = False, report: Report | None = None) -> list[Result]:
    """Build `seeds` families under `out`, merge each by every candidate, and write recipes, models and scores.json.

    Every knob is tuned on validation images and reported on test images. Takes about ten seconds a family.
    """
    say = report or (lambda line: None)
    found: dict[tuple[str, str], list[tuple[int, ViewScores, float | None, bool]]] = {}
    for seed in range(seeds):
        family = build_digits(out / f"family-{seed}", seed=seed, force=force)
        say(f"family {seed}: base and {len(family.experts)} experts in {family.path}")
        for group, label, scores, value, edge in _measure(family, out, say if seed == 0 else lambda line: None):
            found.setdefault((group, label), []).append((seed, scores, value, edge))
    results = [_summarise(group, label, runs) for (group, label), runs in found.items()]
    document = [vars(result) for result in results]
    (out / "scores.json").write_text(json.dumps({"split": "test", "seeds": seeds, "rows": document}, indent=1) + "\n")
    return results


def _measure(family: Family, out: Path, say: Report) -> Iterator[tuple[str, str, ViewScores, float | None, bool]]:
    """Base, experts and every tuned merge of one family, on test."""
    from eutectic.weights.checkpoint import open_checkpoint

    yield "before", "base", family.measure(open_checkpoint(family.base)), None, False
    validation = {}
    for name, path in family.experts.items():
        expert = _loaded(open_checkpoint(path))
        validation[name] = family.measure(expert, "validation").mean.value
        yield "experts", f"expert: {name}", family.measure(expert), None, False
    ranked = sorted(validation, key=validation.__getitem__, reverse=True)
    for candidate in CANDIDATES:
        sources = ranked[:2] if candidate.method == "slerp" else list(family.experts)
        value, edge = _tune(candidate, family, sources)
        recipe = candidate.recipe(family, sources, value)
        target = out / "merged" / f"{candidate.method}-{family.seed}"
        path = out / "recipes" / f"{candidate.method}-{family.seed}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        merge(path, target, force=True)
        tuned = "" if value is None else f", {candidate.knob} = {value:g} (chosen on validation)"
        say(f"merged by {candidate.label}{tuned}: {target}")
        yield "merged", candidate.label, family.measure(open_checkpoint(target)), value, edge


def _tune(candidate: Candidate, family: Family, sources: list[str]) -> tuple[float | None, bool]:
    """The knob's best value on validation, and whether it lies at the grid's edge. No candidate is written."""
    if not candidate.grid:
        return None, False
    scores = {
        value: family.measure(_loaded(plan(candidate.recipe(family, sources, value))), "validation").mean.value
        for value in candidate.grid
    }
    best = max(scores, key=scores.__getitem__)
    return best, best in (candidate.grid[0], candidate.grid[-1])


def _loaded(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tensor.to_numpy() for name, tensor in checkpoint.items()}


def _summarise(group: str, label: str, runs: list[tuple[int, ViewScores, float | None, bool]]) -> Result:
    means = [scores.mean.value for _, scores, _, _ in runs]
    views = {view: statistics.fmean(scores.views[view].value for _, scores, _, _ in runs) for view in runs[0][1].views}
    return Result(
        label,
        group,
        views,
        statistics.fmean(means),
        statistics.stdev(means) / len(means) ** 0.5 if len(means) > 1 else runs[0][1].mean.stderr,
        {seed: value for seed, _, value, _ in runs if value is not None},
        any(edge for _, _, _, edge in runs),
    )
