"""What `blame` and `bisect` share: options of a measurement, its header, and numbers in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eutectic.cli.output import print_fields

if TYPE_CHECKING:
    from eutectic.evaluation.ablation import Ablation
    from eutectic.evaluation.blame import Effect, Part, Regression

__all__ = [
    "ablation", "effect_cells", "effect_json", "header_json", "measuring", "part_json", "print_header", "quoted_share",
]  # fmt: skip

_OPTIONS = (
    click.option("--suite", "-s", required=True, type=click.Path(), help="A suite file, or a family's folder."),
    click.option("--task", "-t", metavar="NAME", help="The task; may be left out where the suite has one."),
    click.option(
        "--against", default="base", show_default=True, metavar="SUBJECT",
        help="What the merge should be as good as: base, an expert's name, a model, a recipe.",
    ),
    click.option("--split", default="validation", show_default=True, help="Which of the task's data."),
    click.option(
        "--fidelity", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True,
        help="Share of the samples.",
    ),
    click.option("--ledger", type=click.Path(path_type=Path), help="Keep every score here, and reuse what it has."),
    click.option("--quiet", "-q", is_flag=True, help="Do not print each merge as it is measured."),
)  # fmt: skip


def measuring(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a measurement; `ablation` takes most of them."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@contextmanager
def ablation(
    recipe: str, *, suite: str, task: str | None, split: str, fidelity: float, ledger: Path | None, quiet: bool
) -> Iterator[Ablation]:
    """The recipe as what experts can be left out of."""
    from eutectic.evaluation.ablation import Ablation
    from eutectic.evaluation.evaluator import Evaluator
    from eutectic.recipes.experts import recipe_of

    talk = None if quiet else lambda line: click.echo(f"  {click.style(line, dim=True)}", err=True)
    found = recipe_of(recipe)
    with Evaluator(suite, ledger=ledger) as evaluator:
        yield Ablation(evaluator, found, task, split=split, fidelity=fidelity, report=talk)


def print_header(case: Ablation, found: Regression, against: str) -> None:
    """The two scores and what lies between them."""
    unit = case.task.unit + ("" if case.task.higher else ", lower is better")
    merged, reference = (f"{case.sign * float(scores.mean()):.4f}" for scores in (found.merged, found.reference))
    effect = found.effect
    print_fields([
        ("task", f"{case.task.name}, {case.split}, {effect.n} samples ({unit})"),
        ("merge", merged),
        (against, reference),
        ("regression", f"{effect.difference.value:.4f} ±{effect.stderr:.4f}, 95% interval {_interval(effect)}, "
                       f"p {effect.p:.2g}"),
    ])  # fmt: skip
    if not found.found:
        better = effect.sure and effect.difference.value < 0
        click.echo(f"\nno regression: the merge is {'better than' if better else 'not told apart from'} {against}")


def header_json(case: Ablation, found: Regression, against: str) -> dict[str, Any]:
    """The same as plain data."""
    scores = {"merge": found.merged, "reference": found.reference}
    return {
        "task": case.task.name,
        "split": case.split,
        "unit": case.task.unit,
        "higher": case.task.higher,
        "samples": found.effect.n,
        "against": against,
        **{name: case.sign * float(samples.mean()) for name, samples in scores.items()},
        "regression": {**effect_json(found.effect), "found": found.found},
    }


def effect_json(effect: Effect) -> dict[str, Any]:
    """A difference with its interval, as plain data."""
    interval = effect.difference
    return {
        "difference": interval.value, "stderr": effect.stderr if math.isfinite(effect.stderr) else None,
        "low": interval.low, "high": interval.high, "p": effect.p,
    }  # fmt: skip


def part_json(part: Part, found: Regression | None) -> dict[str, Any]:
    """What a part does, as plain data; `restores` where `found` says of which regression."""
    if part.effect is None:
        return {"name": part.name, "verdict": part.verdict, "error": part.reason}
    told = {"name": part.name, "verdict": part.verdict, **effect_json(part.effect)}
    return told if found is None else {**told, "restores": found.restored(part.effect.difference.value)}


def effect_cells(effect: Effect) -> list[str]:
    """A difference, its interval and p, for a table."""
    return [f"{effect.difference.value:+.4f}", _interval(effect, "+"), f"{effect.p:.2g}"]


def _interval(effect: Effect, sign: str = "") -> str:
    return f"{effect.difference.low:{sign}.4f} to {effect.difference.high:{sign}.4f}"


def quoted_share(share: float) -> str:
    """A share of the regression in percent, which may lie outside of 0 to 100."""
    return f"{100 * share:.0f}%"
