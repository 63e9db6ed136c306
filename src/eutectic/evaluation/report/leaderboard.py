"""The order of a study's rows: merged models ranked apart by what they need, then baselines, then single experts."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from eutectic.errors import RecipeError
from eutectic.evaluation.results import Results, Row, Score
from eutectic.recipes.schema import load_recipe

__all__ = ["Place", "Section", "csv_text", "fingerprint", "sections"]

_MERGED = {
    "nothing": ("Merged without data", "Best without data"),
    "unlabelled": ("Merged with unlabelled data", "Best with unlabelled data"),
    "labelled": ("Merged with labelled data", "Best with labelled data"),
}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what spreadsheets calculate


@dataclass(frozen=True)
class Place:
    """A row's place: its rank in its section (None: not ranked), and whether a test does not tell it from the first."""

    row: Row
    rank: int | None
    tied: bool = False


@dataclass(frozen=True)
class Section:
    """Rows that are compared with one another, best first; `short` is what to call the first."""

    title: str
    short: str
    places: tuple[Place, ...]
    ranked: bool


def sections(results: Results) -> list[Section]:
    """The rows in the order of the leaderboard. Rows without a score come last in their section, as they were given.

    Ranks are given to merged models only. A row is `tied` if the interval of a paired test against its section's
    first holds zero.
    """
    found = []
    for needs, (title, short) in _MERGED.items():
        rows = [row for row in results.rows if row.group == "merged" and row.needs == needs]
        found.append(Section(title, short, tuple(_ranked(results, rows)), True))
    for group, title in (("baseline", "Baselines"), ("expert", "Single experts")):
        rows = _sorted([row for row in results.rows if row.group == group])
        found.append(Section(title, title.lower(), tuple(Place(row, None) for row in rows), False))
    return [section for section in found if section.places]


def fingerprint(row: Row) -> str | None:
    """The recipe's fingerprint, as `Recipe.fingerprint` gives it; None without a recipe that can be read."""
    if row.recipe is None:
        return None
    try:
        return load_recipe(row.recipe).fingerprint()
    except RecipeError:
        return None  # an ensemble, say: no recipe of a merge


def csv_text(results: Results) -> str:
    """The leaderboard as CSV, a line for each row; empty where there is no number.

    A text that a spreadsheet would calculate (it begins with =, +, - or @) gets a leading apostrophe.
    """
    tasks = [task.name for task in results.tasks]
    forgotten = [task.name for task in results.tasks if any(task.name in row.forgetting for row in results.rows)]
    head = ["section", "rank", "tied", "id", "model", "group", "needs", "score", "low", "high"]
    head += [f"{task}{suffix}" for task in tasks for suffix in ("", " stderr", " n")]
    head += [f"change on {task}" for task in forgotten]
    head += ["merge seconds", "tune seconds", "latency seconds", "model bytes", "peak bytes"]
    head += ["knob", "value", "at edge", "evaluations", "fingerprint"]
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(map(_cell, head))
    for section in sections(results):
        for place in section.places:
            row, mean = place.row, place.row.mean
            cells: list[Any] = [section.title, place.rank, place.tied if place.rank else None]
            cells += [row.id, row.label, row.group, row.needs]
            cells += [mean.value, mean.low, mean.high] if mean else [None] * 3
            for task in tasks:
                score = row.scores.get(task)
                cells += [score.value, score.stderr, score.n] if isinstance(score, Score) else [None] * 3
            cells += [row.forgetting[task].value if task in row.forgetting else None for task in forgotten]
            cells += [row.seconds.merge, row.seconds.tune, row.seconds.latency, row.bytes.model, row.bytes.peak]
            tuned = row.tuned
            cells += [tuned.knob, tuned.value, tuned.at_edge, tuned.evaluations] if tuned else [None] * 4
            writer.writerow(map(_cell, [*cells, fingerprint(row)]))
    return lines.getvalue()


def _ranked(results: Results, rows: list[Row]) -> Iterator[Place]:
    ordered = _sorted(rows)
    for rank, row in enumerate(ordered, 1):
        if row.mean is None:
            yield Place(row, None)
        else:
            yield Place(row, rank, rank > 1 and _not_told_apart(results, ordered[0].id, row.id))


def _sorted(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row.mean is None, -row.mean.value if row.mean else 0.0))


def _not_told_apart(results: Results, first: str, other: str) -> bool:
    return any(
        pair.low is not None and pair.high is not None and pair.low <= 0 <= pair.high
        for pair in results.pairs
        if {pair.a, pair.b} == {first, other}
    )


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        value = ", ".join(f"{key}={item}" for key, item in value.items())
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
