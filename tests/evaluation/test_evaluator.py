"""The evaluator: recipes measured without being written, nothing twice, holes instead of stops."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eutectic
from eutectic.evaluation.ensemble import Ensemble
from eutectic.evaluation.evaluator import Evaluator, evaluate
from eutectic.evaluation.model import Model
from eutectic.evaluation.scores import Failure, Scores
from eutectic.evaluation.suite import load_suite
from eutectic.recipes.merge import merge
from eutectic.weights.checkpoint import Checkpoint
from eutectic.zoo.digits import Family, build_digits


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return build_digits(tmp_path_factory.mktemp("zoo") / "digits")


def recipe(family: Family, method: str = "task_arithmetic", **parameters: Any) -> dict[str, Any]:
    models = [{"model": str(path)} for path in family.experts.values()]
    return {
        "merge_method": method, "base_model": str(family.base), "models": models,
        "parameters": {"weight": 1.0, **parameters},
    }  # fmt: skip


def values(outcomes: dict[str, Any]) -> dict[str, float]:
    return {name: outcome.value for name, outcome in outcomes.items()}


def test_a_recipe_scores_as_the_folder_that_it_makes(family: Family, tmp_path: Path) -> None:
    wish = recipe(family, **{"lambda": 0.2})
    merge(wish, tmp_path / "out")
    with Evaluator(family.suite) as evaluator:
        planned, written = evaluator.measure(wish), evaluator.measure(tmp_path / "out")
    assert values(planned) == values(written)
    assert all(np.array_equal(planned[name].samples, written[name].samples) for name in planned)
    assert values(evaluate(wish, family.suite)) == values(planned)


def test_classification_against_numpy(family: Family) -> None:
    checkpoint = eutectic.open(family.experts["flip"])
    found = evaluate(family.experts["flip"], family.suite, split="validation")
    for task in load_suite(family.suite):
        stored = eutectic.open(task.path(task.data["validation"]))  # type: ignore[attr-defined]
        x = stored["inputs"].to_numpy().astype(np.float64)
        for layer in range(3):
            x = x @ checkpoint[f"layers.{layer}.weight"].to_numpy().astype(np.float64).T
            x = x + checkpoint[f"layers.{layer}.bias"].to_numpy()
            x = np.maximum(x, 0) if layer < 2 else x
        hits = x.argmax(axis=1) == stored["labels"].to_numpy()
        assert np.mean(hits != found[task.name].samples) < 0.005  # float32 may decide a near tie otherwise


def test_nothing_is_measured_twice(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, wish = tmp_path / "ledger.sqlite", recipe(family, **{"lambda": 0.25})
    with Evaluator(family.suite, ledger=path) as evaluator:
        first = evaluator.measure(wish, split="validation")
        other = evaluator.measure(recipe(family, **{"lambda": 0.5}), split="validation")
    assert values(other) != values(first)

    def refuse(*_: Any) -> None:
        raise RuntimeError("measured again")

    monkeypatch.setattr("eutectic.evaluation.networks.load_network", refuse)
    with Evaluator(family.suite, ledger=path) as evaluator:
        again = evaluator.measure(dict(reversed(list(wish.items()))), split="validation")
        assert values(again) == values(first)
        fresh = evaluator.measure(wish, split="test", tasks=["flip"])["flip"]  # not in the ledger
        assert isinstance(fresh, Failure) and "measured again" in fresh.reason


def test_fifty_recipes_read_each_source_once(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources are opened once and their tensors stay in memory; nothing is written."""
    opened: list[str] = []
    real = Checkpoint.__init__

    def count(self: Checkpoint, tensors: Any, **facts: Any) -> None:
        opened.append(str(facts.get("path")))
        real(self, tensors, **facts)

    monkeypatch.setattr(Checkpoint, "__init__", count)
    before = sorted(family.path.rglob("*"))
    with Evaluator(family.suite) as evaluator:
        scores = [values(evaluator.measure(recipe(family, **{"lambda": at / 50}), tasks=["flip"])) for at in range(50)]
    assert len({score["flip"] for score in scores}) > 10
    stored = [path for path in opened if "experts" in path or "base" in path]
    assert len(stored) == 2 * 6  # each source opened, and held, once
    assert sorted(family.path.rglob("*")) == before


def test_fidelity_takes_a_share_of_the_samples(family: Family) -> None:
    with Evaluator(family.suite) as evaluator:
        whole = evaluator.measure(family.base, tasks=["flip"])["flip"]
        half = evaluator.measure(family.base, tasks=["flip"], fidelity=0.5)["flip"]
        assert isinstance(whole, Scores) and isinstance(half, Scores)
        assert half.n == round(whole.n / 2) and abs(half.value - whole.value) < 0.1


def test_an_ensemble_averages_probabilities(family: Family) -> None:
    with Evaluator(family.suite) as evaluator:
        one = evaluator.subject(family.experts["flip"])
        assert isinstance(one, Model)
        twice = Ensemble([one, one])
        assert values(evaluator.measure(twice)) == values(evaluator.measure(one))
        members = [evaluator.subject(path) for path in family.experts.values()]
        whole = Ensemble([member for member in members if isinstance(member, Model)])
        turned = Ensemble(list(reversed(whole.members)))
        assert whole.identity == turned.identity != one.identity
        mean = np.mean(list(values(evaluator.measure(whole)).values()))
        assert mean > max(np.mean(list(values(evaluator.measure(member)).values())) for member in members)


