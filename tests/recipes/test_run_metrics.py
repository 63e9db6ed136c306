"""Metrics of a run: the log of its last checkpoint, and CSV files; each value goes to its own checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eutectic.errors import FormatError, SourceError
from eutectic.recipes.run_metrics import read_csv, read_trainer_state
from eutectic.recipes.training_run import find_checkpoints

Make = Callable[..., Path]
LOSSES = {10: 1.0, 20: 0.5, 30: 0.4}


def write_log(run: Path, history: Any) -> None:
    (run / "checkpoint-30" / "trainer_state.json").write_text(json.dumps({"log_history": history}))


def test_the_log_of_the_last_checkpoint(make_run: Make) -> None:
    saved = find_checkpoints(make_run("run", LOSSES))
    assert read_trainer_state(saved, "eval_loss") == [1.0, 0.5, 0.4]
    assert read_trainer_state(saved, "loss") == pytest.approx([1.1, 0.6, 0.5])
    assert read_trainer_state(saved, "loss", window=True) == pytest.approx([1.15, 0.65, 0.55])
    assert read_trainer_state(saved[1:], "loss", window=True) == pytest.approx([0.65, 0.55])
    assert read_trainer_state(saved[:1], "loss", window=True) == pytest.approx([1.15])


def test_the_first_window_is_as_long_as_the_second(make_run: Make) -> None:
    run = make_run("run", LOSSES)
    write_log(run, [{"step": step, "loss": float(step)} for step in range(1, 31)])
    saved = find_checkpoints(run)
    assert read_trainer_state(saved[1:], "loss", window=True) == [15.5, 25.5]
    assert read_trainer_state(saved, "loss", window=True) == [5.5, 15.5, 25.5]
    assert read_trainer_state(saved[2:], "loss", window=True) == [15.5]  # alone: all of the run


def test_the_last_of_two_values_counts_and_nan_is_kept(make_run: Make) -> None:
    run = make_run("run", LOSSES)
    write_log(run, [{"step": s, "m": v} for s, v in ((10, 1), (10, 2), (20, math.nan), (30, 4.5), (40, 7))])
    first, second, third = read_trainer_state(find_checkpoints(run), "m")
    assert (first, third) == (2, 4.5) and math.isnan(second)


def test_the_log_of_the_run_itself_will_do(make_run: Make) -> None:
    run = make_run("run", LOSSES)
    (run / "checkpoint-30" / "trainer_state.json").rename(run / "trainer_state.json")
    assert read_trainer_state(find_checkpoints(run), "eval_loss") == [1.0, 0.5, 0.4]


def test_logs_that_do_not_tell(make_run: Make) -> None:
    run = make_run("run", LOSSES)
    saved = find_checkpoints(run)
    with pytest.raises(SourceError, match=r"no metric 'eval_acuracy'; it has eval_accuracy, eval_loss, .*did you mean"):
        read_trainer_state(saved, "eval_acuracy")
    other = find_checkpoints([run / "checkpoint-10", make_run("other", {20: 1.0}) / "checkpoint-20"])
    with pytest.raises(SourceError, match="several folders"):
        read_trainer_state(other, "eval_loss")
    write_log(run, [{"step": 10, "loss": 1.0}, {"step": 19, "loss": 1.0}])
    with pytest.raises(SourceError, match="no loss was logged for checkpoint-20, checkpoint-30; --window"):
        read_trainer_state(saved, "loss")
    with pytest.raises(SourceError, match=r"no loss was logged for checkpoint-30$"):
        read_trainer_state(saved, "loss", window=True)
    write_log(run, [])
    with pytest.raises(SourceError, match="no metric 'loss'; it is empty"):
        read_trainer_state(saved, "loss")
    write_log(run, {"step": 1})
    with pytest.raises(FormatError, match="log_history is not a list"):
        read_trainer_state(saved, "loss")
    (run / "checkpoint-30" / "trainer_state.json").unlink()
    with pytest.raises(SourceError, match=r"no such file.*--metrics.*--evaluator.*--schedule"):
        read_trainer_state(saved, "loss")
    (run / "checkpoint-30").rename(run / "last")
    with pytest.raises(SourceError, match="the step of last is not known"):
        read_trainer_state(find_checkpoints([run / "checkpoint-10", run / "last"]), "loss")


def test_csv_by_step_and_by_checkpoint(make_run: Make, tmp_path: Path) -> None:
    saved = find_checkpoints(make_run("run", LOSSES))
    file = tmp_path / "m.csv"
    file.write_text("\ufeffstep, acc ,loss\n30,0.9,1\n\n10,0.7,nan\n20, 0.8 ,3\n40,x,\n", encoding="utf-8")
    assert read_csv(file, saved[:2], "loss")[1][1] == 3
    with pytest.raises(FormatError, match=r"m.csv:6: 'x' is not a number"):
        read_csv(file, saved, "acc")
    file.write_text("loss,Checkpoint\n1,checkpoint-30\n2,checkpoint-20\n-inf," + str(saved[0].path) + "\n")
    assert read_csv(file, saved) == ("loss", [-math.inf, 2, 1])


@pytest.mark.parametrize(
    ("text", "metric", "why"),
    [
        ("", None, "the first line must name the columns"),
        ("10,0.5\n20,0.4\n", None, "the first line must name the columns"),
        ("step\n10\n", None, "the first line must name the columns"),
        ("step,checkpoint,loss\n", None, "the first line must name the columns"),
        ("step,loss,loss\n", None, "the first line must name the columns"),
        ("step,loss,acc\n10,1,2\n", None, "has the metrics loss, acc; choose one with --metric"),
        ("step,loss,acc\n10,1,2\n", "los", "no column 'los'; it has loss, acc; did you mean 'loss'"),
        ("step,loss\n10,1\n20,1,1\n", None, "m.csv:3: has 3 cells, the header 2"),
        ("step,loss\n10,1\n10,2\n", None, "m.csv:3: a second value for step 10"),
        ("step,loss\n1.5,1\n", None, "m.csv:2: '1.5' is not a step"),
        ("step,loss\n10,1\n20,\n30,2\n", None, "no loss for checkpoint-20"),
        ('step,loss\n10,"1\n', None, "not a CSV file"),
    ],
)
def test_wrong_tables(make_run: Make, tmp_path: Path, text: str, metric: str | None, why: str) -> None:
    saved = find_checkpoints(make_run("run", LOSSES))
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(SourceError, match=why):
        read_csv(tmp_path / "m.csv", saved, metric)


def test_tables_that_cannot_be_read(make_run: Make, tmp_path: Path) -> None:
    saved = find_checkpoints(make_run("run", LOSSES))
    with pytest.raises(SourceError, match=r"gone.csv: cannot be read: No such file"):
        read_csv(tmp_path / "gone.csv", saved)
    (tmp_path / "m.csv").write_bytes(b"step,loss\n\xff\xfe\n")
    with pytest.raises(FormatError, match="not a CSV file"):
        read_csv(tmp_path / "m.csv", saved)
