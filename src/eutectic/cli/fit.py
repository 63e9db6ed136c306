"""`eutectic fit`: learn a recipe's numbers from data, by gradients through the merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from eutectic.cli.output import emit_json, json_option, print_table, printable

__all__ = ["fit"]


@click.command()
@click.argument("recipe", type=click.Path())
@click.option("--data", "-d", required=True, type=click.Path(), help="A suite file, or a family's folder.")
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="The learned recipe, a YAML file.")
@click.option("--task", "-t", "tasks", multiple=True, help="Only this task; repeatable.  [default: role task]")
@click.option("--split", default="train", show_default=True, help="Which of the tasks' data.")
@click.option(
    "--objective", type=click.Choice(["entropy", "loss"]), default="entropy", show_default=True,
    help="Of the predictions (no labels needed), or of the data's answers.",
)  # fmt: skip
@click.option("--parameter", "-p", default="weight", show_default=True, help="The method's number that is learned.")
@click.option(
    "--granularity", "-g", type=click.Choice(["source", "layer", "tensor"]), default="source", show_default=True,
    help="One value for each source, or for each and every layer or tensor.",
)  # fmt: skip
@click.option("--steps", type=click.IntRange(1), default=1000, show_default=True, help="Of Adam.")
@click.option("--lr", "rate", type=float, default=1e-3, show_default=True, help="Adam's rate.")
@click.option("--batch", type=click.IntRange(1), default=16, show_default=True, help="Samples of each task in a step.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the samples' order.")
@click.option("--limit", type=click.IntRange(1), help="At most so many samples of each task.  [default: all]")
@click.option("--resume", is_flag=True, help="Continue an unfinished run.")
@click.option("--force", is_flag=True, help="Replace OUT, and drop an unfinished run.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@json_option
def fit(recipe: str, data: str, out: Path, tasks: tuple[str, ...], quiet: bool, as_json: bool, **settings: Any) -> None:
    """Learn the weights of RECIPE on data and write the same recipe with the learned ones.

    \b
      eutectic fit ta.yaml --data suite.json -o fitted.yaml                task-wise AdaMerging
      eutectic fit ta.yaml --data suite.json -o fitted.yaml -g tensor      layer-wise AdaMerging
      eutectic fit ta.yaml --data suite.json -o fitted.yaml --objective loss    with labels

    Gradients of the objective go through the merged network and the merge, from the values that RECIPE has. OUT is an
    ordinary recipe; OUT.fit.json says what it was learned from.
    """
    from eutectic.evaluation.fitting.fit import fit as learn

    talk = None if quiet or as_json else lambda line: click.echo(line, err=True)
    found = learn(recipe, data, out, tasks=tasks or None, report=talk, **settings)
    if as_json:
        emit_json("fit", {"out": str(out), "recipe": found.recipe, "facts": found.facts})
    elif not quiet:
        facts = found.facts
        rows = [[name, f"{value:.4f}", f"{facts['after'][name]:.4f}"] for name, value in facts["before"].items()]
        print_table([f"{facts['objective']} of", ">before", ">after"], rows)
        click.echo(f"wrote {printable(str(out))}; `eutectic merge {printable(str(out))} FOLDER` merges it")
