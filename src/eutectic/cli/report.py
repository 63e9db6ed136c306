"""`eutectic report`: what a study found, as a page of HTML, a table, CSV and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eutectic.cli.output import emit_json, json_option, print_fields, print_table, printable
from eutectic.cli.sizes import format_bytes, plural

if TYPE_CHECKING:
    from eutectic.evaluation.report.leaderboard import Section
    from eutectic.evaluation.results import Results, Row, Task

__all__ = ["describe", "report"]

PAGE = "report.html"
MOST_TASKS = 8  # columns of tasks in the terminal's table
_PERCENT = ("accuracy", "recall", "precision", "match", "share", "rate")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--html", type=click.Path(path_type=Path), help=f"Where the page goes.  [default: RUN/{PAGE}]")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Also write the leaderboard as CSV.")
@json_option
def report(run: Path, html: Path | None, csv_file: Path | None, as_json: bool) -> None:
    """Write the report of a study: one HTML file that opens without a network, and a table here.

    RUN is the folder that `eutectic study` wrote, or its results.json. Earlier reports are replaced.

    The page has the leaderboard with intervals, quality against memory, latency and merge time (point at a mark for
    its recipe, click to copy it), the experts' deltas layer by layer, forgetting, curves, claims with their verdicts,
    and where everything came from.
    """
    from eutectic.evaluation.report import csv_text, write_report
    from eutectic.evaluation.results import Results, write_text

    results = Results.load(run)
    page = html or (run if run.is_dir() else run.parent) / PAGE
    write_report(results, page)
    if csv_file:
        write_text(csv_file, csv_text(results))
    if as_json:
        emit_json("report", describe(results, page, csv_file))
    else:
        _print(results, page, csv_file)


def describe(results: Results, page: Path, csv_file: Path | None) -> dict[str, Any]:
    """The results with their order (the body of the JSON of `report`)."""
    from eutectic.evaluation.report.leaderboard import fingerprint, sections

    return {
        "html": str(page),
        "csv": None if csv_file is None else str(csv_file),
        "sections": [
            {
                "title": section.title,
                "ranked": section.ranked,
                "rows": [
                    {"id": p.row.id, "rank": p.rank, "tied": p.tied, "fingerprint": fingerprint(p.row)}
                    for p in section.places
                ],
            }
            for section in sections(results)
        ],
        "results": results.to_json(),
    }


# ---------------------------------------------------------------- text


def _print(results: Results, page: Path, csv_file: Path | None) -> None:
    from eutectic.evaluation.report.leaderboard import sections

    click.secho(printable(results.title), bold=True)
    families = [" ".join(str(p) for p in (f.name, f.variant, f.seed) if p is not None) for f in results.family]
    fields = [
        ("study", f"{results.study}, on {results.split} data"),
        ("family", "; ".join(families)),
        ("measured", f"{plural(len(results.rows), 'model')}, {plural(len(results.tasks), 'task')}"),
    ]
    print_fields([field for field in fields if field[1]])
    tasks = results.tasks if len(results.tasks) <= MOST_TASKS else ()
    for section in sections(results):
        print_table(_columns(tasks), _lines(section, tasks), title=section.title)
    if len(results.tasks) > MOST_TASKS:
        click.echo(f"  Scores of the {len(results.tasks)} tasks are in the page and in the JSON.")
    if results.claims or results.warnings:
        click.echo()
    for claim in results.claims:
        verdict = {True: "held", False: "refuted", None: "open"}[claim.holds]
        click.echo(f"{click.style(verdict.ljust(8), bold=True)} {printable(claim.claim)} {printable(claim.result)}")
    for warning in results.warnings:
        click.echo(f"{click.style('warning', bold=True)}  {printable(warning)}")
    click.echo(f"\nPage: {printable(str(page))}" + (f"   CSV: {printable(str(csv_file))}" if csv_file else ""))


def _columns(tasks: tuple[Task, ...]) -> list[str]:
    return [">rank", "model", ">score, %", ">95% interval", *(f">{task.name}" for task in tasks), ">merge", ">size"]


def _lines(section: Section, tasks: tuple[Task, ...]) -> list[list[str]]:
    return [
        [
            "" if place.rank is None else f"{'≈' if place.tied else ''}{place.rank}",
            place.row.label + (" (edge of the grid)" if place.row.tuned and place.row.tuned.at_edge else ""),
            *_mean(place.row),
            *(_score(place.row, task) for task in tasks),
            _seconds(place.row.seconds.merge),
            "-" if place.row.bytes.model is None else format_bytes(place.row.bytes.model),
        ]
        for place in section.places
    ]


def _mean(row: Row) -> tuple[str, str]:
    if row.mean is None:
        return "none", ""
    low, high = row.mean.low, row.mean.high
    interval = "" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"
    return f"{100 * row.mean.value:.1f}", interval


def _score(row: Row, task: Task) -> str:
    from eutectic.evaluation.results import Score

    score = row.scores.get(task.name)
    if not isinstance(score, Score):
        return "-" if score is None else "missing"
    return f"{100 * score.value:.1f}" if any(word in task.unit.lower() for word in _PERCENT) else f"{score.value:#.3g}"


def _seconds(value: float | None) -> str:
    if not value:  # nothing was merged
        return "-"
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.3g} s" if value < 120 else f"{value / 60:.3g} min"
