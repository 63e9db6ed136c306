"""Weights of checkpoints: float64 references of every form, and what holds for any values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eutectic.errors import RecipeError
from eutectic.recipes.schedules import (
    FORMS,
    SCHEDULES,
    cosine_weights,
    ema_weights,
    exp_weights,
    last_weights,
    lower_is_better,
    metric_weights,
    power_weights,
    rank_weights,
    schedule_weights,
    step_weights,
    uniform_weights,
)

LOSSES = np.array([2.5, 1.25, 0.8, 0.9, 1.25])
POSITIVE = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9)
FACTORS = st.floats(0, 20)
FORM = st.sampled_from([*FORMS])


def shares(scores: Any) -> Any:
    return np.asarray(scores, np.float64) / np.sum(scores)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("lower", [True, False])
def test_forms_are_their_formulas(p: float, lower: bool) -> None:
    sign = -1.0 if lower else 1.0
    np.testing.assert_allclose(power_weights([*LOSSES], p=p, lower=lower), shares(LOSSES ** (sign * p)), rtol=1e-14)
    np.testing.assert_allclose(exp_weights([*LOSSES], p=p, lower=lower), shares(np.exp(sign * p * LOSSES)), rtol=1e-14)
    ranks = np.array([1, 2.5, 5, 4, 2.5]) if lower else np.array([5, 3.5, 1, 2, 3.5])
    np.testing.assert_allclose(rank_weights([*LOSSES], p=p, lower=lower), shares(ranks**p), rtol=1e-14)


def test_schedules_are_their_formulas() -> None:
    for count in (1, 2, 7):
        i = np.arange(1, count + 1)
        np.testing.assert_allclose(uniform_weights(count), np.full(count, 1 / count))
        np.testing.assert_allclose(ema_weights(count, decay=0.9), shares(0.9 ** (count - i)), rtol=1e-14)
        wanted = (np.cos(np.pi * (i - 1) / count) - np.cos(np.pi * i / count)) / 2
        np.testing.assert_allclose(cosine_weights(count), wanted, rtol=1e-13)
    np.testing.assert_allclose(step_weights([100, 200, 400], p=2), shares([1, 4, 16]), rtol=1e-14)
    assert last_weights(5, k=2) == [0, 0, 0, 0.5, 0.5] and last_weights(3, k=3) == uniform_weights(3)
    assert ema_weights(3, decay=0) == [0, 0, 1] and ema_weights(3, decay=1) == uniform_weights(3)


def test_a_cosine_average_is_a_decayed_run() -> None:
    """Checkpoints θ_i = sum of the updates so far: their average is the run whose i-th update counts W_i."""
    updates = np.random.default_rng(0).normal(size=(6, 4))
    checkpoints = np.cumsum(updates, axis=0)
    rate = (1 + np.cos(np.pi * np.arange(6) / 6)) / 2
    np.testing.assert_allclose(cosine_weights(6) @ checkpoints, rate @ updates, rtol=1e-12)
    np.testing.assert_allclose(uniform_weights(6) @ checkpoints, (1 - np.arange(6) / 6) @ updates, rtol=1e-12)


@settings(deadline=None)
@given(POSITIVE, FACTORS, FORM, st.booleans(), st.randoms())
def test_weights_by_a_metric(values: list[float], p: float, form: str, lower: bool, random: Any) -> None:
    weights = metric_weights(values, form=form, p=p, lower=lower)
    assert math.fsum(weights) == pytest.approx(1, abs=1e-15) and min(weights) >= 0
    order = sorted(range(len(values)), key=lambda i: -values[i] if lower else values[i])
    ranked = [weights[i] for i in order]
    assert ranked == sorted(ranked)  # the better, the more; equals have equal weights up to their order
    assert all(weights[i] == weights[j] for i in order for j in order if values[i] == values[j])
    shuffled = random.sample(range(len(values)), len(values))
    assert metric_weights([values[i] for i in shuffled], form=form, p=p, lower=lower) == [weights[i] for i in shuffled]


@given(POSITIVE, FORM, st.booleans())
def test_no_factor_is_the_plain_average(values: list[float], form: str, lower: bool) -> None:
    assert metric_weights(values, form=form, p=0, lower=lower) == uniform_weights(len(values))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9, unique=True), FORM, st.booleans())
def test_a_large_factor_is_the_best_checkpoint(values: list[int], form: str, lower: bool) -> None:
    best = (min if lower else max)(values)
    assert metric_weights(values, form=form, p=1e5, lower=lower) == [float(value == best) for value in values]


@pytest.mark.parametrize("form", FORMS)
def test_extremes_do_not_overflow(form: str) -> None:
    for values in ([1e308, 1e-308], [5e-324, 1.0], [1.0, 1.0 + 1e-15]):
        for p in (0.0, 5e-324, 1.0, 1e308):
            weights = metric_weights(values, form=form, p=p)
            assert math.fsum(weights) == pytest.approx(1) and all(math.isfinite(w) for w in weights)
    assert math.fsum(exp_weights([-1e308, 1e308], p=3)) == 1


@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_finite_has_no_weight(form: str) -> None:
    nan, inf = math.nan, math.inf
    found = metric_weights([1.0, nan, 2.0, inf], form=form, p=2)
    assert found[1] == found[3] == 0 and [found[0], found[2]] == metric_weights([1.0, 2.0], form=form, p=2)
    with pytest.raises(RecipeError, match="none of the 2 values of the metric is finite"):
        metric_weights([nan, inf], form=form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("p", [-1.0, math.nan, math.inf])
def test_factors_are_checked(form: str, p: float) -> None:
    with pytest.raises(RecipeError, match="choose a finite number from 0"):
        metric_weights([1.0], form=form, p=p)


def test_what_power_does_not_take() -> None:
    for values, lower, why in (
        ([0.0, 1.0], True, "takes values above zero, and one is 0"),
        ([-1.0, 1.0], True, "takes values above zero, and one is -1"),
        ([-1.0, 1.0], False, "takes no negative values"),
        ([0.0, 0.0], False, "all values are zero"),
    ):
        with pytest.raises(RecipeError, match=why):
            power_weights(values, lower=lower)
    assert power_weights([0.0, 2.0], lower=False) == [0, 1]
    assert rank_weights([-1.0, 0.0])[0] > 0.5 < exp_weights([-1.0, 0.0])[0]


def test_wrong_schedules() -> None:
    for k in (0, 4, -1):
        with pytest.raises(RecipeError, match=f"k is {k}, and there are 3 checkpoints"):
            last_weights(3, k=k)
    for decay in (-0.1, 1.1, math.nan):
        with pytest.raises(RecipeError, match="decay is"):
            ema_weights(3, decay=decay)
    with pytest.raises(RecipeError, match="all steps are 0"):
        step_weights([0, 0])
    with pytest.raises(RecipeError, match="needs the step of every checkpoint"):
        schedule_weights("step", [1, None])
    with pytest.raises(RecipeError, match=r"no schedule 'cosin'.*did you mean 'cosine'"):
        schedule_weights("cosin", [1])
    with pytest.raises(RecipeError, match="no form 'pow'"):
        metric_weights([1.0], form="pow")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("count", [1, 2, 13])
def test_every_schedule_sums_to_one(schedule: str, count: int) -> None:
    weights = schedule_weights(schedule, [*range(10, 10 + count)], k=1, decay=0.7, p=2)
    assert math.fsum(weights) == pytest.approx(1, abs=1e-15) and min(weights) >= 0 and len(weights) == count


@pytest.mark.parametrize(
    ("metric", "lower"),
    [("eval_loss", True), ("loss", True), ("eval_squad_loss", True), ("perplexity", True), ("error_rate", True),
     ("eval_wer", True), ("rmse", True), ("eval_accuracy", False), ("answer_f1", False), ("power", False)],
)  # fmt: skip
def test_directions(metric: str, lower: bool) -> None:
    assert lower_is_better(metric) is lower
