"""`eutectic evaluate`: tables, JSON, comparison with the first subject, exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from eutectic.zoo.digits import Family, build_digits

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return build_digits(tmp_path_factory.mktemp("zoo") / "digits")


def test_models_and_recipes_side_by_side(cli: Cli, digits: Family, write_recipe: Callable[..., Path]) -> None:
    recipe = write_recipe("linear", [*digits.experts.values()], weight=1)
    done = cli("evaluate", digits.base, recipe, "--suite", digits.path)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split()[:2] == ["task", "unit"] and str(recipe) in lines[0]
    assert f"{recipe} against {digits.base}" in done.stdout
    assert any(line.split()[:2] == ["flip", "accuracy"] and "±" in line for line in lines)


def test_json_and_a_ledger(cli: Cli, digits: Family, tmp_path: Path) -> None:
    ledger = tmp_path / "l.sqlite"
    subjects, where = [digits.base, digits.experts["flip"]], ["-s", digits.path, "--split", "validation", "-t", "flip"]
    arguments = ["evaluate", *subjects, *where, "--ledger", ledger, "--json"]
    first, second = (json.loads(cli(*arguments).stdout) for _ in range(2))
    assert first == second  # seconds, too: nothing was measured again
    base, expert = first["subjects"]
    assert [task["name"] for task in first["tasks"]] == ["flip"] and first["split"] == "validation"
    difference = expert["scores"]["flip"]["value"] - base["scores"]["flip"]["value"]
    pair = expert["against_first"]["flip"]
    assert pair["difference"] == pytest.approx(difference) and pair["low"] < difference < pair["high"]
    assert base["against_first"] == {}
    assert cli(*arguments, "--samples", tmp_path / "samples.json").exit_code == 0
    samples = json.loads((tmp_path / "samples.json").read_text())["samples"][str(digits.base)]["flip"]
    assert sum(samples) / len(samples) == pytest.approx(base["scores"]["flip"]["value"])


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"suite": "nowhere"}, 4, "no suite there"),
        ({"task": "flp"}, 3, "no task 'flp'; did you mean 'flip'"),
        ({"subject": "nowhere"}, 4, "nowhere"),
    ],
)
def test_what_cannot_begin(cli: Cli, digits: Family, change: dict[str, str], code: int, words: str) -> None:
    arguments: list[Any] = [change.get("subject", digits.base), "-s", change.get("suite", digits.path)]
    done = cli("evaluate", *arguments, *(["-t", change["task"]] if "task" in change else []))
    assert done.exit_code == code and words in done.stderr


def test_a_hole_is_shown_and_told_by_the_exit_code(cli: Cli, digits: Family) -> None:
    done = cli("evaluate", digits.base, "-s", digits.path, "--split", "tests", "-t", "flip")
    assert done.exit_code == 1
    assert "failed" in done.stdout and "no split 'tests'; did you mean 'test'" in done.stderr
