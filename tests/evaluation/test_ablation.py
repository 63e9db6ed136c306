"""Recipes measured without their experts: a damaged one and its damaged layer are named on real models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import eutectic
from eutectic.errors import RecipeError, SourceError
from eutectic.evaluation.ablation import Ablation, depths_of
from eutectic.evaluation.bisect import bisect_experts, bisect_layers
from eutectic.evaluation.blame import blame
from eutectic.evaluation.evaluator import Evaluator
from eutectic.recipes.experts import recipe_of
from eutectic.zoo.digits import Family, build_digits


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return build_digits(tmp_path_factory.mktemp("zoo") / "digits")


@pytest.fixture(scope="module")
def damaged(digits: Family, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The expert of flipped digits: `one` with noise in a layer, `other` with the same in another, `nan` with NaN."""
    found = {}
    stored = {name: tensor.to_numpy() for name, tensor in eutectic.open(digits.experts["flip"]).items()}
    for name, layer, noise in (("one", 1, 0.3), ("other", 1, 0.3), ("nan", 0, np.nan)):
        folder = tmp_path_factory.mktemp("damaged") / name
        folder.mkdir()
        changed = stored[f"layers.{layer}.weight"]
        random = np.random.default_rng(5).standard_normal(changed.shape)
        save_file(
            {**stored, f"layers.{layer}.weight": (changed + noise * random).astype("f4")}, folder / "model.safetensors"
        )
        (folder / "config.json").write_bytes((digits.experts["flip"] / "config.json").read_bytes())
        found[name] = folder
    return found


@pytest.fixture
def evaluator(digits: Family, tmp_path: Path) -> Iterator[Evaluator]:
    with Evaluator(digits.path, ledger=tmp_path / "ledger.sqlite") as opened:
        yield opened


def case(evaluator: Evaluator, base: Path, *experts: Path, task: str = "upright", **facts: Any) -> Ablation:
    models = [{"model": str(path)} for path in experts]
    document = {"merge_method": "task_arithmetic", "base_model": str(base), "models": models}
    return Ablation(evaluator, recipe_of({**document, "parameters": {"weight": 0.4}, **facts}), task)


def test_the_damaged_expert_and_its_layer(evaluator: Evaluator, digits: Family, damaged: dict[str, Path]) -> None:
    shift, checker = digits.experts["shift"], digits.experts["checker"]
    trial = case(evaluator, digits.base, shift, damaged["one"], checker)
    found = blame(trial)
    assert found.regression.found and found.suspect == "one"
    assert [part.verdict for part in found.experts] == ["harms", "no evidence", "no evidence"]
    assert found.layers[0].name == "layers.1" and found.layers[0].verdict == "harms"
    assert all(part.verdict != "harms" for part in found.layers[1:])
    layers = bisect_layers(trial, "one")
    assert layers.run is not None and layers.run.verdict == "found"
    assert layers.layers[layers.run.start : layers.run.stop] == ("layers.1",)
    order = bisect_experts(trial)
    assert order.first is not None and order.experts[order.first.at] == "one"
    assert order.effect is not None and order.effect.sure
    assert bisect_layers(trial, "shift").run.verdict == "elsewhere"  # type: ignore[union-attr]


def test_no_regression_costs_two_merges(evaluator: Evaluator, digits: Family) -> None:
    said: list[str] = []
    trial = case(evaluator, digits.base, digits.experts["flip"], digits.experts["shift"], task="shift")
    trial.report = said.append
    found = blame(trial, exhaustive=True)
    assert not found.regression.found and found.experts == found.layers == found.shapley == []
    assert found.suspect is None and len(said) == 2
    assert bisect_layers(trial, "flip").run is None and bisect_experts(trial).first is None


def test_two_culprits(evaluator: Evaluator, digits: Family, damaged: dict[str, Path]) -> None:
    trial = case(evaluator, digits.base, damaged["one"], digits.experts["shift"], damaged["other"])
    found = blame(trial, layers=False, exhaustive=True)
    assert {part.name: part.verdict for part in found.shapley if part.name != "shift"} == {
        "one": "harms", "other": "harms"
    }  # fmt: skip
    worst, next_worst, _ = found.shapley
    assert {worst.name, next_worst.name} == {"one", "other"}


