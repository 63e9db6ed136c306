"""`eutectic evaluate`: models, recipes and endpoints measured on the tasks of a suite."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eutectic.cli.output import emit_json, json_option, print_table

if TYPE_CHECKING:
    from eutectic.evaluation.scores import Outcome
    from eutectic.evaluation.suite import Suite

__all__ = ["evaluate"]


@click.command()
@click.argument("subjects", nargs=-1, required=True, metavar="MODEL|RECIPE|ENDPOINT...")
@click.option("--suite", "-s", required=True, type=click.Path(), help="A suite file, or a family's folder.")
@click.option("--split", default="test", show_default=True, help="Which data: validation to choose, test to report.")
@click.option("--task", "-t", "tasks", multiple=True, help="Only this task; repeatable.")
@click.option("--ledger", type=click.Path(path_type=Path), help="Keep every score in this file, and reuse what it has.")
@click.option(
    "--fidelity", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True,
    help="Share of the samples.",
)  # fmt: skip
@click.option("--samples", type=click.Path(path_type=Path), help="Write the score of every sample to this JSON file.")
@json_option
@click.pass_context
def evaluate(
    ctx: click.Context,
    subjects: tuple[str, ...],
    suite: str,
    split: str,
    tasks: tuple[str, ...],
    ledger: Path | None,
    fidelity: float,
    samples: Path | None,
    as_json: bool,
) -> None:
    """Measure models, recipes and endpoints on the tasks of a suite.

    A recipe is merged in memory and not written. An endpoint is written openai:http://host/v1#model and takes part
    in tasks that generate text. Behind each score stands its standard error; of several subjects each is also compared
    with the first, sample by sample (95% bootstrap intervals). Exits with 1 if a score could not be measured.
    """
    from eutectic.evaluation.evaluator import Evaluator
    from eutectic.evaluation.scores import Failure

    with Evaluator(suite, ledger=ledger) as evaluator:
        chosen = evaluator.suite.only(tasks) if tasks else evaluator.suite
        opened = [evaluator.subject(subject) for subject in subjects]
        found = {
            name: evaluator.measure(subject, split=split, tasks=tasks or None, fidelity=fidelity, label=name)
            for name, subject in zip(subjects, opened, strict=True)
        }
    if samples is not None:
        _write_samples(samples, found, split)
    compared = _compare(found, chosen)
    if as_json:
        emit_json("evaluate", _describe(found, chosen, split, compared))
    else:
        _print(found, chosen, compared)
    ctx.exit(1 if any(isinstance(o, Failure) for outcomes in found.values() for o in outcomes.values()) else 0)


def _write_samples(path: Path, found: dict[str, dict[str, Outcome]], split: str) -> None:
    """{"split": ..., "samples": {subject: {task: [a number for each sample, in the data's order]}}}."""
    from eutectic.evaluation.results import write_text
    from eutectic.evaluation.scores import Scores

    samples = {
        name: {task: outcome.samples.tolist() for task, outcome in outcomes.items() if isinstance(outcome, Scores)}
        for name, outcomes in found.items()
    }
    write_text(path, json.dumps({"split": split, "samples": samples}) + "\n")


def _compare(found: dict[str, dict[str, Outcome]], suite: Suite) -> dict[str, dict[str, Any]]:
    """For each subject but the first, each task's paired difference to the first."""
    from eutectic.evaluation.scores import Scores
    from eutectic.evaluation.statistics import paired_difference

    first, *others = found
    pairs: dict[str, dict[str, Any]] = {}
    for name in others:
        pairs[name] = {}
        for task in suite:
            a, b = found[name][task.name], found[first][task.name]
            if isinstance(a, Scores) and isinstance(b, Scores) and len(a.samples) == len(b.samples) > 1:
                pairs[name][task.name] = paired_difference(a.samples, b.samples, name=task.name)
    return pairs


def _describe(
    found: dict[str, dict[str, Outcome]], suite: Suite, split: str, compared: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    from eutectic.evaluation.scores import Failure

    def entry(outcome: Outcome) -> dict[str, Any]:
        if isinstance(outcome, Failure):
            return {"error": outcome.reason}
        return {"value": outcome.value, "stderr": _finite(outcome.stderr), "n": outcome.n, "seconds": outcome.seconds}

    def pair(paired: Any) -> dict[str, Any]:
        interval = paired.difference
        return {"difference": interval.value, "low": interval.low, "high": interval.high, "p": paired.p, "n": paired.n}

    return {
        "suite": suite.name,
        "split": split,
        "tasks": [{"name": t.name, "unit": t.unit, "higher": t.higher, "role": t.role} for t in suite],
        "subjects": [
            {
                "subject": name,
                "scores": {task: entry(outcome) for task, outcome in outcomes.items()},
                "against_first": {task: pair(paired) for task, paired in compared.get(name, {}).items()},
            }
            for name, outcomes in found.items()
        ],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _print(found: dict[str, dict[str, Outcome]], suite: Suite, compared: dict[str, dict[str, Any]]) -> None:
    from eutectic.evaluation.scores import Failure

    columns = ["task", "unit", *(f">{name}" for name in found)]
    rows = [
        [task.name, task.unit + ("" if task.higher else " (lower is better)"), *(_cell(o[task.name]) for o in
                                                                                 found.values())]
        for task in suite
    ]  # fmt: skip
    print_table(columns, rows)
    first = next(iter(found))
    for name, pairs in compared.items():
        if pairs:
            lines = [
                [
                    task,
                    f"{p.difference.value:+.4f}",
                    f"{p.difference.low:+.4f} to {p.difference.high:+.4f}",
                    f"{p.p:.3g}",
                ]
                for task, p in pairs.items()
            ]
            print_table(("task", ">difference", "95% interval", ">p"), lines, title=f"{name} against {first}")
    for name, outcomes in found.items():
        for task, outcome in outcomes.items():
            if isinstance(outcome, Failure):
                reason = outcome.reason.removeprefix(f"task {task}: ").removeprefix(f"{name}: ")
                click.echo(f"{click.style('not measured:', fg='red')} {name}, task {task}: {reason}", err=True)


def _cell(outcome: Outcome) -> str:
    from eutectic.evaluation.scores import Failure

    if isinstance(outcome, Failure):
        return "failed"
    return f"{outcome.value:.4f}" + (f" ±{outcome.stderr:.4f}" if math.isfinite(outcome.stderr) else "")
