"""`eutectic route`: which expert of a Twin pool an input is for, learned from the experts' own data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eutectic.cli.output import emit_json, json_option, print_fields, print_table

if TYPE_CHECKING:
    from eutectic.evaluation.scores import Outcome
    from eutectic.evaluation.suite import Suite
    from eutectic.pools.pool import Pool
    from eutectic.routing.measuring import Measured

__all__ = ["route"]

_POOL = click.argument("pool", type=click.Path(path_type=Path))


@click.group()
def route() -> None:
    """Choose experts of a pool for each input."""


@route.command()
@_POOL
@click.option("--data", "-d", "suite", required=True, type=click.Path(), help="A suite file, or a family's folder.")
@click.option("--task", "-t", "tasks", multiple=True, help="Only this task; repeatable.")
@click.option("--split", default="train", show_default=True, help="Which data to learn from.")
@click.option("--held-out", default="validation", show_default=True, help="Which data to count the choices on.")
@click.option("--limit", type=click.IntRange(1), help="At most so many samples of an expert.  [default: all]")
@click.option("--hidden", type=click.IntRange(1), help="Width of the router's hidden layer.  [default: 256]")
@click.option("--steps", type=click.IntRange(1), help="Steps of training.  [default: 300]")
@click.option("--seed", type=click.IntRange(0), help="Starts the router's weights and the order.  [default: 0]")
@json_option
def fit(
    pool: Path,
    suite: str,
    tasks: tuple[str, ...],
    split: str,
    held_out: str,
    limit: int | None,
    as_json: bool,
    **settings: int | None,
) -> None:
    """Fit the router of the Twin pool POOL on its experts' own data, and put it into the pool.

    The shared expert reads every sample; a small perceptron learns from the mean of its last hidden states whose task a
    sample is from. A router that POOL has is replaced.
    """
    from dataclasses import replace

    from eutectic.routing.fitting import fit_pool, save_router
    from eutectic.routing.router import DEFAULTS

    opened, chosen = _open(pool, suite, tasks)
    fitted = fit_pool(
        opened, chosen, replace(DEFAULTS, **{name: value for name, value in settings.items() if value is not None}),
        split=split, held_out=held_out, limit=limit,
        report=None if as_json else lambda line: click.echo(line, err=True),
    )  # fmt: skip
    save_router(opened, fitted)
    if as_json:
        emit_json("route fit", {
            "pool": str(pool), "suite": chosen.name, "experts": list(fitted.router.experts),
            "samples": dict(fitted.samples), "accuracy": fitted.accuracy, "choices": dict(fitted.counts),
        })  # fmt: skip
        return
    print_fields([
        ("router", f"{pool}: {fitted.router.width} features, {len(fitted.router.experts)} experts"),
        ("accuracy", f"{fitted.accuracy:.1%} of {held_out}, the mean over experts"),
    ])  # fmt: skip
    columns = ["samples of", *(f">{name}" for name in fitted.router.experts)]
    rows = [[name, *map(str, found.values())] for name, found in fitted.counts.items()]
    print_table(columns, rows, title=f"{held_out} samples, and the expert chosen for them")


@route.command()
@_POOL
@click.option("--suite", "-s", required=True, type=click.Path(), help="A suite file, or a family's folder.")
@click.option("--task", "-t", "tasks", multiple=True, help="Only this task; repeatable.")
@click.option("--split", default="test", show_default=True, help="Which data: validation to choose, test to report.")
@click.option(
    "--top", type=click.Choice(["1", "soft"]), default="1", show_default=True,
    help="The likeliest expert, or all by their probabilities.",
)  # fmt: skip
@click.option("--oracle", is_flag=True, help="Leave the router out: only what needs none.")
@json_option
@click.pass_context
def evaluate(
    ctx: click.Context,
    pool: Path,
    suite: str,
    tasks: tuple[str, ...],
    split: str,
    top: str,
    oracle: bool,
    as_json: bool,
) -> None:
    """Measure the Twin pool POOL: its router, and what the router is to be held against.

    \b
    shared      the shared expert alone
    router      each sample with the experts that the router chooses; no task is told to it
    oracle      each task with its own expert
    #NAME       one expert for everything
    fine-tuned  the models that were packed, where they still are, each on its own task

    The router's accuracy is reported apart. Exits with 1 if a score could not be measured.
    """
    from eutectic.evaluation.scores import Failure
    from eutectic.routing.measuring import measure_pool

    opened, chosen = _open(pool, suite, tasks)
    found = measure_pool(opened, chosen, split=split, learned=not oracle, soft=top == "soft")
    if as_json:
        emit_json("route evaluate", _describe(found, chosen, split))
    else:
        _print(found, chosen)
    ctx.exit(1 if any(isinstance(o, Failure) for scores in found.scores.values() for o in scores.values()) else 0)


def _open(pool: Path, suite: str, tasks: tuple[str, ...]) -> tuple[Pool, Suite]:
    from eutectic.evaluation.suite import load_suite
    from eutectic.pools.pool import open_pool

    loaded = load_suite(suite)
    return open_pool(pool), loaded.only(tasks) if tasks else loaded


def _describe(found: Measured, suite: Suite, split: str) -> dict[str, Any]:
    from eutectic.evaluation.scores import Scores

    def entry(outcome: Outcome) -> dict[str, Any]:
        if not isinstance(outcome, Scores):
            return {"error": outcome.reason}
        return {"value": outcome.value, "stderr": outcome.stderr, "n": outcome.n, "seconds": outcome.seconds}

    return {
        "suite": suite.name,
        "split": split,
        "tasks": [{"name": t.name, "unit": t.unit, "higher": t.higher, "role": t.role} for t in suite],
        "accuracy": found.accuracy,
        "routed": {task: entry(scores) for task, scores in found.routed.items()},
        "scores": {way: {task: entry(o) for task, o in scores.items()} for way, scores in found.scores.items()},
        "notes": list(found.notes),
    }


def _print(found: Measured, suite: Suite) -> None:
    from eutectic.evaluation.scores import Failure

    main = [way for way in found.scores if not way.startswith("#")]
    _table(found, suite, main, "")
    _table(found, suite, [way for way in found.scores if way.startswith("#")], "one expert for everything")
    if found.accuracy is not None:
        rows = [[task, _cell(scores)] for task, scores in found.routed.items()]
        print_table(
            ("task", ">to its expert"), [*rows, ["mean", f"{found.accuracy:.4f}"]], title="the router's choices"
        )
    for note in found.notes:
        click.echo(f"note: {note}")
    for way, scores in found.scores.items():
        for task, outcome in scores.items():
            if isinstance(outcome, Failure):
                click.echo(f"{click.style('not measured:', fg='red')} {way}, task {task}: {outcome.reason}", err=True)


def _table(found: Measured, suite: Suite, ways: list[str], title: str) -> None:
    columns = ["task", "unit", *(f">{way}" for way in ways)]
    rows = [
        [task.name, task.unit + ("" if task.higher else " (lower is better)"),
         *(_cell(found.scores[way].get(task.name)) for way in ways)]
        for task in suite
    ]  # fmt: skip
    print_table(columns, rows, title=title)


def _cell(outcome: Outcome | None) -> str:
    from eutectic.evaluation.scores import Scores

    if outcome is None:
        return "-"
    if not isinstance(outcome, Scores):
        return "failed"
    return f"{outcome.value:.4f}" + (f" ±{outcome.stderr:.4f}" if math.isfinite(outcome.stderr) else "")
