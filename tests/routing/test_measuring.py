"""A Twin pool measured in every way: each score is the one that the way's definition gives, and notes say the rest."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from twin_pools import BYTES, ENCODER

from eutectic.errors import SourceError
from eutectic.evaluation.evaluator import evaluate
from eutectic.evaluation.model import Model
from eutectic.evaluation.scores import Outcome, Scores
from eutectic.evaluation.suite import load_suite
from eutectic.pools.pool import Pool
from eutectic.routing.fitting import fit_pool, save_router
from eutectic.routing.measuring import measure_pool
from eutectic.routing.router import RouterSettings

QUICK = RouterSettings(hidden=32, steps=80)


def value(outcome: Outcome) -> float:
    assert isinstance(outcome, Scores), outcome
    return outcome.value


def test_every_way_on_digits(digits_pool: Pool, digits_suite: dict[str, Any]) -> None:
    suite = load_suite(digits_suite)
    with pytest.raises(SourceError, match="has no router yet"):
        measure_pool(digits_pool, suite, split="validation")
    fitted = fit_pool(digits_pool, suite, QUICK)
    save_router(digits_pool, fitted)
    told: list[str] = []
    found = measure_pool(digits_pool, suite, split="validation", report=told.append)
    assert list(found.scores) == ["shared", "router", "oracle", "#flip", "#shift", "#invert", "fine-tuned"]
    assert found.accuracy == pytest.approx(fitted.accuracy) and not found.notes and told[0] == "shared"
    assert set(found.routed) == set(digits_pool) and set(found.scores["oracle"]) == set(digits_pool)
    for name in digits_pool:
        assert found.scores["oracle"][name] == found.scores[f"#{name}"][name]
        whole = evaluate(Model(digits_pool[name]), suite, split="validation")
        assert value(found.scores[f"#{name}"][name]) == pytest.approx(value(whole[name]), abs=5e-3)
        trained = evaluate(digits_pool.manifest.experts[name].source, suite, split="validation")
        assert value(found.scores["fine-tuned"][name]) == value(trained[name])
        assert value(found.scores["router"][name]) > value(found.scores["shared"][name])
    core = evaluate(Model(digits_pool.core), suite, split="validation")
    assert {n: value(o) for n, o in core.items()} == {n: value(o) for n, o in found.scores["shared"].items()}


def test_without_the_router(digits_pool: Pool, digits_suite: dict[str, Any]) -> None:
    found = measure_pool(digits_pool, load_suite(digits_suite), split="validation", learned=False)
    assert "router" not in found.scores and found.accuracy is None and not found.routed


def test_soft_gates_take_part_of_all(digits_pool: Pool, digits_suite: dict[str, Any]) -> None:
    suite = load_suite(digits_suite)
    save_router(digits_pool, fit_pool(digits_pool, suite, RouterSettings(hidden=4, steps=2)))  # of no opinion yet
    hard, soft = (measure_pool(digits_pool, suite, split="validation", soft=soft) for soft in (False, True))
    assert {n: s.value for n, s in hard.routed.items()} == {n: s.value for n, s in soft.routed.items()}
    assert any(value(hard.scores["router"][n]) != value(soft.scores["router"][n]) for n in suite.tasks)


def test_sources_that_are_gone_or_changed_are_left_out(
    random_pool: Callable[..., Pool], bytes_suite: dict[str, Any]
) -> None:
    pool, suite = random_pool(BYTES), load_suite(bytes_suite)
    left, right = (pool.path.parent / name for name in ("left", "right"))
    shutil.copy(left / "model.safetensors", right)
    found = measure_pool(pool, suite, split="validation", learned=False)
    assert set(found.scores["fine-tuned"]) == {"left", "asked"}
    shutil.rmtree(left)
    assert "fine-tuned" not in measure_pool(pool, suite, split="validation", learned=False).scores


def test_what_is_known_besides_is_said(random_pool: Callable[..., Pool], bytes_suite: dict[str, Any]) -> None:
    pool, suite = random_pool(BYTES), load_suite(bytes_suite)
    save_router(pool, fit_pool(pool, suite, QUICK))
    found = measure_pool(pool, suite, split="validation")
    assert found.notes == [
        "left, right: the router reads the whole slice that it is scored on; naming its choice would take 1.0 bits a "
        "slice"
    ]
    assert found.routed["left"].n == 12 and found.routed["asked"].n == 6
    assert np.isfinite([value(o) for scores in found.scores.values() for o in scores.values()]).all()


def test_heads_that_are_known_are_said(random_pool: Callable[..., Pool], headed_suite: dict[str, Any]) -> None:
    pool, suite = random_pool(ENCODER), load_suite(headed_suite)
    save_router(pool, fit_pool(pool, suite, QUICK))
    found = measure_pool(pool, suite, split="validation")
    assert found.notes == ["left, right: which head reads the encoder is known here; only the experts are chosen"]
