"""Fitting a pool's router: what it learned is counted on data that it has not seen, and kept with whose it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from twin_pools import BYTES, ENCODER, pack_twin

from eutectic.errors import FormatError, OutputError, RecipeError, SourceError
from eutectic.evaluation.suite import load_suite
from eutectic.pools.pool import Pool, open_pool
from eutectic.routing.fitting import FILE, expert_tasks, fit_pool, load_router, save_router
from eutectic.routing.router import RouterSettings
from eutectic.weights.safetensors import write_safetensors

QUICK = RouterSettings(hidden=16, steps=60)


def test_it_tells_the_views_apart(digits_pool: Pool, digits_suite: dict[str, Any]) -> None:
    suite, told = load_suite(digits_suite), list[str]()
    fitted = fit_pool(digits_pool, suite, report=told.append)
    assert fitted.accuracy > 0.9 and list(fitted.counts) == list(digits_pool) == list(fitted.router.experts)
    for name in digits_pool:
        assert sum(fitted.counts[name].values()) == suite.tasks[name].count("validation")  # type: ignore[attr-defined]
        assert fitted.samples[name] == suite.tasks[name].count("train")  # type: ignore[attr-defined]
    assert told == [f"{sum(fitted.samples.values()):,} samples read by the shared expert"]


def test_the_test_data_are_never_opened(digits_pool: Pool, digits_suite: dict[str, Any]) -> None:
    for task in digits_suite["tasks"]:
        task["data"]["test"] = "/nowhere"
    fit_pool(digits_pool, load_suite(digits_suite), QUICK, limit=50)


def test_texts_of_several_kinds(random_pool: Callable[..., Pool], bytes_suite: dict[str, Any]) -> None:
    found = fit_pool(random_pool(BYTES), load_suite(bytes_suite))
    assert found.accuracy > 0.75 and found.samples == {"left": 46, "right": 40} and found.router.width == 16


def test_an_encoder(random_pool: Callable[..., Pool], headed_suite: dict[str, Any]) -> None:
    found = fit_pool(random_pool(ENCODER), load_suite(headed_suite), limit=30)
    assert found.accuracy > 0.8 and found.samples == {"left": 30, "right": 30}


def test_kept_and_read_again(digits_pool: Pool, digits_suite: dict[str, Any]) -> None:
    suite = load_suite(digits_suite)
    with pytest.raises(SourceError, match="has no router yet; `eutectic route fit"):
        load_router(digits_pool)
    fitted = fit_pool(digits_pool, suite, QUICK, limit=80)
    save_router(digits_pool, fitted)
    again = load_router(open_pool(digits_pool.path))
    assert again.router.digest == fitted.router.digest and again.settings == QUICK
    assert (again.counts, again.samples, again.suite) == (fitted.counts, fitted.samples, fitted.suite)
    first = (digits_pool.path / FILE).read_bytes()
    save_router(digits_pool, fit_pool(digits_pool, suite, QUICK, limit=80))
    assert (digits_pool.path / FILE).read_bytes() == first and not list(digits_pool.path.glob("*.partial"))


def test_a_router_of_other_experts_is_refused(
    digits_pool: Pool, digits_suite: dict[str, Any], digits: Path, digits_experts: dict[str, Path], tmp_path: Path
) -> None:
    save_router(digits_pool, fit_pool(digits_pool, load_suite(digits_suite), QUICK, limit=40))
    raw = (digits_pool.path / FILE).read_bytes()
    turned = pack_twin(digits / "base", dict(reversed(digits_experts.items())), tmp_path / "turned")
    for other in (turned, pack_twin(digits / "base", digits_experts, tmp_path / "other", share=0.2)):
        (other.path / FILE).write_bytes(raw)
        with pytest.raises(SourceError, match="was fitted for other experts than the pool now has"):
            load_router(other)


def test_a_damaged_router_is_refused(digits_pool: Pool, digits_suite: dict[str, Any]) -> None:
    path = digits_pool.path / FILE
    save_router(digits_pool, fit_pool(digits_pool, load_suite(digits_suite), QUICK, limit=40))
    raw = path.read_bytes()
    for damage in (b"", raw[:100], raw.replace(b"eutectic.router", b"eutectic.rooter")):
        path.write_bytes(damage)
        with pytest.raises(FormatError):
            load_router(digits_pool)
    for text in ("[]", "{}", json.dumps({"version": 2})):
        write_safetensors(path, {"mean": np.zeros(2, "f4")}, {"eutectic.router": text})
        with pytest.raises(FormatError, match=r"no router of ours|a router of version 2"):
            load_router(digits_pool)


def test_a_router_that_cannot_be_written(digits_pool: Pool, digits_suite: dict[str, Any]) -> None:
    fitted = fit_pool(digits_pool, load_suite(digits_suite), QUICK, limit=40)
    (digits_pool.path / f"{FILE}.partial").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        save_router(digits_pool, fitted)


def test_suites_that_do_not_fit(digits_pool: Pool, digits_suite: dict[str, Any]) -> None:
    def tasks(change: Callable[[list[dict[str, Any]]], object]) -> dict[str, Any]:
        copy = json.loads(json.dumps(digits_suite))
        change(copy["tasks"])
        return copy

    def rename(found: list[dict[str, Any]]) -> None:
        found[0]["expert"] = "upright"

    for change, words in (
        (rename, "task flip is that of expert 'upright', which .* has not; its experts are flip, shift, invert"),
        (lambda t: t[0].pop("expert"), "task flip names no `expert`"),
        (lambda t: t.pop(0), "no task is that of flip, so a router cannot learn"),
        (lambda t: t[1].update(labels=["a", "b"]), "tasks flip and shift read the same outputs .* as different"),
        (lambda t: t.append({"name": "run", "kind": "command", "command": "true", "unit": "x", "expert": "flip"}),
         "task run is of kind command, which has no samples"),
    ):  # fmt: skip
        with pytest.raises(RecipeError, match=words):
            expert_tasks(digits_pool, load_suite(tasks(change)))
    missing = tasks(lambda t: t[2]["data"].pop("train"))
    with pytest.raises(RecipeError, match="task invert: no split 'train'"):
        fit_pool(digits_pool, load_suite(missing), QUICK)
