"""`eutectic plan`: what a merge would do, from headers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from eutectic.cli.output import emit_json, json_option
from eutectic.cli.run_options import describe, run_options

__all__ = ["plan"]


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@run_options
@click.option("--out", type=click.Path(path_type=Path), help="Also check that the target has room and is writable.")
@json_option
def plan(recipe: Path, options: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """Foretell what `eutectic merge RECIPE` would do, reading headers only.

    Every tensor is accounted for, every name, shape and parameter checked; bytes, memory and time are named
    before a byte is merged. What would stop the merge stops the plan, with the same message and exit code.
    """
    from eutectic.recipes.merge import plan as foretell
    from eutectic.recipes.plan import Options

    made = foretell(recipe, Options(**options))
    if out is not None:
        made.check_room(out)
    if as_json:
        emit_json("plan", made.to_json())
    else:
        click.echo("\n".join(describe(made)))
