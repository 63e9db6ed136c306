"""`eutectic stats`: what methods need to know about a model besides its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eutectic.cli.output import emit_json, json_option, print_fields
from eutectic.cli.sizes import SIZE, format_bytes

if TYPE_CHECKING:
    from eutectic.evaluation.suite import Suite
    from eutectic.weights.statistics_folder import Statistics

__all__ = ["stats"]


@click.group()
def stats() -> None:
    """Collect statistics of models on data, for the methods that need them."""


@stats.command()
@click.argument("model")
@click.option("--data", "-d", "suite", required=True, type=click.Path(), help="A suite file, or a family's folder.")
@click.option("--task", "-t", "name", metavar="NAME", help="Whose data; may be left out where the suite has one task.")
@click.option("--split", default="train", show_default=True, help="Which of the task's data.")
@click.option(
    "--kinds", "-k", default="fisher,gram", show_default=True, metavar="KIND,...",
    help="Of fisher, gram, activations, gradients.",
)  # fmt: skip
@click.option("--limit", type=click.IntRange(1), help="At most so many samples.  [default: all]")
@click.option(
    "--labels", type=click.Choice(["data", "model"]), default="data", show_default=True,
    help="Whose answers the Fisher information is of.",
)  # fmt: skip
@click.option("--max-memory", type=SIZE, help="For sums, besides the model; such as 1GiB.  [default: 64MiB]")
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="The folder of the statistics.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@json_option
def collect(
    model: str,
    suite: str,
    name: str | None,
    split: str,
    kinds: str,
    limit: int | None,
    labels: Any,
    max_memory: int | None,
    out: Path,
    quiet: bool,
    as_json: bool,
) -> None:
    """Collect statistics of MODEL on the data of a task into a folder.

    \b
    fisher       diagonal Fisher information of every parameter (method fisher)
    gram         Gram matrices of the inputs of linear layers (method regmean)
    activations  mean and mean square of these inputs
    gradients    mean gradient of the loss

    A recipe names the folder beside the model, as `statistics`. Kinds that OUT already has of this model and data are
    kept; statistics of another model or of other data are not replaced.
    """
    from eutectic.evaluation.collecting.collect import MEMORY, collect_statistics
    from eutectic.evaluation.evaluator import Evaluator
    from eutectic.evaluation.subject import weights_of

    with Evaluator(suite, held_bytes=0) as evaluator:
        task = next(iter(evaluator.suite.only([name or _only(evaluator.suite)])))
        found = collect_statistics(
            weights_of(evaluator.subject(model), task.name), task, out, kinds=[k.strip() for k in kinds.split(",")],
            split=split, limit=limit, labels=labels, memory=max_memory or MEMORY,
            report=None if quiet or as_json else lambda line: click.echo(line, err=True),
        )  # fmt: skip
    _show(found, as_json=as_json, quiet=quiet, command="stats collect")


@stats.command("collect-merged")
@click.argument("recipe", type=click.Path())
@click.option("--data", "-d", "suite", required=True, type=click.Path(), help="A suite file, or a family's folder.")
@click.option(
    "--task", "-t", "tasks", multiple=True, metavar="NAME",
    help="Whose data, once for each source in order.  [default: the task whose expert has the source's name]",
)  # fmt: skip
@click.option("--split", default="train", show_default=True, help="Which of the tasks' data.")
@click.option("--limit", type=click.IntRange(1), help="At most so many samples of each task.  [default: all]")
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="A folder for those of the sources.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@json_option
def collect_merged(
    recipe: str,
    suite: str,
    tasks: tuple[str, ...],
    split: str,
    limit: int | None,
    out: Path,
    quiet: bool,
    as_json: bool,
) -> None:
    """Collect Gram matrices of the sources of a regmean RECIPE through the merged model: RegMean++.

    What comes into a layer has passed the merged layers before it. RECIPE with these folders as `statistics` of its
    sources, which it may lack until then, is RegMean++; its weight and ratio must stay as they are.
    """
    from eutectic.evaluation.collecting.through_merged import collect_through_merged

    talk = None if quiet or as_json else lambda line: click.echo(line, err=True)
    found = collect_through_merged(
        recipe, suite, out, tasks=tasks or None, split=split, limit=limit, report=talk
    )  # fmt: skip
    if as_json:
        emit_json("stats collect-merged", {"folders": [str(folder) for folder in found]})
    elif not quiet:
        for folder in found:
            click.echo(f"wrote {folder}")


@stats.command()
@click.argument("folder", type=click.Path(path_type=Path))
@json_option
def show(folder: Path, as_json: bool) -> None:
    """Show whose statistics FOLDER holds, and which."""
    from eutectic.weights.statistics_folder import open_statistics

    _show(open_statistics(folder), as_json=as_json, quiet=False, command="stats show")


def _only(suite: Suite) -> str:
    from eutectic.errors import RecipeError

    if len(suite.tasks) > 1:
        raise RecipeError(f"suite {suite.name} has several tasks: --task chooses one of {', '.join(suite.tasks)}")
    return next(iter(suite.tasks))


def _show(found: Statistics, *, as_json: bool, quiet: bool, command: str) -> None:
    tensors = {kind: found.tensors(kind) for kind in found.kinds}
    sizes = {kind: sum(ref.nbytes for ref in held.values()) for kind, held in tensors.items()}
    if as_json:
        listed = {kind: {"tensors": len(held), "bytes": sizes[kind]} for kind, held in tensors.items()}
        model, data = found.facts["model"], found.facts["data"]
        emit_json(command, {"folder": str(found.path), "model": model, "data": data, "kinds": listed})
    elif not quiet:
        about = found.facts["data"]
        print_fields([
            ("model", found.facts["model"].get("name")),
            ("data", ", ".join(f"{key} {value}" for key, value in about.items() if key != "fingerprint")),
            *((kind, f"{len(held)} tensors, {format_bytes(sizes[kind])}") for kind, held in tensors.items()),
        ])  # fmt: skip
