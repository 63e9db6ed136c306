"""`eutectic report`: the page, the table, CSV, JSON, and what stands in the way."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from eutectic.evaluation.results import RESULTS, Results

PLAIN: dict[str, Any] = {
    "study": "mergebench", "title": "A \x1b[31mstudy", "family": {"name": "bytes", "seed": 1},
    "tasks": [{"name": "fr", "unit": "bits/byte", "higher": False}, {"name": "de"}],
    "rows": [
        {"id": "base", "label": "Base", "group": "baseline", "scores": {"fr": {"value": 2.34567}}},
        {"id": "linear", "label": "Average", "group": "merged", "mean": {"value": 0.8}, "scores": {"fr": {"value": 2}}},
        {"id": "ties", "label": "TIES", "group": "merged", "scores": {"fr": {"error": "out"}, "de": {"value": 0.5}},
         "mean": {"value": 0.9, "low": 0.85, "high": 0.95}, "seconds": {"merge": 0.2}, "bytes": {"model": 1234567},
         "tuned": {"knob": "lambda", "value": 1.0, "at_edge": True}},
    ],
    "claims": [{"id": "c", "claim": "TIES is better.", "result": "By 10 points.", "holds": True}],
    "warnings": ["Beware."],
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    Results.model_validate(PLAIN).save(tmp_path / RESULTS)
    return tmp_path


def test_text_and_page(cli: Callable[..., Result], run: Path) -> None:
    done = cli("report", run)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("A \\x1b[31mstudy\n  study     mergebench, on test data\n  family    bytes 1\n")
    ties = next(line for line in done.stdout.splitlines() if "TIES (edge" in line)
    assert ties.split() == [
        "1",
        "TIES",
        "(edge",
        "of",
        "the",
        "grid)",
        "90.0",
        "85.0",
        "to",
        "95.0",
        "missing",
        "50.0",
        "200",
        "ms",
        "1.23",
        "MB",
    ]
    base = next(line for line in done.stdout.splitlines() if "Base" in line and "none" in line)
    assert base.split() == ["Base", "none", "2.35", "-", "-", "-"]
    assert "held     TIES is better. By 10 points." in done.stdout and "warning  Beware." in done.stdout
    assert f"Page: {run / 'report.html'}" in done.stdout
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    assert cli("report", run / RESULTS).exit_code == 0  # replaced


def test_json_and_csv(cli: Callable[..., Result], run: Path, tmp_path: Path) -> None:
    done = cli("report", run, "--html", tmp_path / "page.html", "--csv", tmp_path / "board.csv", "--json")
    found = json.loads(done.stdout)
    assert (found["command"], found["html"]) == ("report", str(tmp_path / "page.html"))
    assert [(s["title"], [row["id"] for row in s["rows"]]) for s in found["sections"]] == [
        ("Merged without data", ["ties", "linear"]), ("Baselines", ["base"]),
    ]  # fmt: skip
    assert Results.model_validate(found["results"]) == Results.load(run)
    lines = csv.DictReader((tmp_path / "board.csv").read_text().splitlines())
    assert [line["id"] for line in lines] == ["ties", "linear", "base"]
    assert not (run / "report.html").exists() and (tmp_path / "page.html").is_file()


def test_many_tasks_are_left_to_the_page(cli: Callable[..., Result], tmp_path: Path) -> None:
    many = {**PLAIN, "tasks": [*PLAIN["tasks"], *({"name": f"t{i}"} for i in range(9))]}
    Results.model_validate(many).save(tmp_path / RESULTS)
    assert "Scores of the 11 tasks are in the page" in cli("report", tmp_path).stdout


def test_what_stands_in_the_way(cli: Callable[..., Result], run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, code, words in (
        (["report", tmp_path / "empty"], 4, "no results.json in this folder"),
        (["report", run, "--html", tmp_path / "none" / "page.html"], 5, "cannot be written"),
        (["report", run, "--csv", tmp_path / "none" / "a.csv"], 5, "cannot be written"),
    ):
        done = cli(*arguments)
        assert done.exit_code == code and words in done.stderr
    (run / RESULTS).write_text('{"results": 9}')
    done = cli("report", run, "--json")
    assert done.exit_code == 4 and json.loads(done.stdout)["error"]["type"] == "FormatError"
