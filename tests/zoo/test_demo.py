"""`run_demo`: what is tuned, on what, and what is left on disk; with fewer candidates than the command has."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import yaml

from eutectic.methods import get_method
from eutectic.recipes.merge import plan
from eutectic.weights.checkpoint import open_checkpoint
from eutectic.zoo.demo import CANDIDATES, Result, run_demo
from eutectic.zoo.digit_views import VIEWS
from eutectic.zoo.digits import load_family

FEW = tuple(
    replace(candidate, grid=candidate.grid[1:4]) for candidate in CANDIDATES if candidate.method in ("slerp", "ties")
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return []


@pytest.fixture(scope="module")
def results(out: Path, lines: list[str]) -> list[Result]:
    """Two families, two candidates with three values each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eutectic.zoo.demo.CANDIDATES", FEW)
        return run_demo(out, seeds=2, report=lines.append)


def model(out: Path, seed: int, label: str) -> Path:
    """Where the model behind a line of the table lies."""
    if label == "base":
        return out / f"family-{seed}" / "base"
    if label.startswith("expert: "):
        return out / f"family-{seed}" / "experts" / label.removeprefix("expert: ")
    return out / "merged" / f"{next(c.method for c in FEW if c.label == label)}-{seed}"


def test_every_line_is_the_mean_over_families_on_test_images(out: Path, results: list[Result]) -> None:
    assert [result.label for result in results] == ["base", *(f"expert: {v}" for v in VIEWS), *(c.label for c in FEW)]
    families = [load_family(out / f"family-{seed}") for seed in (0, 1)]
    for result in results:
        scores = [f.measure(open_checkpoint(model(out, f.seed, result.label)), "test") for f in families]
        means = [score.mean.value for score in scores]
        assert result.mean == pytest.approx(fmean(means)) and result.stderr == pytest.approx(stdev(means) / 2**0.5)
        for view in VIEWS:
            assert result.views[view] == pytest.approx(fmean(score.views[view].value for score in scores))


def test_knobs_are_the_best_on_validation_images(out: Path, results: list[Result]) -> None:
    for candidate, result in zip(FEW, results[-len(FEW) :], strict=True):
        assert list(result.settings) == [0, 1]
        for seed, chosen in result.settings.items():
            family = load_family(out / f"family-{seed}")
            document = yaml.safe_load((out / "recipes" / f"{candidate.method}-{seed}.yaml").read_text())
            assert document["parameters"][candidate.knob] == chosen
            tried: dict[float, float] = {}
            for value in candidate.grid:
                document["parameters"][candidate.knob] = value
                tried[value] = family.measure(plan(document), "validation").mean.value
            assert tried[chosen] == max(tried.values())


def test_what_is_left_on_disk(out: Path, results: list[Result]) -> None:
    stems = sorted(f"{candidate.method}-{seed}" for candidate in FEW for seed in (0, 1))
    assert sorted(path.stem for path in (out / "recipes").iterdir()) == stems
    assert sorted(path.name for path in (out / "merged").iterdir()) == stems  # nothing half-finished
    document: dict[str, Any] = json.loads((out / "scores.json").read_text())
    assert (document["split"], document["seeds"]) == ("test", 2)
    assert [row["mean"] for row in document["rows"]] == [result.mean for result in results]


def test_slerp_takes_the_two_best_experts_of_the_family(out: Path, results: list[Result]) -> None:
    for seed in (0, 1):
        family = load_family(out / f"family-{seed}")
        score = {v: family.measure(open_checkpoint(p), "validation").mean.value for v, p in family.experts.items()}
        document = yaml.safe_load((out / "recipes" / f"slerp-{seed}.yaml").read_text())
        chosen = [Path(document["base_model"]).name, *(Path(source["model"]).name for source in document["models"])]
        assert sorted(score[view] for view in chosen) == sorted(score.values())[-2:]


def test_it_says_what_it_does(results: list[Result], lines: list[str]) -> None:
    assert [line.partition(":")[0] for line in lines if line.startswith("family")] == ["family 0", "family 1"]
    assert len([line for line in lines if line.startswith("merged by")]) == len(FEW)  # of the first family only


def test_every_candidate_is_a_method_with_its_knob() -> None:
    for candidate in CANDIDATES:
        method = get_method(candidate.method)
        assert set(candidate.parameters) <= set(method.parameters)
        assert (candidate.knob in method.parameters) if candidate.grid else candidate.knob == ""
        assert list(candidate.grid) == sorted(set(candidate.grid))
