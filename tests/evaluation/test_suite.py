"""Suites are read strictly: every fault at once, with its place, the value and the cure."""

from __future__ import annotations

from pathlib import Path

import pytest

from eutectic.errors import RecipeError, SourceError
from eutectic.evaluation.suite import load_suite

TASK = {"name": "a", "kind": "python", "function": "builtins:len"}


def test_a_file_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(
        "name: own\ntasks:\n  - {name: a, kind: bits_per_byte, data: {test: a.txt}, role: base}\n"
        "  - {name: b, kind: command, command: 'score {model}', unit: points, lower_is_better: true}\n"
    )
    for source in (tmp_path, tmp_path / "suite.yaml", str(tmp_path)):
        suite = load_suite(source)
        a, b = suite
        assert (suite.name, a.role, a.unit, a.higher) == ("own", "base", "bits/byte", False)
        assert (b.unit, b.higher) == ("points", False)
        assert a.path("a.txt") == tmp_path / "a.txt"
    assert list(suite.only(["b"]).tasks) == ["b"]
    with pytest.raises(RecipeError, match="no task 'c'; it has a, b"):
        suite.only(["c"])


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"tasks": []}, "a suite needs 'tasks'"),
        ({"tasks": [TASK], "taks": 1}, "unknown key 'taks'; did you mean 'tasks'"),
        ({"tasks": [TASK], "suite": 9}, "a suite of version 9; this reads 1"),
        ({"tasks": [TASK, TASK]}, "two tasks are called 'a'"),
        ({"tasks": [{"name": "a", "kind": "clasification"}]}, "found 'clasification'; did you mean 'classification'"),
        ({"tasks": [{"name": "a"}]}, "kind must be one of"),
        ({"tasks": [{**TASK, "functon": "x:y"}]}, "unknown key 'functon'; did you mean 'function'"),
        ({"tasks": [{"name": "a", "kind": "python"}]}, "needs the key 'function'"),
        ({"tasks": [{**TASK, "function": "no colon"}]}, "found 'no colon'"),
        ({"tasks": [{"name": "a", "kind": "bits_per_byte", "data": {"test": "x"}, "slice_bytes": 3}]}, "slice_bytes"),
        ({"tasks": ["a"]}, r"tasks\[0\]"),
    ],
)
def test_faults(document: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_suite(document)


def test_all_faults_at_once_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("tasks:\n  - {name: a, kind: python}\n  - {name: b, kind: nothing}\n")
    with pytest.raises(RecipeError) as caught:
        load_suite(path)
    assert len(caught.value.problems) == 2
    assert f"{path}:2:5: needs the key 'function'" in str(caught.value)


def test_no_suite(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no suite there"):
        load_suite(tmp_path)
