"""The metric of each checkpoint of a run: from its trainer_state.json, or from a CSV file.

A value is NaN or infinite where that is what was logged; one that is not there is an error.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eutectic.errors import FormatError, SourceError, nearest
from eutectic.recipes.training_run import TRAINER_STATE, Saved
from eutectic.weights.checkpoint import read_json

__all__ = ["read_csv", "read_trainer_state"]

MOST_SHOWN = 12
MOST_CSV_BYTES = 64_000_000


def read_trainer_state(saved: Sequence[Saved], metric: str, *, window: bool = False) -> list[float]:
    """The values of `metric` in the log of the run's last checkpoint, at the step of each checkpoint.

    Args:
        saved: checkpoints of one run. metric: a key of the log, such as eval_loss or loss.
        window: the mean of all entries since the checkpoint before; the first has a window as long as the second's.

    Raises:
        SourceError: no log, not of one run, no such key, or none at a checkpoint.
    """
    steps = _steps(saved, "the log of a training run")
    if len({entry.path.absolute().parent for entry in saved}) > 1:
        raise SourceError(
            "the checkpoints lie in several folders, and so may be of several runs, each with a log of its own; "
            "give their values in a CSV file (--metrics), or measure them (--evaluator)"
        )
    places = (saved[-1].path / TRAINER_STATE, saved[-1].path.parent / TRAINER_STATE)
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise SourceError(
            f"{places[0]}: no such file, and none in the folder above; give the values in a CSV file (--metrics), "
            "measure them (--evaluator), or choose a --schedule"
        )
    history = read_json(file).get("log_history")
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise FormatError(f"{file}: log_history is not a list of entries")
    logged = [(entry.get("step"), entry[metric]) for entry in history if metric in entry]
    logged = [(step, value) for step, value in logged if _is_number(step) and _is_number(value)]
    if not logged:
        keys = sorted({k for entry in history for k, v in entry.items() if _is_number(v)} - {"step", "epoch"})
        there = f"it has {', '.join(keys[:MOST_SHOWN])}" if keys else "it is empty"
        raise SourceError(f"{file}: the log has no metric {metric!r}; {there}{nearest(metric, keys)}")
    if window:
        before = [2 * steps[0] - steps[1] if len(steps) > 1 else -1, *steps[:-1]]
        spans = zip(before, steps, strict=True)
        found = {step: [value for at, value in logged if low < at <= step] for low, step in spans}
    else:
        found = {step: [value for at, value in logged if at == step][-1:] for step in steps}
    missing = [entry.name for entry, step in zip(saved, steps, strict=True) if not found[step]]
    if missing:
        cure = "" if window else "; --window takes the mean of what was logged between two checkpoints"
        raise SourceError(f"{file}: no {metric} was logged for {_listed(missing)}{cure}")
    return [sum(found[step]) / len(found[step]) for step in steps]


def read_csv(
    file: str | os.PathLike[str], saved: Sequence[Saved], metric: str | None = None
) -> tuple[str, list[float]]:
    """The name and the values of a column of a CSV file whose first line names its columns.

    One column is named ``step`` or ``checkpoint`` (the name of a folder, or its path as given); `metric` names the
    other, which may be left out where there are two. Rows for other checkpoints are passed over.

    Raises:
        SourceError: no such file or column, or a checkpoint without a row.
        FormatError: no header, a cell that is no number, two rows for one checkpoint.
    """
    rows = _rows(Path(file))
    header = [cell.strip() for cell in rows[0][1]] if rows else []
    keys = [name for name in header if name.lower() in ("step", "checkpoint")]
    if len(keys) != 1 or len(header) < 2 or len(set(header)) < len(header):
        raise FormatError(
            f"{file}: the first line must name the columns: step or checkpoint, and the metrics, such as step,eval_loss"
        )
    others = [name for name in header if name != keys[0]]
    if metric is None and len(others) > 1:
        raise SourceError(f"{file}: has the metrics {', '.join(others[:MOST_SHOWN])}; choose one with --metric")
    metric = others[0] if metric is None else metric
    if metric not in others:
        raise SourceError(f"{file}: has no column {metric!r}; it has {', '.join(others)}{nearest(metric, others)}")
    by_step = keys[0].lower() == "step"
    values: dict[str, float] = {}
    for line, cells in rows[1:]:
        if len(cells) != len(header):
            raise FormatError(f"{file}:{line}: has {len(cells)} cells, the header {len(header)}")
        key, cell = (cells[header.index(name)].strip() for name in (keys[0], metric))
        if not cell:
            continue
        key = str(_number(file, line, key, int)) if by_step else key
        if key in values:
            raise FormatError(f"{file}:{line}: a second value for {keys[0]} {key}")
        values[key] = _number(file, line, cell, float)
    steps = _steps(saved, "a column of steps") if by_step else []
    wanted = [(str(step),) for step in steps] or [(str(entry.path), entry.name) for entry in saved]
    found = [next((values[name] for name in names if name in values), None) for names in wanted]
    missing = [entry.name for entry, value in zip(saved, found, strict=True) if value is None]
    if missing:
        raise SourceError(f"{file}: no {metric} for {_listed(missing)}")
    return metric, [value for value in found if value is not None]


def _steps(saved: Sequence[Saved], what: str) -> list[int]:
    unknown = [entry.name for entry in saved if entry.step is None]
    if unknown:
        raise SourceError(
            f"the step of {_listed(unknown)} is not known, and {what} needs it; name the folders checkpoint-<step>"
        )
    return [entry.step for entry in saved if entry.step is not None]


def _rows(file: Path) -> list[tuple[int, list[str]]]:
    """The lines that are not empty, with their numbers."""
    try:
        if file.stat().st_size > MOST_CSV_BYTES:
            raise FormatError(f"{file}: more than {MOST_CSV_BYTES} bytes are no table of checkpoints")
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except OSError as error:
        raise SourceError(f"{file}: cannot be read: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise FormatError(f"{file}: not a CSV file: {error}") from None


def _number(file: Any, line: int, cell: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(cell)
    except ValueError:
        what = "a step, a whole number" if kind is int else "a number"
        raise FormatError(f"{file}:{line}: {cell[:40]!r} is not {what}") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_SHOWN]) + (", ..." if len(names) > MOST_SHOWN else "")
