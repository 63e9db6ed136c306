"""What merges are compared with: base, experts, an ensemble of their outputs, a greedy soup, joint training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from eutectic.evaluation.ensemble import Ensemble
from eutectic.evaluation.family import Family
from eutectic.evaluation.model import Model
from eutectic.evaluation.studies.bench import Bench, Measured

__all__ = ["baselines", "best_expert", "count_baselines", "greedy_soup"]


def baselines(bench: Bench) -> Iterator[Measured]:
    """Each baseline on the test split; what had to be chosen was chosen on validation."""
    yield bench.report("base", "base", "baseline", bench.base)
    for name, path in bench.experts.items():
        yield bench.report(f"expert:{name}", f"expert: {name}", "expert", path)
    best = best_expert(bench)
    yield bench.report("best-expert", f"best single expert ({best})", "baseline", bench.experts[best], needs="labelled")
    members = [bench.evaluator.subject(path) for path in bench.experts.values()]
    ensemble = Ensemble([member for member in members if isinstance(member, Model)])
    yield bench.report("ensemble", f"output ensemble of {len(members)}", "baseline", ensemble)
    soup, taken = greedy_soup(bench)
    yield bench.report("greedy-soup", f"greedy soup of {taken}", "baseline", soup, needs="labelled")
    if bench.family.joint is not None:
        yield bench.report(
            "joint", "joint training, equal compute", "baseline", str(bench.family.joint), needs="labelled"
        )
    for name, path in bench.family.mixtures.items():
        yield bench.report(f"mixture:{name}", f"data mixture: {name}", "baseline", str(path), needs="labelled")


def count_baselines(family: Family) -> int:
    """How many rows `baselines` gives."""
    return 4 + len(family.experts) + (family.joint is not None) + len(family.mixtures)


def ranked_experts(bench: Bench) -> list[str]:
    """The experts by their multi-task score on validation, the best first; NaN last."""
    scores = {
        name: bench.multitask(bench.outcomes(path, "validation", f"expert {name}", bench.tasks), "validation")
        for name, path in bench.experts.items()
    }
    return sorted(scores, key=lambda name: -np.nan_to_num(scores[name], nan=-np.inf))


def best_expert(bench: Bench) -> str:
    """The single expert with the best multi-task score on validation."""
    return ranked_experts(bench)[0]


def greedy_soup(bench: Bench) -> tuple[dict[str, Any], int]:
    """The recipe of the greedy soup (Wortsman et al. 2022, recipe 1), and how many experts it took.

    Experts in the order of their validation scores; each stays in the average if that does not lower it.
    """
    taken: list[str] = []
    best = -np.inf
    for name in ranked_experts(bench):
        recipe = _average(bench, [*taken, name])
        score = bench.multitask(bench.outcomes(recipe, "validation", f"soup with {name}", bench.tasks), "validation")
        if score >= best:
            taken, best = [*taken, name], score
    return _average(bench, taken), len(taken)


def _average(bench: Bench, names: list[str]) -> dict[str, Any]:
    models = [{"model": bench.experts[name]} for name in names]
    return {"merge_method": "linear", "models": models, "parameters": {"weight": 1.0}}