TASKS = {
    "good": {"kind": "python", "function": "builtins:len"},
    "raises": {"kind": "python", "function": "os:remove"},
    "nan": {"kind": "python", "function": "tests_scorers:not_a_number"},
    "missing": {"kind": "classification", "data": {"test": "nowhere.safetensors"}},
    "nosplit": {"kind": "classification", "data": {"train": "nowhere.safetensors"}},
}


def test_one_hole_stops_nothing(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tests_scorers.py").write_text(
        "def not_a_number(checkpoint, split):\n    return [0.5, float('nan')]\n"
        "def size(checkpoint, split):\n    return len(checkpoint)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    tasks = {**TASKS, "good": {"kind": "python", "function": "tests_scorers:size"}}
    suite = {"name": "s", "tasks": [{"name": name, **task} for name, task in tasks.items()]}
    found = evaluate(family.base, suite)
    assert isinstance(found["good"], Scores) and found["good"].value == 6
    reasons = {name: outcome.reason for name, outcome in found.items() if isinstance(outcome, Failure)}
    assert reasons.keys() == tasks.keys() - {"good"}
    assert "TypeError" in reasons["raises"]
    assert "sample 1 scored nan" in reasons["nan"]
    assert "nowhere.safetensors is missing; build or fetch it again" in reasons["missing"]
    assert "no split 'test'; it has train" in reasons["nosplit"]


def test_a_network_that_answers_nan_is_a_hole(family: Family, make_model: Any) -> None:
    tensors = {name: tensor.to_numpy() for name, tensor in eutectic.open(family.base).items()}
    tensors["layers.1.bias"] = np.full_like(tensors["layers.1.bias"], math.nan)
    broken = make_model("broken", tensors, dict(eutectic.open(family.base).config))
    found = evaluate(broken, family.suite)
    assert all(isinstance(o, Failure) and "NaN or infinity" in o.reason for o in found.values())


def test_the_data_is_part_of_the_key(family: Family, tmp_path: Path) -> None:
    task = next(iter(load_suite(family.suite)))
    source = task.path(task.data["test"])  # type: ignore[attr-defined]
    copy = tmp_path / "data.safetensors"
    copy.write_bytes(source.read_bytes())
    suite = {"tasks": [{"name": "a", "kind": "classification", "data": {"test": str(copy)}}]}
    with Evaluator(suite, ledger=tmp_path / "l.sqlite") as evaluator:
        before = evaluator.measure(family.base)["a"]
        other = load_suite(family.suite).tasks["flip"]
        time.sleep(0.01)
        copy.write_bytes(other.path(other.data["test"]).read_bytes())  # type: ignore[attr-defined]
        after = evaluator.measure(family.base)["a"]
    assert isinstance(before, Scores) and isinstance(after, Scores) and before.value != after.value


def test_models_that_differ_in_nothing_but_bytes_are_not_mistaken(family: Family, tmp_path: Path) -> None:
    """Unpacked from an archive, files of one name, size and header may have one time of change."""
    for name in ("base", "flip"):
        shutil.copytree(family.base if name == "base" else family.experts[name], tmp_path / name)
        shutil.copy(family.base / "config.json", tmp_path / name)
        os.utime(tmp_path / name / "model.safetensors", (0, 0))
    with Evaluator(family.suite, ledger=tmp_path / "l.sqlite") as evaluator:
        assert values(evaluator.measure(tmp_path / "base")) != values(evaluator.measure(tmp_path / "flip"))


def test_checkpoints_in_memory_are_told_apart_by_their_bytes(family: Family) -> None:
    stored = {name: eutectic.open(path) for name, path in (("base", family.base), ("flip", family.experts["flip"]))}
    with Evaluator(family.suite) as evaluator:
        for checkpoint in stored.values():
            held = Checkpoint(dict(checkpoint.items()), config=checkpoint.config)
            assert values(evaluator.measure(held)) == values(evaluator.measure(checkpoint))


def test_a_score_of_all_samples_is_never_kept_as_one_of_a_share(tmp_path: Path, family: Family) -> None:
    (tmp_path / "beside.py").write_text(
        "calls = []\ndef size(checkpoint, split):\n    calls.append(1)\n    return 1.0\n"
    )
    suite = tmp_path / "suite.yaml"
    suite.write_text("tasks: [{name: size, kind: python, function: 'beside:size'}]")
    with Evaluator(suite, ledger=tmp_path / "l.sqlite") as evaluator:
        for fidelity in (0.25, 1.0):
            assert isinstance(evaluator.measure(family.base, fidelity=fidelity)["size"], Scores)
        assert len(evaluator.ledger) == 1  # type: ignore[arg-type]
    assert len(sys.modules["beside"].calls) == 1
    assert str(tmp_path) not in sys.path
