"""The Makefile's targets are those that the documents name, and `.ci/run` runs the two that gate a change."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = {"venv", "demo", "test", "test-full", "check", "fuzz", "bench", "parity", "docs"}


@pytest.fixture(scope="module")
def targets() -> dict[str, str]:
    """What `make help` prints: each target with its line."""
    if shutil.which("make") is None:
        pytest.fail("make is not installed, and the README begins with it")
    done = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return {name: words.strip() for name, _, words in (line.partition(" ") for line in done.stdout.splitlines())}


def test_help_lists_the_targets_with_a_line_each(targets: dict[str, str]) -> None:
    assert set(targets) >= NAMED and all(targets.values())


def test_help_is_what_make_does_first(targets: dict[str, str]) -> None:
    done = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(targets)


def test_every_target_that_is_no_file_is_phony_and_listed(targets: dict[str, str]) -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.findall(r"^\.PHONY:(.*)$", text, re.MULTILINE)
    rules = set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    assert {name for line in phony for name in line.split()} == rules == set(targets)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_targets_that_a_page_names_exist(targets: dict[str, str], page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert set(re.findall(r"(?:`|^\$ |^    )make ([a-z-]+)", text, re.MULTILINE)) <= set(targets)


def test_ci_checks_and_tests_and_stops_at_the_first_fault() -> None:
    script = ROOT / ".ci" / "run"
    lines = script.read_text().splitlines()
    assert os.access(script, os.X_OK) and lines[0].startswith("#!")
    assert "set -euo pipefail" in lines
    assert [line for line in lines if line.startswith("make ")] == ["make browser", "make check", "make test"]
