"""What a study found, as RUN/results.json holds it: written by studies, read by `eutectic report`, strictly.

    results = Results(study="mergebench", title="...", tasks=(Task(name="fr", unit="accuracy"), ...), rows=(...))
    results.save(run / RESULTS)         Results.load(run) == results

A score that could not be measured is a `Hole` with its reason, never a number. Only `study`, `title`, `tasks` and
`rows` are required. NaN and infinity are refused: what has no value is absent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from eutectic.errors import FormatError, OutputError, SourceError, nearest
from eutectic.weights.checkpoint import read_json

__all__ = [
    "RESULTS", "Claim", "Cost", "Curve", "Deltas", "Family", "Hole", "Interval", "Pair", "Regime", "Results", "Row",
    "Score", "Size", "Task", "Tuned", "write_text",
]  # fmt: skip

RESULTS = "results.json"
VERSION = 1
MOST_FAULTS = 8  # named in one error

Needs = Literal["nothing", "unlabelled", "labelled"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Task(_Frozen):
    """What was measured: its unit, and whether higher values are better; role "base" measures forgetting."""

    name: str
    unit: str = "accuracy"
    higher: bool = True
    role: Literal["task", "base"] = "task"
    expert: str | None = None


class Score(_Frozen):
    """A measured number with its standard error over `n` samples."""

    value: float
    stderr: float | None = Field(default=None, ge=0)
    n: int | None = Field(default=None, ge=0)


class Hole(_Frozen):
    """A number that is missing, and why."""

    error: str


class Interval(_Frozen):
    """A number with its 95% interval."""

    value: float
    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Interval:
        return _in_order(self)


class Tuned(_Frozen):
    """The number that was tuned on validation data; `at_edge`: the best value lies on the edge of the grid."""

    knob: str
    value: float | str | dict[str, Any]
    at_edge: bool = False
    evaluations: int | None = Field(default=None, ge=0)


class Cost(_Frozen):
    """Seconds that it took to merge and to tune, and that one pass over a sample takes (`latency`)."""

    merge: float | None = Field(default=None, ge=0)
    tune: float | None = Field(default=None, ge=0)
    latency: float | None = Field(default=None, ge=0)


class Size(_Frozen):
    """Bytes of the model as it is served, and of memory at the merge's peak."""

    model: int | None = Field(default=None, ge=0)
    peak: int | None = Field(default=None, ge=0)


def _kind_of_cell(value: Any) -> str:
    hole = "error" in value if isinstance(value, Mapping) else isinstance(value, Hole)
    return "hole" if hole else "score"


Cell = Annotated[Annotated[Score, Tag("score")] | Annotated[Hole, Tag("hole")], Discriminator(_kind_of_cell)]


class Row(_Frozen):
    """One thing measured on all tasks. `mean` is the multi-task score: the mean over tasks of score / expert's score.

    `forgetting` is the change against the base on tasks of role "base", in their unit: value less the base's value.
    `least` is the same with the worst task instead of the mean.
    `needs` says what data the method used; `recipe` is what makes the model again, as a mapping.
    """

    id: str
    label: str
    group: Literal["baseline", "expert", "merged"]
    needs: Needs = "nothing"
    recipe: dict[str, Any] | None = None
    tuned: Tuned | None = None
    scores: dict[str, Cell] = {}
    mean: Interval | None = None
    least: Interval | None = None
    forgetting: dict[str, Interval] = {}
    seconds: Cost = Cost()
    bytes: Size = Size()


class Pair(_Frozen):
    """A paired test of two rows: `difference` is a's multi-task score less b's."""

    a: str
    b: str
    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = Field(default=None, ge=0, le=1)
    n: int | None = Field(default=None, ge=0)
    test: str = "paired bootstrap"

    @model_validator(mode="after")
    def _ordered(self) -> Pair:
        return _in_order(self)


class Deltas(_Frozen):
    """The experts' changes to the base: norms [experts, layers], cosines and sign conflicts [experts, experts]."""

    experts: tuple[str, ...]
    layers: tuple[str, ...]
    norms: tuple[tuple[float | None, ...], ...]
    cosine: tuple[tuple[float | None, ...], ...]
    sign_conflict: tuple[tuple[float | None, ...], ...]

    @model_validator(mode="after")
    def _shaped(self) -> Deltas:
        count = len(self.experts)
        wide = {"norms": len(self.layers), "cosine": count, "sign_conflict": count}
        for name, width in wide.items():
            found = getattr(self, name)
            if len(found) != count or any(len(row) != width for row in found):
                raise ValueError(f"{name} must have {count} rows of {width} numbers")
        return self


class Curve(_Frozen):
    """A line, with a band from `low` to `high` where they are given; curves of one title share a picture."""

    label: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    low: tuple[float | None, ...] | None = None
    high: tuple[float | None, ...] | None = None
    x_title: str = ""
    y_title: str = ""
    title: str = ""

    @model_validator(mode="after")
    def _shaped(self) -> Curve:
        lengths = {len(part) for part in (self.x, self.y, self.low, self.high) if part is not None}
        if len(lengths) > 1:
            raise ValueError("x, y, low and high must be of one length")
        return self


