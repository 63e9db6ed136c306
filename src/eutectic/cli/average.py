"""`eutectic average`: one model, or one adapter, from the checkpoints of a training run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eutectic.cli.factored import modules_json, print_errors, written_in_words
from eutectic.cli.output import emit_json, json_option, print_fields, print_table, printable
from eutectic.cli.run_options import describe, run_options
from eutectic.cli.sizes import plural
from eutectic.cli.weighing import Weighed, Weighing, weighing_options
from eutectic.errors import OutputError

if TYPE_CHECKING:
    from eutectic.cli.merge_watchers import Screen
    from eutectic.recipes.lora_output import Factored
    from eutectic.recipes.plan import Options
    from eutectic.recipes.training_run import Saved

__all__ = ["average"]


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="RUN|CHECKPOINTS OUT")
@weighing_options
@click.option("--space", type=click.Choice(["product", "factors"]), help="Of adapters.  [default: product]")
@click.option("--rank", type=click.IntRange(1), help="Of the averaged adapter, at most (space product).")
@click.option("--max-error", type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="E", help="The same.")
@click.option("--recipe", "file", type=click.Path(path_type=Path), metavar="FILE", help="Write the recipe alone.")
@click.option("--dry-run", is_flag=True, help="Check everything, print weights and plan, write nothing.")
@click.option("--resume", is_flag=True, help="Continue a killed run; a finished OUT of these weights is accepted.")
@click.option("--force", is_flag=True, help="Replace OUT (or FILE), and drop anything unfinished.")
@run_options
@json_option
def average(
    paths: tuple[str, ...],
    weighing: Weighing,
    options: dict[str, Any],
    space: str | None,
    rank: int | None,
    max_error: float | None,
    file: Path | None,
    dry_run: bool,
    resume: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Average the checkpoints of a training run into the model folder OUT, good ones with more weight.

    \b
      eutectic average run out                              by eval_loss in trainer_state.json
      eutectic average run out --metric eval_accuracy -p 4  the larger p, the more the best one counts
      eutectic average run out --schedule last --k 5        by the place in the run
      eutectic average run --recipe average.yaml            only the recipe, to read or to change

    RUN holds folders checkpoint-<step>, of models or of adapters; or name two or more checkpoints, in their order.
    """
    from eutectic.recipes.average import average_recipe, recipe_text
    from eutectic.recipes.merge import check_merge, plan
    from eutectic.recipes.plan import Options
    from eutectic.recipes.training_run import find_checkpoints

    sources, out = _split(paths, file, dry_run or resume)
    if file is not None and file.exists() and not force:
        raise OutputError(f"{file} exists; --force replaces it")
    saved = find_checkpoints(sources)
    chosen = Options(**options)
    adapter = {"space": space, "rank": rank, "max_error": max_error}
    if weighing.evaluator is not None:  # measuring may take hours: what can fail for other reasons fails before
        trial = average_recipe(saved, [1 / len(saved)] * len(saved), **adapter)
        plan(trial, chosen) if out is None or resume else check_merge(trial, out, chosen, force=force)
    weighed = weighing.weigh(saved, quiet=as_json)
    title = f"{plural(sum(w > 0 for w in weighed.weights), 'checkpoint')} by {weighed.words}"
    recipe = average_recipe(saved, weighed.weights, name=f"average of {title}", **adapter)
    table = _table(saved, weighed)
    if not as_json:
        print_fields([("average", title)])
        print_table(*table)
    modules: Sequence[Factored] = ()
    report = {"out": out, "file": None if file is None else str(file), **_facts(saved, weighed), "recipe": recipe}
    if file is not None:
        plan(recipe, chosen)
        lines = ["  ".join(cell.removeprefix(">") for cell in row) for row in (table[0], *table[1])]
        _write(file, recipe_text(recipe, [f"average of {title}", *lines]), force)
        said = [f"wrote {file}; `eutectic merge {file} OUT` makes the average"]
    elif dry_run:
        made = check_merge(recipe, str(out), chosen, resume=resume, force=force)
        report["plan"] = made.to_json()
        said = describe(made)
    else:
        made, sentence = _merge(recipe, str(out), chosen, resume=resume, force=force, quiet=as_json)
        said, modules = [sentence], made.modules
    if as_json:
        emit_json("average", {**report, "modules": modules_json(modules)} if modules else report)
    else:
        click.echo("\n".join(printable(line) for line in said))
        print_errors(modules)


def _split(paths: tuple[str, ...], file: Path | None, merges: bool) -> tuple[list[str], str | None]:
    """The checkpoints or their run, and OUT, which there is none of beside --recipe."""
    if file is None:
        if len(paths) < 2:
            raise click.UsageError("name OUT, too, behind the run or its checkpoints; or write the --recipe alone")
        return list(paths[:-1]), paths[-1]
    if merges:
        raise click.UsageError("--recipe writes the recipe alone; --dry-run and --resume belong to a merge")
    return list(paths), None


def _table(saved: Sequence[Saved], weighed: Weighed) -> tuple[list[str], list[list[str]]]:
    values = weighed.values
    heading = ["checkpoint", *([] if values is None else [f">{weighed.metric}"]), ">weight"]
    rows = [
        [entry.name, *([] if values is None else [f"{values[at]:.6g}"]), f"{weighed.weights[at]:.4f}"]
        for at, entry in enumerate(saved)
    ]
    return heading, rows


def _facts(saved: Sequence[Saved], weighed: Weighed) -> dict[str, Any]:
    """The weights as plain data (in the JSON of `average`)."""
    values = weighed.values or [None] * len(saved)
    return {
        "weights": weighed.words,
        "metric": weighed.metric,
        "checkpoints": [
            {"path": str(entry.path), "step": entry.step, "value": value, "weight": weight}
            for entry, value, weight in zip(saved, values, weighed.weights, strict=True)
        ],
    }


def _write(file: Path, text: str, force: bool) -> None:
    try:
        with open(file, "w" if force else "x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error.strerror}") from None


def _merge(
    recipe: dict[str, Any], out: str, options: Options, *, resume: bool, force: bool, quiet: bool
) -> tuple[Screen, str]:
    """Merge; who watched it, and what was made, in words."""
    from eutectic.cli.merge_watchers import Screen
    from eutectic.recipes.merge import merge

    begun = time.perf_counter()
    watcher = Screen(quiet=quiet, verbose=0)
    try:
        folder = merge(recipe, out, options, resume=resume, force=force, watcher=watcher)
    finally:
        watcher.close()
    if watcher.plan is None:
        return watcher, f"{out} is this average already, finished."
    written = written_in_words(watcher.plan, watcher.modules, Path(str(folder)))
    return watcher, f"{out}: {written} in {time.perf_counter() - begun:.1f} s"
