"""What every command prints with: the JSON envelope, labelled lines, tables, a progress bar; sizes ride along."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from eutectic import __version__
from eutectic.cli.sizes import SIZE, format_bytes, format_count, format_share, parse_size

__all__ = [
    "SIZE", "emit_event", "emit_json", "events_option", "format_bytes", "format_count", "format_share", "json_option",
    "parse_size", "print_fields", "print_table", "printable", "progress",
]  # fmt: skip

SCHEMA = 1  # of the JSON envelope; raised when a field changes meaning or goes away
JSON_ASKED = "eutectic.json"  # key in click's context.meta: the name of the command that was given --json
JSON_LINES = "eutectic.json_lines"  # another key: that command prints events, one a line

# ---------------------------------------------------------------- JSON


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """The flag ``--json`` (parameter `as_json`), known to the error handler, so that errors come as JSON too."""
    return _json_option(function, "Print one JSON object instead of text.", lines=False)


def events_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """The flag ``--json`` of a command that takes its time: events instead of one object."""
    return _json_option(function, "Print events instead, one JSON object a line.", lines=True)


def _json_option(function: Callable[..., Any], help_text: str, *, lines: bool) -> Callable[..., Any]:
    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
        if value:
            ctx.meta[JSON_ASKED] = _command_of(ctx)
        if value and lines:
            ctx.meta[JSON_LINES] = True
        return value

    return click.option("--json", "as_json", is_flag=True, is_eager=True, callback=remember, help=help_text)(function)


def _command_of(ctx: click.Context) -> str:
    """The words after `eutectic` that name the command: ``"list methods"``."""
    names: list[str] = []
    while ctx.parent:
        names.insert(0, ctx.info_name or "")
        ctx = ctx.parent
    return " ".join(names)


def emit_json(command: str, payload: Mapping[str, Any]) -> None:
    """Print the envelope ``{"eutectic": version, "schema": 1, "command": command, ...payload}`` to stdout.

    NaN and infinity, which JSON has no words for, become null.
    """
    click.echo(json.dumps(_document(command, payload), indent=2, allow_nan=False))


def emit_event(command: str, event: str, payload: Mapping[str, Any]) -> None:
    """Print the same envelope with the key ``event`` on one line, at once."""
    click.echo(json.dumps(_document(command, {"event": event, **payload}), allow_nan=False))


def _document(command: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    return _finite({"eutectic": __version__, "schema": SCHEMA, "command": command, **payload})


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


# ---------------------------------------------------------------- text


def printable(text: str) -> str:
    r"""`text` safe for this terminal: control characters (names come from strangers' files) shown as escapes.

    >>> printable("a\x1b[31m")
    'a\\x1b[31m'
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Print aligned ``label  value`` lines; an empty label continues the line above."""
    width = max((len(label) for label, _ in fields), default=0)
    for label, value in fields:
        head = click.style(label.ljust(width), dim=True)
        click.echo(f"  {head}  {printable(value)}".rstrip())


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """Print a table; a column whose heading starts with ``>`` is aligned right.

    On a terminal rich draws it and folds long names; elsewhere it is plain text, every cell in full.
    """
    headings = [column.removeprefix(">") for column in columns]
    right = [column.startswith(">") for column in columns]
    cells = [[printable(cell) for cell in row] for row in rows]
    if title:
        click.echo(f"\n{click.style(title, bold=True)}")
    if sys.stdout.isatty():
        _print_rich(headings, right, cells)
        return
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    for row in [headings, *cells]:
        aligned = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        click.echo(("  " + "  ".join(aligned)).rstrip())


def _print_rich(headings: list[str], right: list[bool], cells: list[list[str]]) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    for heading, is_right in zip(headings, right, strict=True):
        table.add_column(heading, justify="right" if is_right else "left", overflow="fold", no_wrap=is_right)
    for row in cells:
        table.add_row(*map(Text, row))
    Console(highlight=False).print(Padding(table, (0, 0, 0, 2), expand=False))


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar over `total` bytes on stderr if that is a terminal; yields ``advance(bytes)``."""
    if total <= 0 or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)
