"""Studies: the same table twice, choices on validation alone, holes that stop nothing, runs that resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
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
    setup = Setup(only=METHODS if name == "mergebench" else METHODS[:1], subsets=3)
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


def test_learned_weights_and_merged_statistics(
    families: list[Family], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learned once from training inputs, with no scale tried; Gram matrices through the merged model."""
    from eutectic.evaluation.fitting.fit import fit
    from eutectic.evaluation.studies import bench

    calls: list[Any] = []

    def few(*args: Any, **keywords: Any) -> Any:
        calls.append(keywords["granularity"])
        return fit(*args, **keywords, steps=2)

    monkeypatch.setattr(bench, "fit", few)
    setup = Setup(only=("task_arithmetic", "regmean", "regmean_pp", "adamerging", "adamerging_tensor"))
    found = run_study("mergebench", [families[0].path], tmp_path / "run", setup)
    rows = {row.id: row for row in found.rows}
    assert calls == ["source", "tensor"]
    for name in ("adamerging", "adamerging_tensor"):
        tuned = rows[name].tuned
        assert rows[name].needs == "unlabelled" and tuned is not None and tuned.evaluations == 1
    assert "-regmean_pp-" in json.dumps(rows["regmean_pp"].recipe) and rows["regmean_pp"].mean != rows["regmean"].mean
    assert {"A1", "A2", "A3"} <= {claim.id for claim in found.claims}
    run_study("mergebench", [families[0].path], tmp_path / "run", setup)
    assert len(calls) == 2


def test_methods_that_need_statistics_collect_them_once(families: list[Family], tmp_path: Path) -> None:
    """On training data of each expert's own task; the recorded recipe is the same for any run's folder."""
    setup = Setup(only=("task_arithmetic", "fisher", "regmean"))
    runs = [run_study("mergebench", [families[0].path], tmp_path / run, setup) for run in "ab"]
    assert timeless(runs[0]) == timeless(runs[1])
    rows = {row.id: row for row in runs[0].rows}
    assert (rows["fisher"].needs, rows["regmean"].needs) == ("labelled", "unlabelled")
    folder = tmp_path / "a" / "statistics" / f"{families[0].path.name}-flip"
    data = json.loads((folder / "stats.json").read_text())["data"]
    assert (data["task"], data["split"], data["samples"]) == ("flip", "train", 256)
    assert "statistics/" in json.dumps(rows["regmean"].recipe) and str(tmp_path / "a") not in json.dumps(
        rows["regmean"].recipe
    )
    best, plain = rows["regmean"].mean, rows["task_arithmetic"].mean
    assert best is not None and plain is not None and best.value > plain.value


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
    calls, killed = 0, False
    real = Classification.measure

    def dies(self: Classification, subject: Any, split: str, rows: np.ndarray) -> np.ndarray:
        nonlocal calls, killed
        calls += 1
        if calls == 100 and not killed:
            killed = True
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


def trials_of(subsets: list[tuple[str, ...]], merged: Callable[[tuple[str, ...]], float]) -> list[Trial]:
    return [Trial("m", True, subset, 1.0, False, merged=merged(subset), base=0.5, best=0.5) for subset in subsets]


def test_intervals_in_the_wild_cover() -> None:
    """An expert's quality is shared by its subsets: other experts' gains are covered far more often than naively."""
    held, naive = [], []
    for seed in range(150):
        random = np.random.default_rng(seed)
        quality = dict(zip("abcdefghijkl", random.standard_normal(12), strict=True))
        subsets = draw_subsets(list(quality), 33, seed)
        mine = trials_of(
            subsets, lambda subset, q=quality, r=random: np.mean([q[n] for n in subset]) + 0.1 * r.normal()
        )
        found = success(mine, "gain")
        assert found.low is not None and found.high is not None
        held.append(found.low <= -0.5 <= found.high)
        half = 1.96 * np.std([trial.gain for trial in mine], ddof=1) / 33**0.5
        naive.append(abs(found.value + 0.5) <= half)
    assert np.mean(held) > np.mean(naive) + 0.1 and np.mean(held) > 0.6


def test_a_few_subsets_prove_little() -> None:
    """The interval of a share is Wilson's, wider where subsets that share an expert agree; never of no width."""
    subsets = draw_subsets(list("abcdef"), 11, seed=0)
    all_better = success(trials_of(subsets, lambda subset: 1.0), "beats_base")
    assert (all_better.value, all_better.high) == (1.0, 1.0)
    assert all_better.low == pytest.approx(11 / (11 + 1.96**2), abs=1e-4)
    random = np.random.default_rng(0)
    better = {subset: float(random.random() < 0.5) for subset in subsets}
    by_expert = success(trials_of(subsets, lambda subset: float("a" in subset)), "beats_base")
    by_chance = success(trials_of(subsets, better.__getitem__), "beats_base")
    width = {found.value: found.high - found.low for found in (by_expert, by_chance)}  # type: ignore[operator]
    assert width[by_expert.value] > width[by_chance.value] > 0.4
    assert success(trials_of(subsets[:1], lambda subset: 1.0), "gain").low is None


