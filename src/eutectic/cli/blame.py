"""`eutectic blame`: which expert of a merge, and which of its layers, caused a regression."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eutectic.cli.ablating import ablation, effect_cells, header_json, measuring, part_json, print_header, quoted_share
from eutectic.cli.output import emit_json, json_option, print_table, printable

if TYPE_CHECKING:
    from eutectic.evaluation.ablation import Ablation
    from eutectic.evaluation.blame import Blame, Part, Regression

__all__ = ["blame", "describe"]


@click.command()
@click.argument("recipe")
@measuring
@click.option("--expert", metavar="NAME", help="Whose layers to look at.  [default: the most harmful one's]")
@click.option("--layers/--no-layers", default=True, help="Whether to look at layers at all (the default).")
@click.option("--exhaustive", is_flag=True, help="Shapley values too, from all subsets of up to 5 experts.")
@json_option
@click.pass_context
def blame(
    ctx: click.Context,
    recipe: str,
    suite: str,
    task: str | None,
    against: str,
    split: str,
    fidelity: float,
    ledger: Path | None,
    quiet: bool,
    expert: str | None,
    layers: bool,
    exhaustive: bool,
    as_json: bool,
) -> None:
    """Find which expert of RECIPE, and which of its layers, made the merge worse on a task.

    \b
      eutectic blame recipe.yaml --suite family --task general

    The merge is compared with its base, or with what --against names, sample by sample. If it is worse, each expert
    is left out in turn, then each layer of the most harmful one. Intervals are 95% bootstrap intervals; p is of random
    signs, corrected for the number of comparisons (Holm). Exits with 1 if a part could not be measured.
    """
    from eutectic.evaluation.blame import blame as find

    with ablation(
        recipe, suite=suite, task=task, split=split, fidelity=fidelity, ledger=ledger, quiet=quiet or as_json
    ) as case:
        found = find(case, against, expert=expert, layers=layers, exhaustive=exhaustive)
    if as_json:
        emit_json("blame", describe(case, found, against))
    else:
        _print(case, found, against)
    ctx.exit(1 if any(part.effect is None for part in (*found.experts, *found.layers)) else 0)


def describe(case: Ablation, found: Blame, against: str) -> dict[str, Any]:
    """What was found as plain data (the body of the JSON of `blame`)."""
    return {
        **header_json(case, found.regression, against),
        "experts": [part_json(part, found.regression) for part in found.experts],
        "suspect": found.suspect,
        "layers": [part_json(part, found.regression) for part in found.layers],
        "shapley": [part_json(part, None) for part in found.shapley],
    }


def _print(case: Ablation, found: Blame, against: str) -> None:
    print_header(case, found.regression, against)
    if not found.regression.found:
        return
    _print_parts("Without each expert (+ is better)", "expert", found.experts, found.regression)
    if found.shapley:
        _print_parts("What each expert adds, over all subsets (Shapley; + is better)", "expert", found.shapley, None)
    if found.layers:
        title = f"Without {found.suspect} in each layer (+ is better)"
        _print_parts(title, "layer", found.layers, found.regression)
    if not any(part.verdict == "harms" for part in found.experts):
        click.echo(
            "\nno expert by itself: the regression stays whichever is left out. Experts that do the same harm hide one "
            "another; --exhaustive looks at all subsets"
        )
    elif found.layers and not any(part.verdict == "harms" for part in found.layers):
        click.echo(f"\nno layer of {found.suspect} by itself: `eutectic bisect --expert` looks for a run of layers")
    for part in (*found.experts, *found.layers):
        if part.effect is None:
            click.echo(f"{click.style('not measured:', fg='red')} {printable(part.reason)}", err=True)


def _print_parts(title: str, heading: str, parts: list[Part], found: Regression | None) -> None:
    columns = [
        heading,
        ">change" if found else ">adds",
        "95% interval",
        ">p",
        *([">restores"] if found else []),
        "verdict",
    ]
    rows = []
    for part in parts:
        cells = ["", "", ""] if part.effect is None else effect_cells(part.effect)
        if found:
            cells.append("" if part.effect is None else quoted_share(found.restored(part.effect.difference.value)))
        rows.append([part.name, *cells, part.verdict])
    print_table(columns, rows, title=title)
