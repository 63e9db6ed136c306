"""Programs and functions that measure: what they print or return, and every way to fail."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eutectic.errors import NonFiniteError, RecipeError, SourceError
from eutectic.evaluation.evaluator import evaluate
from eutectic.evaluation.scores import Failure, Scores
from eutectic.evaluation.tasks.command import read_score
from eutectic.evaluation.tasks.function import as_scores


def run(model: Any, code: str, **settings: Any) -> Scores | Failure:
    command = f'{sys.executable} -c "{code}" {{model}} {{split}}'
    return evaluate(model, {"tasks": [{"name": "t", "kind": "command", "command": command, **settings}]})["t"]


def test_a_program_sees_the_folder(family: dict[str, Path]) -> None:
    found = run(family["a"], "import os, sys; print('hello'); print(len(os.listdir(sys.argv[1])))")
    assert isinstance(found, Scores) and found.value == 2.0
    found = run(family["a"], "import sys; print(len(sys.argv[2]))")
    assert isinstance(found, Scores) and found.value == len("test")


def test_a_recipe_is_written_for_it_and_gone_afterwards(
    family: dict[str, Path], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe("linear", [family["a"], family["b"]], weight=1)
    code = f"import sys; open(r'{tmp_path}/seen', 'w').write(sys.argv[1]); print(0.25)"
    found = run(recipe, code)
    assert isinstance(found, Scores) and found.value == 0.25
    assert not Path((tmp_path / "seen").read_text()).exists()


@pytest.mark.parametrize(
    ("code", "settings", "words"),
    [
        ("import sys; sys.exit('no GPU')", {}, "ended with 1: no GPU"),
        ("print('done')", {}, "printed 'done', neither a number"),
        ("pass", {}, "printed '', neither a number"),
        ("print('nan')", {}, "printed 'nan', neither a number"),
        ("print('NaN')", {}, "scored nan"),
        ("import time; time.sleep(30)", {"timeout": 0.5}, "took longer than 0.5 s"),
    ],
)
def test_programs_that_fail(family: dict[str, Path], code: str, settings: dict[str, Any], words: str) -> None:
    found = run(family["a"], code, **settings)
    assert isinstance(found, Failure) and words in found.reason


def test_no_such_program(family: dict[str, Path]) -> None:
    task = {"name": "t", "kind": "command", "command": "no-such-program-here {model}"}
    found = evaluate(family["a"], {"tasks": [task]})["t"]
    assert isinstance(found, Failure) and "there is no program 'no-such-program-here'" in found.reason


def test_what_may_be_printed() -> None:
    found = read_score("t", 'x\n{"value": 0.5, "stderr": 0.1, "n": 20}\n', 1.0)
    assert (found.value, found.stderr, found.n) == (0.5, 0.1, 20)
    assert read_score("t", '{"samples": [1, 0, 1, 0]}', 0.0).value == 0.5
    bare = read_score("t", '{"value": 0.5, "stderr": null}', 0.0)
    assert bare.n == 1 and np.isnan(bare.stderr)
    for printed in ('{"value": 1, "stderr": "x"}', '{"value": 1, "n": 0}', '{"value": 1, "stderr": -1}'):
        with pytest.raises(SourceError, match="'stderr' must be a number and 'n' a whole one"):
            read_score("t", printed, 0.0)
    with pytest.raises(SourceError, match="'samples' must be numbers"):
        read_score("t", '{"samples": ["a"]}', 0.0)


def test_what_may_be_returned() -> None:
    assert as_scores(0.5, "t", 0.0).value == 0.5
    assert as_scores([1, 0], "t", 0.0).n == 2
    assert as_scores(Scores(1.0, 0.0, 3), "t", 0.0).n == 3
    with pytest.raises(RecipeError, match="returned str; return a number"):
        as_scores("high", "t", 0.0)
    with pytest.raises(NonFiniteError, match="scored inf"):
        as_scores(float("inf"), "t", 0.0)
