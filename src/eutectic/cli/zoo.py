"""`eutectic zoo`: small real experts, built on the spot."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import click

from eutectic.cli.output import emit_json, json_option, print_table
from eutectic.errors import RecipeError, nearest

__all__ = ["zoo"]


@click.group()
def zoo() -> None:
    """Build small real experts to try things on."""


@zoo.command("list")
@json_option
def list_families(as_json: bool) -> None:
    """List the families that can be built."""
    from eutectic.zoo import FAMILIES

    if as_json:
        emit_json("zoo list", {"families": {name: entry.summary for name, entry in FAMILIES.items()}})
    else:
        print_table(("family", "what it is"), [(name, entry.summary) for name, entry in FAMILIES.items()])


@zoo.command()
@click.argument("family")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the whole family.")
@click.option("--force", is_flag=True, help="Replace FOLDER if it is a family already.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@json_option
def build(family: str, folder: Path, seed: int, force: bool, quiet: bool, as_json: bool) -> None:
    """Build FAMILY in FOLDER: a base, its experts and held-out data. The same seed gives the same bytes."""
    from eutectic.zoo import FAMILIES

    if family not in FAMILIES:
        raise RecipeError(f"no family is called {family!r}{nearest(family, FAMILIES) or '; see `eutectic zoo list`'}")
    module, _, function = FAMILIES[family].builder.partition(":")
    talk = None if quiet or as_json else lambda line: click.echo(line, err=True)
    built = getattr(import_module(module), function)(folder, seed=seed, force=force, report=talk)
    experts = {name: str(path) for name, path in built.experts.items()}
    if as_json:
        emit_json("zoo build", {"folder": str(built.path), "seed": seed, "base": str(built.base), "experts": experts})
    elif not quiet:
        click.echo(f"{built.path}: base and {len(experts)} experts ({', '.join(experts)})")