def test_a_killed_run_goes_on(
    evaluator: Evaluator, digits: Family, damaged: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = case(evaluator, digits.base, digits.experts["shift"], damaged["one"])
    first = blame(trial)

    def refuse(*_: Any) -> None:
        raise RuntimeError("measured again")

    monkeypatch.setattr("eutectic.evaluation.networks.load_network", refuse)
    assert evaluator.ledger is not None
    with Evaluator(digits.path, ledger=evaluator.ledger.path) as again:
        second = blame(case(again, digits.base, digits.experts["shift"], damaged["one"]))
    assert second.experts == first.experts and second.layers == first.layers


def test_an_expert_with_nan_is_named(evaluator: Evaluator, digits: Family, damaged: dict[str, Path]) -> None:
    trial = case(evaluator, digits.base, digits.experts["shift"], damaged["nan"])
    with pytest.raises(SourceError, match=r"the merge cannot be measured on task upright: .*nan.*layers.0.weight"):
        blame(trial)


def suite_of(folder: Path, body: str, **task: Any) -> dict[str, Any]:
    """A suite of one Python function."""
    name = f"judge_{folder.name}".replace("-", "_")
    (folder / f"{name}.py").write_text(f"import numpy\n\ndef judge(checkpoint, split):\n    {body}\n")
    return {"name": "own", "tasks": [{"name": "judge", "kind": "python", "function": f"{name}:judge", **task}]}


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        ("raise ValueError('no luck')", SourceError, "the base cannot be measured on task judge: ValueError: no luck"),
        ("return [float('nan')] * 3", SourceError, "sample 0 scored nan"),
        ("return 0.5", RecipeError, "tells no scores of single samples"),
        ("return [0.5] * (3 + int(checkpoint.path is None))", RecipeError, "scored 3 samples before and 4"),
    ],
)
def test_tasks_that_cannot_be_compared(
    digits: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, error: type[Exception], words: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    suite = suite_of(tmp_path, body)
    with Evaluator(suite) as evaluator:
        trial = case(evaluator, digits.base, digits.experts["flip"], task="judge")
        against = str(digits.base) if "before" in words else "base"
        with pytest.raises(error, match=words):
            blame(trial, against)


def test_lower_is_better(digits: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of the change is the loss: every expert harms."""
    monkeypatch.syspath_prepend(tmp_path)
    body = "return numpy.abs(checkpoint['layers.1.weight'].to_numpy()[:60]).mean(axis=1)"
    with Evaluator(suite_of(tmp_path, body, lower_is_better=True)) as evaluator:
        trial = case(evaluator, digits.base, digits.experts["flip"], digits.experts["shift"], task="judge")
        found = blame(trial)
    assert trial.sign == -1 and found.regression.found
    assert {part.verdict for part in found.experts} == {"harms"}
    assert {part.name: part.verdict for part in found.layers} == {
        "layers.1": "harms", "layers.0": "no evidence", "layers.2": "no evidence"
    }  # fmt: skip


def test_references(evaluator: Evaluator, digits: Family) -> None:
    trial = case(evaluator, digits.base, digits.experts["flip"], digits.experts["shift"])
    assert np.array_equal(trial.reference(), trial.reference(str(digits.base)))
    assert np.array_equal(trial.reference("flip"), trial.reference(str(digits.experts["flip"])))
    models = [{"model": str(digits.experts["flip"])}]
    bare = recipe_of({"merge_method": "linear", "models": models, "parameters": {"weight": 1}})
    with pytest.raises(RecipeError, match="--against names another reference"):
        Ablation(evaluator, bare, "flip").reference()
    with pytest.raises(RecipeError, match="several tasks"):
        Ablation(evaluator, bare)


def test_where_tensors_lie() -> None:
    names = ["model.embed.weight", "model.layers.10.a", "model.layers.2.a", "vision.blocks.0.w", "model.norm.weight"]
    assert list(depths_of(names)) == ["embeddings", "model.layers.2", "model.layers.10", "vision.blocks.0", "head"]
