"""Sizes, counts, the JSON envelope, tables, and names that try to drive the terminal."""

from __future__ import annotations

import json
import math

import click
import pytest
from click.testing import CliRunner

from eutectic import __version__
from eutectic.cli.output import (
    SIZE,
    emit_json,
    format_bytes,
    format_count,
    format_share,
    parse_size,
    print_fields,
    print_table,
    printable,
    progress,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000000", 10**6), ("5B", 5 * 10**9), ("5b", 5 * 10**9), ("500MB", 5 * 10**8), ("500M", 5 * 10**8),
        ("2GiB", 2 << 30), ("2Gi", 2 << 30), ("2 GiB", 2 << 30), ("1.5k", 1500), ("0.5KiB", 512), ("1T", 10**12),
        ("12 bytes", 12), ("1 byte", 1), (" 7 ", 7), ("0.1GB", 10**8),
    ],
)  # fmt: skip
def test_parse_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-5", "5X", "GB", "1e9", "5iB", "5 G B", "1,000", "inf", "0", "0.0001k", "٣GB"])
def test_parse_size_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size|less than one byte"):
        parse_size(text)


def test_size_as_a_flag() -> None:
    @click.command()
    @click.option("--memory", type=SIZE, default=7)
    def command(memory: int) -> None:
        click.echo(memory)

    runner = CliRunner()
    assert runner.invoke(command, ["--memory", "2GiB"]).output == "2147483648\n"
    assert runner.invoke(command).output == "7\n"
    refused = runner.invoke(command, ["--memory", "lots"])
    assert refused.exit_code == 2 and "500MB, 2GiB, 5B" in refused.stderr


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (1000, "1.00 kB"), (9_994, "9.99 kB"), (9_996, "10.0 kB"),
        (999_499, "999 kB"), (999_500, "1.00 MB"), (988_097_824, "988 MB"), (10**9, "1.00 GB"), (10**22, "10000 EB"),
    ],
)  # fmt: skip
def test_format_bytes(count: int, shown: str) -> None:
    assert format_bytes(count) == shown


@pytest.mark.parametrize("count", [1, 999, 1234, 98_765_432, 5 * 10**9])
def test_printed_sizes_can_be_typed_back(count: int) -> None:
    assert parse_size(format_bytes(count)) == pytest.approx(count, rel=0.005)


def test_format_count() -> None:
    shown = [format_count(n) for n in (0, 9_999, 10_000, 494_032_768, 7_615_616_512, 10**12)]
    assert shown == ["0", "9,999", "10.0 k", "494 M", "7.62 B", "1.00 T"]


def test_format_share() -> None:
    assert [format_share(x) for x in (0, 1, 0.0001, 0.9999, 0.123)] == ["0%", "100%", "<0.1%", ">99.9%", "12.3%"]


def test_json_envelope(capsys: pytest.CaptureFixture[str]) -> None:
    emit_json("diff", {"nan": math.nan, "list": (1, math.inf), "deep": {"x": 0.5}, "name": "ü"})
    shown = capsys.readouterr().out
    assert shown.isascii()
    assert json.loads(shown) == {
        "eutectic": __version__, "schema": 1, "command": "diff",
        "nan": None, "list": [1, None], "deep": {"x": 0.5}, "name": "ü",
    }  # fmt: skip


def test_table_off_a_terminal_is_plain_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    name = "model." + "very_long." * 40 + "weight"
    print_table(["name", ">count"], [[name, "1"], ["[bold]b[/bold]", "200"]], title="Title")
    assert capsys.readouterr().out.splitlines() == [
        "",
        "Title",
        f"  {'name':{len(name)}}  count",
        f"  {name}      1",
        f"  {'[bold]b[/bold]':{len(name)}}    200",
    ]


def test_table_on_a_terminal_folds_but_never_cuts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    name = "".join(f"part{i}." for i in range(30))
    print_table(["name", ">count"], [[name, "12345"], ["[bold]b[/bold]", "2"]])
    shown = capsys.readouterr().out
    assert name in "".join(line.split(" ")[2] for line in shown.splitlines() if "part" in line)
    assert "12345" in shown and "[bold]b[/bold]" in shown


def test_fields(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields([("size", "1 GB"), ("parameters", "x\x07"), ("", "y")])
    assert capsys.readouterr().out == "  size        1 GB\n  parameters  x\\x07\n              y\n"


def test_printable_keeps_letters_and_escapes_control() -> None:
    assert printable("größe.层.weight") == "größe.层.weight"
    assert printable("a\x1b]0;evil\x07\n\u202e") == "a\\x1b]0;evil\\x07\\n\\u202e"


def test_progress_off_a_terminal_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("reading", 10) as advance:
        advance(10)
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal_clears_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress("reading", 10) as advance:
        advance(10)
    captured = capsys.readouterr()
    assert captured.out == "" and "reading" in captured.err
