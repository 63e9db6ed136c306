"""Studies: the same table twice, choices on validation alone, holes that stop nothing, runs that resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eutectic.errors import OutputError, RecipeError, SourceError, VerificationError
from eutectic.evaluation.ledger import Ledger
from eutectic.evaluation.results import Hole, Results, Score
from eutectic.evaluation.statistics import generator
from eutectic.evaluation.studies.in_the_wild import Trial, draw_subsets, success
from eutectic.evaluation.studies.study import STUDIES, Setup, run_study
from eutectic.evaluation.tasks.classification import Classification
from eutectic.zoo.digits import Family, build_digits

METHODS = ("linear", "task_arithmetic", "ties")


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> list[Family]:
    return [build_digits(tmp_path_factory.mktemp("zoo") / f"digits-{seed}", seed=seed) for seed in (0, 1)]


def timeless(results: Results) -> dict[str, Any]:
    found = results.to_json()
    for row in found["rows"]:
        del row["seconds"]
    return found


@pytest.mark.parametrize("name", STUDIES)
def test_the_same_table_twice_from_a_clean_cache(name: str, families: list[Family], tmp_path: Path) -> None:
    setup = Setup(only=METHODS, subsets=4)
    runs = [run_study(name, [families[0].path], tmp_path / run, setup) for run in "ab"]
    assert timeless(runs[0]) == timeless(runs[1])
    assert Results.load(tmp_path / "a") == runs[0]
    ids = [row.id for row in runs[0].rows]
    assert ids[:1] == ["base"] and {"best-expert", "ensemble", "greedy-soup", "joint"} <= set(ids)


def test_rows_of_a_table(families: list[Family], tmp_path: Path) -> None:
    found = run_study("mergebench", [f.path for f in families], tmp_path / "run", Setup(only=METHODS))
    rows = {row.id: row for row in found.rows}
    assert [f.seed for f in found.family] == [0, 1]
    for name in families[0].experts:
        cell = rows[f"expert:{name}"].scores[name]
        assert isinstance(cell, Score) and cell.value > 0.8
    merged = rows["task_arithmetic"]
    assert merged.mean is not None and merged.mean.low < merged.mean.value < merged.mean.high < 1
    assert merged.tuned is not None and merged.tuned.evaluations == 2 * len(Setup().grid)
    assert merged.recipe is not None and merged.bytes.model == rows["base"].bytes.model
    assert rows["ensemble"].bytes.model == 5 * rows["base"].bytes.model  # type: ignore[operator]
    general = merged.forgetting["general"]
    base, mine = rows["base"].scores["general"], merged.scores["general"]
    assert isinstance(base, Score) and isinstance(mine, Score)
    assert general.value == pytest.approx(mine.value - base.value, abs=1e-5)
    assert {claim.id for claim in found.claims} >= {"M1", "M2", "M3", "M5-ties"}
    assert any(pair.a == "ties" and pair.b == "task_arithmetic" for pair in found.pairs)


def test_the_test_split_plays_no_part_in_choices(
    families: list[Family], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With other test scores every choice stays the same, and test is measured once for each row."""
    seen: list[str] = []
    real = Classification.measure

    def spoiled(self: Classification, subject: Any, split: str, rows: np.ndarray) -> np.ndarray:
        found = real(self, subject, split, rows)
        if split == "test":
            seen.append(f"{self.name} {subject.identity}")
            return generator(0, subject.identity + self.name).random(len(found))
        return found

    setup = Setup(only=METHODS)
    honest = run_study("mergebench", [families[0].path], tmp_path / "a", setup)
    monkeypatch.setattr(Classification, "measure", spoiled)
    spoilt = run_study("mergebench", [families[0].path], tmp_path / "b", setup)
    assert [(r.id, r.tuned, r.recipe, r.label) for r in honest.rows] == [
        (r.id, r.tuned, r.recipe, r.label) for r in spoilt.rows
    ]
    assert len(seen) == len(set(seen))


class Killed(BaseException):
    """What no handler of errors catches."""


