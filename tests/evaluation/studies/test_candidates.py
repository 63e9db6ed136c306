"""Candidates: every recipe is valid, and its scale scales the merged change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import eutectic
from eutectic.evaluation.studies.candidates import CANDIDATES, FULL_GRID, QUICK_GRID, Candidate, candidates
from eutectic.methods import get_method, list_methods

STOCHASTIC = {"dare_linear", "dare_ties", "della"}


def test_grids() -> None:
    assert set(QUICK_GRID) <= set(FULL_GRID) and list(FULL_GRID) == sorted(FULL_GRID)
    assert {c.method for c in candidates()} == {c.method for c in CANDIDATES} & set(list_methods())
    assert [c.method for c in candidates(("ties", "linear"))] == ["linear", "ties"]


@pytest.mark.parametrize(
    "candidate", [c for c in candidates() if get_method(c.method).needs is None], ids=lambda c: c.id
)
def test_the_scale_scales_the_change(candidate: Candidate, family: dict[str, Path]) -> None:
    base = eutectic.open(family["base"])["embed.weight"].to_numpy()
    changes = []
    for scale in (1.0, 2.0):
        plan = eutectic.plan(candidate.recipe(str(family["base"]), [str(family["a"]), str(family["b"])], scale))
        changes.append(plan["embed.weight"].to_numpy() - base)
    assert np.linalg.norm(changes[0]) > 0
    assert np.allclose(changes[1], 2 * changes[0], atol=1e-4 * np.abs(changes[0]).max())


def test_sum_and_mean_are_the_same_scale(family: dict[str, Path]) -> None:
    """g = 1 is the mean of the changes: task arithmetic at 1 is the average of the experts."""
    known = {c.id: c for c in CANDIDATES}
    experts = [str(family["a"]), str(family["b"])]
    merged = [
        eutectic.plan(known[m].recipe(str(family["base"]), experts, 1.0))["layers.0.weight"].to_numpy()
        for m in ("linear", "task_arithmetic")
    ]
    assert np.allclose(*merged, atol=1e-6)
    assert known["tsv_m"].scale(5) == 5.0 and known["task_arithmetic"].scale(5) == 1.0
