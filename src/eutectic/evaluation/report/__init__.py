"""A study's results as one HTML file that needs nothing else: no network, no font, no library.

The page is page.html; style.css and the scripts beside it are written into it, and the results as JSON. Names come from
strangers: the JSON has no character that HTML reads, the scripts make text nodes of it, and a content security policy
lets nothing run but the scripts whose hash it holds. The same results give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from importlib.resources import files
from typing import Any

import yaml

from eutectic import __version__
from eutectic.evaluation.report.leaderboard import csv_text, fingerprint, sections
from eutectic.evaluation.results import Results, Score, write_text

__all__ = ["csv_text", "render_report", "sections", "write_report"]

SCRIPTS = ("basics.js", "scales.js", "leaderboard.js", "charts.js", "matrices.js", "page.js")
_NOTES = {True: "ranked by their score", False: "for comparison"}
_HTML = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def render_report(results: Results) -> str:
    """The report as a page of HTML.

    >>> from eutectic.evaluation.results import Row, Task
    >>> row = Row(id="a", label="A", group="expert")
    >>> study = Results(study="s", title="A <study>", tasks=(Task(name="t"),), rows=(row,))
    >>> page = render_report(study)
    >>> "<title>A &lt;study&gt;</title>" in page, "<study>" in page
    (True, False)
    """
    style = _file("style.css")
    script = '"use strict";\n' + "\n".join(map(_file, SCRIPTS))
    parts = {
        "version": html.escape(__version__),
        "title": _text(results.title),
        "style": style,
        "style_hash": _hash(style),
        "script": script,
        "script_hash": _hash(script),
        "table": _table(results),
        "data": _embedded(results),
    }
    page = _file("page.html").split("@")
    return "".join(parts[part] if at % 2 else part for at, part in enumerate(page))


def write_report(results: Results, path: str | os.PathLike[str]) -> None:
    """Write the report, replacing an earlier file of that name whole.

    Raises:
        OutputError: the file cannot be written.
    """
    write_text(path, render_report(results))


def _file(name: str) -> str:
    return (files(__name__) / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What a content security policy calls a script or style by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _embedded(results: Results) -> str:
    """The page's data: ASCII, and nothing in it that could end a script or begin a tag."""
    recipes = {
        row.id: {"text": yaml.safe_dump(row.recipe, sort_keys=False, allow_unicode=True), "hash": fingerprint(row)}
        for row in results.rows
        if row.recipe is not None
    }
    parts: list[dict[str, Any]] = [
        {
            "title": section.title,
            "short": section.short,
            "note": _NOTES[section.ranked],
            "ranked": section.ranked,
            "rows": [{"id": place.row.id, "rank": place.rank, "tied": place.tied} for place in section.places],
        }
        for section in sections(results)
    ]
    data = {"version": __version__, "results": results.to_json(), "sections": parts, "recipes": recipes}
    return json.dumps(data, separators=(",", ":"), allow_nan=False).translate(_HTML)


def _table(results: Results) -> str:
    """The leaderboard for a reader without scripts."""
    lines = [["model", "score", *(f"{task.name} ({task.unit})" for task in results.tasks)]]
    for section in sections(results):
        for place in section.places:
            row = place.row
            scores = [row.scores.get(task.name) for task in results.tasks]
            numbers = [f"{s.value:.3g}" if isinstance(s, Score) else "missing" if s else "–" for s in scores]
            lines.append([row.label, f"{row.mean.value:.3g}" if row.mean else "none", *numbers])
    cells = ["".join(f"<td>{_text(cell)}</td>" for cell in line) for line in lines]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in cells) + "</table>"


def _text(text: str) -> str:
    """A stranger's text inside HTML; control characters, and those that turn text around, as escapes."""
    return html.escape("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))