def test_families_of_one_study_are_replicates(families: list[Family], tmp_path: Path) -> None:
    far = build_digits(tmp_path / "far", regime="far")
    with pytest.raises(RecipeError, match=r"seeds of one variant and regime.*digits views, far"):
        run_study("mergebench", [families[0].path, far.path], tmp_path / "run")
    copy = shutil.copytree(families[0].path, tmp_path / "copy")
    with pytest.raises(RecipeError, match="hold the same models"):
        run_study("mergebench", [families[0].path, copy], tmp_path / "run")
    lines: list[str] = []
    found = run_study("regimes", [families[0].path, far.path], tmp_path / "map", Setup(only=("linear",)),
                      report=lines.append)  # fmt: skip
    (claim,) = found.claims
    assert claim.id == "M6" and claim.holds is True and claim.result.startswith("difference +0.")
    assert lines[0] == "digits-0: cell 1 of 9 (2 experts, low overlap, first change x 0.5)"
    assert lines[-1].startswith("far: 11 of 11: linear (average) at scale")


def test_seeds_share_their_test_samples(families: list[Family], tmp_path: Path) -> None:
    """Two families that answered alike would be one: means over both are no more certain of the samples than one is."""
    setup = Setup(only=("linear",))
    one = run_study("mergebench", [families[0].path], tmp_path / "one", setup)
    two = run_study("mergebench", [f.path for f in families], tmp_path / "two", setup)
    widths = []
    for found in (one, two):
        general = next(row for row in found.rows if row.id == "linear").forgetting["general"]
        assert general.low is not None and general.high is not None
        widths.append(general.high - general.low)
    assert widths[1] > 0.8 * widths[0]


def test_the_best_is_compared_with_all_that_need_as_little(families: list[Family], tmp_path: Path) -> None:
    """So that the report can say which methods are not told apart from it."""
    found = run_study("mergebench", [families[0].path], tmp_path / "run", Setup(only=(*METHODS, "magmax", "sce")))
    merged = [row for row in found.rows if row.group == "merged" and row.mean is not None]
    best = max(merged, key=lambda row: row.mean.value)  # type: ignore[union-attr]
    pairs = [frozenset((pair.a, pair.b)) for pair in found.pairs]
    assert len(pairs) == len(set(pairs))
    assert all(frozenset((row.id, best.id)) in pairs for row in merged if row is not best)


def test_an_expert_that_fails_elsewhere_is_a_hole(
    families: list[Family], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers NaN on another's task: the study goes on, and its own task still has a measure."""
    real = Classification.measure

    def nan(self: Classification, subject: Any, split: str, rows: np.ndarray) -> np.ndarray:
        broken = "experts/flip" in subject.label and self.name == "invert" and split == "test"
        return np.full(len(rows), np.nan) if broken else real(self, subject, split, rows)

    monkeypatch.setattr(Classification, "measure", nan)
    for study in ("mergebench", "in-the-wild"):
        found = run_study(study, [families[0].path], tmp_path / study, Setup(only=("linear",), subsets=2))
        rows = {row.id: row for row in found.rows}
        assert isinstance(rows["expert:flip"].scores["invert"], Hole) and rows["expert:flip"].mean is None
        assert rows["expert:invert"].mean is not None and rows["joint"].mean is not None


def test_an_expert_that_scores_next_to_nothing(
    families: list[Family], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One right answer of all: in a third of the resamples it is not drawn, and the expert is no measure there."""
    real, right = Classification.measure, [1]

    def poor(self: Classification, subject: Any, split: str, rows: np.ndarray) -> np.ndarray:
        broken = "experts/flip" in subject.label and self.name == "flip"
        return (np.arange(len(rows)) < right[0]).astype(float) if broken else real(self, subject, split, rows)

    monkeypatch.setattr(Classification, "measure", poor)
    found = run_study("mergebench", [families[0].path], tmp_path / "run", Setup(only=("linear",)))
    assert all(row.mean is not None and row.mean.low is not None for row in found.rows)
    right[0] = 0
    with pytest.raises(SourceError, match="expert flip scores 0 on flip: no measure for other models"):
        run_study("mergebench", [families[0].path], tmp_path / "none", Setup(only=("linear",)))
