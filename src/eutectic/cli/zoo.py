"""`eutectic zoo`: small real experts, built on the spot."""

from __future__ import annotations

from pathlib import Path

import click

from eutectic.cli.output import emit_json, json_option, print_fields, print_table

__all__ = ["zoo"]


@click.group()
def zoo() -> None:
    """Build small real experts to try things on."""


@zoo.command("list")
@json_option
def list_families(as_json: bool) -> None:
    """List the families that can be built, with their variants and what they need."""
    from eutectic.zoo import FAMILIES

    if as_json:
        families = {name: entry.summary for name, entry in FAMILIES.items()}
        details = {
            name: {
                "variants": entry.variants, "minutes": entry.minutes, "needs": entry.needs,
                "options": list(entry.options),
            }
            for name, entry in FAMILIES.items()
        }  # fmt: skip
        emit_json("zoo list", {"families": families, "details": details})
        return
    print_table(("family", "what it is"), [(name, entry.summary) for name, entry in FAMILIES.items()])
    for name, entry in FAMILIES.items():
        variants = [(f"  {variant}", what) for variant, what in entry.variants.items()]
        click.echo()
        click.echo(name)
        print_fields([*variants, ("  needs", entry.needs), ("  minutes", f"about {entry.minutes:g}, on one core")])


@zoo.command()
@click.argument("family")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--variant", metavar="NAME", help="Which experts; the first in the list by default.")
@click.option("--regime", metavar="NAME", help="in-basin (default): a strong base. far: a weak one.")
@click.option("--architecture", metavar="NAME", help="Of image families: mlp (default) or cnn.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of MNIST's files, or of the manual pages.")
@click.option("--size", metavar="NAME", help="full (default), or tiny: hardly trained, for trials.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the whole family.")
@click.option("--force", is_flag=True, help="Replace FOLDER if it is a family already.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@json_option
def build(
    family: str,
    folder: Path,
    variant: str | None,
    regime: str | None,
    architecture: str | None,
    data: Path | None,
    size: str | None,
    seed: int,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Build FAMILY in FOLDER: a base, its experts and held-out data. The same seed gives the same bytes."""
    from eutectic.zoo import build as build_family

    talk = None if quiet or as_json else lambda line: click.echo(line, err=True)
    chosen = {"variant": variant, "regime": regime, "architecture": architecture, "data": data, "size": size}
    built = build_family(family, folder, seed=seed, force=force, report=talk, **chosen)
    experts = {name: str(path) for name, path in built.experts.items()}
    if as_json:
        facts = {"folder": str(built.path), "variant": built.variant, "regime": built.regime, "seed": seed}
        emit_json("zoo build", {**facts, "base": str(built.base), "experts": experts, "suite": str(built.suite)})
    elif not quiet:
        click.echo(f"{built.path}: base and {len(experts)} experts ({', '.join(experts)})")
