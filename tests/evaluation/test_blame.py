"""Blame: planted culprits are named, redundant ones by all subsets only, and chance is no culprit."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from eutectic.errors import RecipeError, SourceError
from eutectic.evaluation.blame import effect_of, leave_one_out, shapley

PARTS = ("a", "b", "c")
EASE = np.random.default_rng(0).random(400)


def hits(chance: float) -> np.ndarray:
    """The same 400 samples, of which a model gets the easiest ones right."""
    return (chance > EASE).astype(np.float64)


def test_a_culprit_and_a_helper_are_told() -> None:
    def score(gone: frozenset[str]) -> np.ndarray:
        return hits(0.7 - 0.2 * ("a" not in gone) + 0.1 * ("b" not in gone))

    found = leave_one_out(PARTS, score(frozenset()), score)
    assert [(part.name, part.verdict) for part in found] == [("a", "harms"), ("c", "no evidence"), ("b", "helps")]
    worst = found[0].effect
    assert worst is not None and worst.difference.low <= 0.2 <= worst.difference.high
    values = {part.name: part for part in shapley(PARTS, score)}
    assert values["a"].verdict == "harms" and values["b"].verdict == "helps" and values["c"].verdict == "no evidence"


def test_culprits_that_hide_one_another_are_found_by_all_subsets() -> None:
    def score(gone: frozenset[str]) -> np.ndarray:
        return hits(0.4 if {"a", "b"} - gone else 0.8)

    assert {part.verdict for part in leave_one_out(PARTS, score(frozenset()), score)} == {"no evidence"}
    found = shapley(PARTS, score)
    assert {part.name: part.verdict for part in found} == {"a": "harms", "b": "harms", "c": "no evidence"}
    total = sum(part.effect.difference.value for part in found if part.effect)
    assert total == pytest.approx(float((score(frozenset()) - score(frozenset(PARTS))).mean()))


def test_shapley_values_are_means_over_orders() -> None:
    random = np.random.default_rng(1)
    values: dict[frozenset[str], np.ndarray] = {}

    def score(gone: frozenset[str]) -> np.ndarray:
        return values.setdefault(gone, random.random(20))

    found = {p.name: p.effect.difference.value for p in shapley(PARTS, score) if p.effect}
    for name in PARTS:
        added = []
        for order in permutations(PARTS):
            before = frozenset(order[: order.index(name)])
            gone = frozenset(PARTS) - before
            added.append(float((score(gone - {name}) - score(gone)).mean()))
        assert found[name] == pytest.approx(np.mean(added))


def test_too_many_for_all_subsets() -> None:
    with pytest.raises(RecipeError, match="64 merges; this is done for up to 5 experts"):
        shapley("abcdef", lambda gone: hits(0.5))


def test_a_part_that_cannot_be_left_out_is_a_hole() -> None:
    def score(gone: frozenset[str]) -> np.ndarray:
        if "b" in gone:
            raise SourceError("the data is gone")
        return hits(0.5 + 0.2 * ("a" in gone))

    found = leave_one_out(PARTS, score(frozenset()), score)
    assert [(part.name, part.verdict) for part in found] == [
        ("a", "harms"), ("c", "no evidence"), ("b", "not measured")
    ]  # fmt: skip
    assert found[-1].reason == "the data is gone"


def test_chance_is_seldom_blamed() -> None:
    """200 experts that do nothing but change answers at random: corrected, fewer than 5% of families blame one."""
    random, blamed = np.random.default_rng(2), 0
    for _ in range(60):
        noise = {name: random.choice([-1.0, 0, 0, 0, 0, 1], size=120) for name in "abcde"}
        found = leave_one_out("abcde", np.zeros(120), lambda gone, noise=noise: noise[next(iter(gone))])
        blamed += any(part.verdict != "no evidence" for part in found)
    assert blamed <= 7  # of 60 at 5%: more than 7 in one of a hundred


def test_few_samples_that_differ_are_no_evidence() -> None:
    """Five samples all one way: the bootstrap is sure, random signs (McNemar's test) are not."""
    difference = np.zeros(300)
    difference[:5] = 1
    found = effect_of(difference)
    assert found.difference.low > 0 and found.p > 0.05 and not found.sure
    assert effect_of(np.zeros(10)).p == 1.0