def test_a_killed_run_resumes(families: list[Family], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    real = Classification.measure

    def dies(self: Classification, subject: Any, split: str, rows: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 100:
            raise Killed
        return real(self, subject, split, rows)

    monkeypatch.setattr(Classification, "measure", dies)
    setup = Setup(only=METHODS)
    with pytest.raises(Killed):
        run_study("mergebench", [families[0].path], tmp_path / "run", setup)
    assert not (tmp_path / "run" / "results.json").exists()
    with Ledger(tmp_path / "run" / "ledger.sqlite") as ledger:
        assert len(ledger) == 99
    resumed = run_study("mergebench", [families[0].path], tmp_path / "run", setup)
    total, calls = calls, 0
    whole = run_study("mergebench", [families[0].path], tmp_path / "other", setup)
    assert total == calls + 1  # the interrupted one was begun twice
    assert timeless(resumed) == timeless(whole)


def test_a_task_that_fails_is_a_hole(families: list[Family], tmp_path: Path) -> None:
    """Its test data is gone: the other tasks are measured, and no mean is invented."""
    folder = shutil.copytree(families[0].path, tmp_path / "family")
    suite = json.loads((folder / "suite.json").read_text())
    suite["tasks"].append({"name": "extra", "kind": "classification", "role": "base", "data": {
        split: f"data/gone.{split}.safetensors" for split in ("validation", "test")}})  # fmt: skip
    (folder / "suite.json").write_text(json.dumps(suite))
    with pytest.raises(VerificationError, match=r"suite\.json: was changed"):
        run_study("mergebench", [folder], tmp_path / "run", Setup(only=METHODS))
    description = json.loads((folder / "family.json").read_text())
    from eutectic.weights.digest import hash_bytes

    description["files"]["suite.json"]["blake3"] = hash_bytes((folder / "suite.json").read_bytes())
    (folder / "family.json").write_text(json.dumps(description))
    found = run_study("mergebench", [folder], tmp_path / "run", Setup(only=METHODS))
    for row in found.rows:
        hole = row.scores["extra"]
        assert isinstance(hole, Hole) and "is missing" in hole.error
        assert row.mean is not None and "extra" not in row.forgetting


def test_what_cannot_begin(families: list[Family], tmp_path: Path) -> None:
    path = families[0].path
    with pytest.raises(RecipeError, match="no study is called 'mergebnch'; did you mean 'mergebench'"):
        run_study("mergebnch", [path], tmp_path / "run")
    with pytest.raises(RecipeError, match="at least one family"):
        run_study("mergebench", [], tmp_path / "run")
    with pytest.raises(RecipeError, match="no method 'tiess' takes part in studies; did you mean 'ties'"):
        run_study("mergebench", [path], tmp_path / "run", Setup(only=("tiess",)))
    with pytest.raises(SourceError, match=r"no family\.json"):
        run_study("mergebench", [tmp_path], tmp_path / "run")
    run_study("mergebench", [path], tmp_path / "run", Setup(only=("linear",)))
    with pytest.raises(OutputError, match="holds the study mergebench"):
        run_study("3h", [path], tmp_path / "run")


def test_subsets_are_random_distinct_and_the_same_for_a_seed() -> None:
    names = list("abcdefgh")
    found = draw_subsets(names, 30, seed=1)
    assert len(set(found)) == 30 and found == draw_subsets(names, 30, seed=1) != draw_subsets(names, 30, seed=2)
    assert {len(subset) for subset in found} == set(range(2, 9))
    with pytest.raises(RecipeError, match="at least 2 experts"):
        draw_subsets(["a"], 3, seed=0)


def test_intervals_over_experts_are_wider_than_over_subsets() -> None:
    """Subsets that share a good expert are no replicates: the interval knows that there are only four experts."""
    names = list("abcd")
    subsets = draw_subsets(names, 11, seed=0)
    trials = [Trial("m", True, s, 1.0, False, merged=1.0 if "a" in s else 0.0, base=0.5, best=0.5) for s in subsets]
    found = success(trials, "beats_base")
    share = float(np.mean([trial.beats_base for trial in trials]))
    assert found.value == pytest.approx(share, abs=1e-6) and found.low is not None and found.high is not None
    naive = 2 * 1.96 * (share * (1 - share) / len(trials)) ** 0.5
    assert found.high - found.low > 0.5 * naive
    assert success(trials, "gain").value == pytest.approx(share - 0.5, abs=1e-6)
