"""Commands and flags are those of tests/golden/cli.txt; EUTECTIC_UPDATE_GOLDEN=1 rewrites it, for review."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import click

from eutectic.cli.main import COMMANDS, main

GOLDEN = Path(__file__).parent / "golden" / "cli.txt"


def walk(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path)
        for name in sorted(command.list_commands(context)):
            found = command.get_command(context, name)
            assert found is not None, f"{path} {name} is listed and cannot be loaded"
            yield from walk(found, f"{path} {name}")


def words(parameter: click.Parameter) -> str:
    """One parameter in one line: flags, type, and what else a caller depends on."""
    kind = parameter.type
    choices = f" {'|'.join(map(str, kind.choices))}" if isinstance(kind, click.Choice) else ""
    facts = [f"{kind.name}{choices}"]
    facts += ["required"] if parameter.required else []
    if isinstance(parameter, click.Option):
        facts += ["flag"] if parameter.is_flag else []
        facts += ["count"] if parameter.count else []
        facts += ["hidden"] if parameter.hidden else []
        facts += ["many"] if parameter.multiple else []
        names = " ".join([*parameter.opts, *(f"/{name}" for name in parameter.secondary_opts)])
    else:
        facts += ["many"] if parameter.nargs != 1 else []
        names = f"<{parameter.name}>"
    return f"  {names}  ({', '.join(facts)})"


def surface() -> str:
    lines: list[str] = []
    for path, command in walk(main, "eutectic"):
        arguments = [p for p in command.params if isinstance(p, click.Argument)]
        options = sorted((p for p in command.params if isinstance(p, click.Option)), key=lambda p: p.opts)
        lines += [path, *map(words, arguments), *map(words, options)]
    return "\n".join(lines) + "\n"


def test_commands_and_flags_are_the_reviewed_ones() -> None:
    if os.environ.get("EUTECTIC_UPDATE_GOLDEN"):
        GOLDEN.write_text(surface())
    assert surface() == GOLDEN.read_text()


def test_every_command_and_option_is_explained() -> None:
    for path, command in walk(main, "eutectic"):
        assert (command.help or "").strip(), path
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert (parameter.help or "").strip(), (path, parameter.name)


def test_the_table_names_the_commands() -> None:
    for name, (_, line) in COMMANDS.items():
        assert main.get_command(click.Context(main), name).name == name  # type: ignore[union-attr]
        assert line.endswith(".") and len(line) < 80