class Claim(_Frozen):
    """A claim with its test, both written down before the run; what came out; and whether it holds (None: open)."""

    id: str
    claim: str
    test: str = ""
    result: str = ""
    holds: bool | None = None


class Regime(_Frozen):
    """One cell of a regime map: the multi-task score of every method there (None: not measured), and the best one.

    `base` is the base's own score, `size` the factor of the first expert's change, `cosine` the changes' mean cosine.
    """

    family: str
    regime: str
    base: float
    size: float
    experts: tuple[str, ...]
    overlap: str
    cosine: float
    winner: str | None = None
    scores: dict[str, float | None] = {}


class Family(_Frozen):
    """Where the experts come from."""

    name: str
    variant: str | None = None
    seed: int | None = None
    regime: str | None = None


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, Mapping) else value


class Results(_Frozen):
    """A study's results. Rows, tasks, pairs and curves keep their order."""

    results: Literal[1] = VERSION
    study: str
    title: str
    family: Annotated[tuple[Family, ...], BeforeValidator(_listed)] = ()
    split: str = "test"
    note: str = ""
    versions: dict[str, str | None] = {}
    settings: dict[str, Any] = {}
    tasks: tuple[Task, ...]
    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...] = ()
    deltas: Deltas | None = None
    curves: tuple[Curve, ...] = ()
    claims: tuple[Claim, ...] = ()
    regimes: tuple[Regime, ...] = ()
    warnings: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Results:
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        tasks, ids = [task.name for task in self.tasks], [row.id for row in self.rows]
        for what, names in (("task", tasks), ("row", ids)):
            yield from (f"two {what}s are called {name!r}" for name in names if names.count(name) > 1)
        for row in self.rows:
            for name in (*row.scores, *row.forgetting):
                if name not in tasks:
                    yield f"row {row.id!r} has a score of {name!r}, which is none of the tasks{nearest(name, tasks)}"
        for pair in self.pairs:
            for name in (pair.a, pair.b):
                if name not in ids:
                    yield f"a pair names {name!r}, which is none of the rows{nearest(name, ids)}"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Results:
        """Read results.json, or the one in a run's folder.

        Raises:
            SourceError: there is none. FormatError: it is malformed, or of a version that is not known here.
        """
        path = Path(path)
        if path.is_dir():
            path = path / RESULTS
            if not path.is_file():
                raise SourceError(f"{path.parent}: no {RESULTS} in this folder; a study writes it when it ends")
        data = read_json(path)
        version = data.get("results")
        if version != VERSION or isinstance(version, bool):
            found = "no version" if version is None else f"version {json.dumps(version)[:40]}"
            raise FormatError(f"{path}: results of {found}; this release reads version {VERSION}, in the key 'results'")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            faults = error.errors(include_url=False)
            lines = [f"\n  - {_place(data, fault['loc'])}: {_sentence(fault)}" for fault in faults[:MOST_FAULTS]]
            more = f"\n  ... and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
            raise FormatError(f"{path}: not results of a study:{''.join(lines)}{more}") from None

    def to_json(self) -> dict[str, Any]:
        """The same as plain data, in a fixed order."""
        return self.model_dump(mode="json")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write results.json, replacing an earlier one whole."""
        write_text(path, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, replacing an earlier one whole; an OutputError says why it cannot be."""
    path = Path(path)
    beside = path.with_name(path.name + ".partial")
    try:
        beside.write_text(text, encoding="utf-8", newline="")
        beside.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from None


def _in_order(interval: Any) -> Any:
    if interval.low is not None and interval.high is not None and interval.low > interval.high:
        raise ValueError(f"low {interval.low:g} is above high {interval.high:g}")
    return interval


def _place(data: Any, loc: Sequence[int | str]) -> str:
    """A fault's place, rows and tasks by their names: ``rows[3] (ties).mean.low``."""
    shown = ""
    for step in loc:
        if isinstance(data, list) and isinstance(step, int) and step < len(data):
            data = data[step]
            named = data.get("id", data.get("name", data.get("label"))) if isinstance(data, dict) else None
            shown += f"[{step}]" + (f" ({named[:40]})" if isinstance(named, str) else "")
        elif step not in ("score", "hole") or (isinstance(data, dict) and step in data):
            data = data.get(step) if isinstance(data, dict) else None
            shown += f"{'.' if shown else ''}{step}"
    return shown or "the file"


def _sentence(fault: Mapping[str, Any]) -> str:
    if fault["type"] == "extra_forbidden":
        return "a key that is not known here"
    if fault["type"] == "missing":
        return "is missing"
    message = str(fault["msg"]).removeprefix("Value error, ")
    found = fault.get("input")
    shown = f", not {json.dumps(found)[:60]}" if isinstance(found, (str, int, float, bool)) or found is None else ""
    return message[:1].lower() + message[1:] + shown
