"""`eutectic demo`: one family from images to a picture, twice; and what stands in its way."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from eutectic.cli.main import main
from eutectic.zoo.demo import CANDIDATES
from eutectic.zoo.demo import Result as Line
from eutectic.zoo.digit_views import VIEWS

Cli = Callable[..., Result]
LABELS = ["base", *(f"expert: {view}" for view in VIEWS), *(candidate.label for candidate in CANDIDATES)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A demo of one family, and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "out put é"
    return out, CliRunner().invoke(main, ["demo", "--seeds", "1", "--out", str(out)])


@pytest.fixture(scope="module")
def again(demo: tuple[Path, Result]) -> dict[str, Any]:
    """The same demo once more, in the same folder, as JSON."""
    done = CliRunner().invoke(main, ["demo", "--seeds", "1", "--out", str(demo[0]), "--json"])
    assert (done.exit_code, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_the_table_has_every_model_and_view(demo: tuple[Path, Result]) -> None:
    out, done = demo
    assert done.exit_code == 0, done.stderr
    heading, *rows = [line for line in done.stdout.splitlines() if line.startswith("  ")]
    assert [word for word in heading.split() if word in VIEWS] == list(VIEWS)
    assert [label for label in LABELS if not any(row.startswith(f"  {label} ") for row in rows)] == []
    assert len(rows) == len(LABELS) and all("±" in row for row in rows)
    assert f"Picture: {out / 'scores.png'}" in done.stdout


def test_progress_goes_to_stderr(demo: tuple[Path, Result]) -> None:
    said = demo[1].stderr
    assert all(f"merged by {candidate.label}" in said for candidate in CANDIDATES) and "chosen on validation" in said


def test_the_picture_is_a_picture(demo: tuple[Path, Result]) -> None:
    from matplotlib.image import imread

    pixels = imread(demo[0] / "scores.png")
    assert pixels.ndim == 3 and min(pixels.shape[:2]) > 500 and pixels.std() > 0.05


def test_a_second_run_finds_the_same(demo: tuple[Path, Result], again: dict[str, Any]) -> None:
    out, first = demo
    assert (again["schema"], again["command"], again["out"]) == (1, "demo", str(out))
    assert again["rows"] == json.loads((out / "scores.json").read_text())["rows"]
    assert [row["label"] for row in again["rows"]] == LABELS
    table = [line for line in first.stdout.splitlines() if line.startswith("  ")][1:]
    assert all(f" {100 * row['mean']:.1f} " in line for row, line in zip(again["rows"], table, strict=True))


def test_the_numbers_are_sane(again: dict[str, Any]) -> None:
    rows = {row["label"]: row for row in again["rows"]}
    experts = {view: rows[f"expert: {view}"] for view in VIEWS}
    for row in rows.values():
        assert all(0 <= value <= 1 for value in row["views"].values()) and 0 < row["stderr"] < 0.1
        assert row["mean"] == pytest.approx(sum(row["views"].values()) / len(VIEWS))
    for view in VIEWS:
        best = max(rows, key=lambda label: rows[label]["views"][view])
        assert best == f"expert: {view}"
    mean = sum(expert["mean"] for expert in experts.values()) / len(experts)
    assert rows["linear (average)"]["mean"] > mean
    for candidate in CANDIDATES:
        row = rows[candidate.label]
        assert set(row["settings"].values()) <= set(candidate.grid)
        ends = {candidate.grid[0], candidate.grid[-1]} if candidate.grid else set()
        assert row["at_edge"] == bool(ends & set(row["settings"].values()))


def test_the_recipes_rebuild_the_models(
    cli: Cli, demo: tuple[Path, Result], again: dict[str, Any], tmp_path: Path
) -> None:
    recipes = sorted((demo[0] / "recipes").glob("*.yaml"))
    assert [path.stem for path in recipes] == sorted(f"{candidate.method}-0" for candidate in CANDIDATES)
    for recipe in recipes:
        done = cli("merge", recipe, tmp_path / recipe.stem, "--quiet")
        assert done.exit_code == 0, done.stderr
        left, rebuilt = (folder / recipe.stem for folder in (demo[0] / "merged", tmp_path))
        digests = [json.loads((f / "recipe.lock.json").read_text())["output"]["tensors"] for f in (left, rebuilt)]
        assert digests[0] == digests[1] and len(digests[0]) == 6
        assert (left / "model.safetensors").read_bytes() == (rebuilt / "model.safetensors").read_bytes()
        assert cli("verify", left).exit_code == 0


def test_quiet_prints_only_the_table(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    line = Line("base", "before", {"flip": 0.5}, 0.5, 0.01, {}, False)
    monkeypatch.setattr("eutectic.zoo.demo.run_demo", lambda *args, **options: [line])
    shown = cli("demo", "-q", "--out", tmp_path).stdout
    assert [row.split()[0] for row in shown.splitlines()] == ["test", "base"]


# --- in its way


def test_without_scikit_learn_the_pip_command_is_named(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    done = cli("demo", "--seeds", 1, "--out", tmp_path / "out", "--json")
    assert done.exit_code == json.loads(done.stdout)["error"]["exit_code"] == 8
    assert "pip install 'eutectic[zoo]'" in done.stderr


def test_without_matplotlib_the_pip_command_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    line = Line("base", "before", {"flip": 0.5}, 0.5, 0.01, {}, False)
    monkeypatch.setattr("eutectic.zoo.demo.run_demo", lambda *args, **options: [line])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = cli("demo", "--out", tmp_path / "out")
    assert done.exit_code == 8 and "pip install 'eutectic[plot]'" in done.stderr


def test_a_family_folder_that_is_not_ours_is_left_alone(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "family-0").mkdir()
    (tmp_path / "family-0" / "mine.txt").write_text("x")
    for flags in ([], ["--force"]):
        done = cli("demo", "--seeds", 1, "--out", tmp_path, *flags)
        assert done.exit_code == 5 and str(tmp_path / "family-0") in done.stderr
    assert (tmp_path / "family-0" / "mine.txt").read_text() == "x"


@pytest.mark.parametrize("words", [["--seeds", "0"], ["--seeds", "21"], ["--seeds", "two"], ["extra"]])
def test_a_wrong_command_line_is_a_usage_error(cli: Cli, words: list[str]) -> None:
    assert cli("demo", *words).exit_code == 2
