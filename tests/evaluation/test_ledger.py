"""The ledger: nothing is measured twice or lost, by one process, several, or a killed one."""

from __future__ import annotations

import math
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from eutectic.errors import FormatError, OutputError
from eutectic.evaluation.ledger import Key, Ledger
from eutectic.evaluation.scores import Scores, scored

KEY = Key("subject", "task", "test", "data")


def test_what_is_recorded_is_found(tmp_path: Path) -> None:
    samples = scored(np.array([0.0, 1.0, 0.25]), 1.5)
    with Ledger(tmp_path / "deep" / "l.sqlite") as ledger:
        assert ledger.find(KEY) is None
        ledger.record(KEY, samples, label="x", recipe={"merge_method": "linear"})
        ledger.record(Key("other", "task", "test", "data"), Scores(0.5, math.nan, 1))
    with Ledger(tmp_path / "deep" / "l.sqlite") as ledger:
        found, other = ledger.find(KEY), ledger.find(Key("other", "task", "test", "data"))
        assert found == samples and found is not None and np.array_equal(found.samples, samples.samples)
        assert other is not None and math.isnan(other.stderr) and not len(other.samples)
        assert len(ledger) == 2


@pytest.mark.parametrize("change", ["subject", "task", "split", "data", "fidelity"])
def test_whatever_changes_the_score_changes_the_key(change: str, tmp_path: Path) -> None:
    facts = {"subject": "subject", "task": "task", "split": "test", "data": "data", "fidelity": 1.0}
    other = Key(**(facts | {change: 0.5 if change == "fidelity" else "other"}))  # type: ignore[arg-type]
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.record(KEY, scored([1, 0]))
        assert ledger.find(other) is None


def test_the_first_measurement_stays(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as one, Ledger(tmp_path / "l.sqlite") as two:
        one.record(KEY, scored([1, 0]))
        two.record(KEY, scored([0, 0, 1]))
        found = two.find(KEY)
        assert found is not None and found.value == 0.5


WRITER = """
import sys
from eutectic.evaluation.ledger import Key, Ledger
from eutectic.evaluation.scores import scored
with Ledger(sys.argv[1]) as ledger:
    for at in range(40):
        ledger.record(Key(f"{sys.argv[2]} {at}", "task", "test", "data"), scored([0, 1]))
"""


def test_two_processes_on_one_ledger(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    running = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in "ab"]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    with Ledger(path) as ledger:
        assert len(ledger) == 80


KILLED = """
import os, sys
from eutectic.evaluation.ledger import Key, Ledger
from eutectic.evaluation.scores import scored
ledger = Ledger(sys.argv[1])
ledger.record(Key("subject", "task", "test", "data"), scored([0, 1]))
ledger._db.execute("BEGIN IMMEDIATE")
ledger._db.execute("DELETE FROM scores")
os.kill(os.getpid(), 9)
"""


def test_a_killed_process_loses_nothing_that_was_recorded(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    with Ledger(path) as ledger:
        assert ledger.find(KEY) == scored([0, 1])


def test_a_ledger_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 7")
    before = path.read_bytes()
    with pytest.raises(FormatError, match=r"version 7, made by a newer Eutectic; this one reads version 1"):
        Ledger(path)
    assert path.read_bytes() == before


def test_other_files_are_no_ledgers(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    path.write_text("these are not the bytes of a database, but of a text" * 20)
    with pytest.raises(FormatError, match="not a ledger"):
        Ledger(path)
    with pytest.raises(OutputError, match="cannot be"):
        Ledger(tmp_path)
    with sqlite3.connect(tmp_path / "notes.sqlite") as db:
        db.execute("CREATE TABLE notes (text TEXT)")
    with pytest.raises(FormatError, match="a database of something else"):
        Ledger(tmp_path / "notes.sqlite")
