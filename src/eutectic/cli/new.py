"""`eutectic new`: files to start from."""

from __future__ import annotations

from pathlib import Path

import click

from eutectic.cli.output import printable

__all__ = ["new"]


@click.group()
def new() -> None:
    """Write a file to start from."""


@new.command()
@click.argument("method")
@click.option("--model", "-m", "models", multiple=True, help="A source; once for each.")
@click.option("--base", help="The base model.")
@click.option("--dtype", help="Type of the result.")
@click.option("--out", "-o", type=click.Path(path_type=Path), help="The file to write. Default: print it.")
@click.option("--force", is_flag=True, help="Replace the file.")
def recipe(
    method: str, models: tuple[str, ...], base: str | None, dtype: str | None, out: Path | None, force: bool
) -> None:
    """Write a commented recipe for METHOD, such as ties, with every parameter and its default."""
    from eutectic.errors import OutputError
    from eutectic.methods import get_method
    from eutectic.recipes.schema import load_recipe
    from eutectic.recipes.starter import starter
    from eutectic.recipes.tree import check_parameters

    text = starter(get_method(method), models, base, dtype)
    load_recipe(text, name=str(out or "recipe"), check=check_parameters)
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        with open(out, "w" if force else "x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise OutputError(f"{out} exists; --force replaces it") from None
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}") from None
    click.echo(f"wrote {printable(str(out))}; `eutectic plan {printable(str(out))}` checks it")
