"""Evaluators: a command per checkpoint whose last line is the number; failures are told, nothing is left running."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from eutectic.errors import RecipeError, SourceError
from eutectic.recipes.run_command import measure
from eutectic.recipes.training_run import Saved

RUN = [Saved(Path("run/checkpoint-1"), 1), Saved(Path("run/a b; $(x)/checkpoint-2"), 2)]


def test_the_last_line_is_the_value() -> None:
    told: list[tuple[str, float]] = []
    command = "printf 'loading\\n%s\\n 1%s5 \\n\\n' {checkpoint} .; echo noise >&2"
    found = measure(command, RUN, report=lambda entry, value: told.append((entry.name, value)))
    assert found == [1.5, 1.5] and told == [("checkpoint-1", 1.5), ("checkpoint-2", 1.5)]


def test_paths_are_quoted(tmp_path: Path) -> None:
    measure(f"printf '%s\\n' {{checkpoint}} >> {tmp_path}/seen; echo 1", RUN)
    assert (tmp_path / "seen").read_text().splitlines() == [str(entry.path) for entry in RUN]


def test_what_is_not_finite_is_a_value() -> None:
    assert measure("echo -inf # {checkpoint}", RUN[:1]) == [float("-inf")]


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("echo a >&2; echo no model >&2; exit 3; {checkpoint}", "fails for checkpoint-1 with exit code 3: no model"),
        ("false {checkpoint}", "exit code 1: nothing on stderr"),
        ("true {checkpoint}", "must print a number last; for checkpoint-1 it prints nothing"),
        ("echo 0.5; echo done {checkpoint}", "it prints 'done run/checkpoint-1'"),
        ("kill -9 $$; {checkpoint}", "exit code -9"),
    ],
)
def test_failures_are_told(command: str, why: str) -> None:
    with pytest.raises(SourceError, match=why):
        measure(command, RUN)


def test_a_command_without_a_place() -> None:
    with pytest.raises(RecipeError, match=r"does not hold \{checkpoint\}"):
        measure("echo 1", RUN)


@pytest.mark.parametrize("command", ["sleep 30; {checkpoint}", "sleep 30 & echo 1; {checkpoint}"])
def test_a_command_that_takes_too_long_ends_with_what_it_started(command: str, tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(SourceError, match=r"took more than 0.3 s for checkpoint-1; see --timeout"):
        measure(f"(sleep 1; touch {tmp_path}/alive) & {command}", RUN, timeout=0.3)
    assert time.monotonic() - begun < 10
    time.sleep(1.2)
    assert not (tmp_path / "alive").exists()
