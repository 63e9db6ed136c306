"""The flags that say how `eutectic average` weighs checkpoints, and what they come to."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eutectic.cli.output import printable
from eutectic.recipes.schedules import FORMS, SCHEDULES, lower_is_better, metric_weights, schedule_weights

if TYPE_CHECKING:
    from eutectic.recipes.training_run import Saved

__all__ = ["Weighed", "Weighing", "weighing_options"]


@dataclass(frozen=True)
class Weighed:
    """The weights of checkpoints, the metric that they come from (None: a schedule), and both in words."""

    words: str
    weights: Sequence[float]
    metric: str | None = None
    values: Sequence[float] | None = None


@dataclass(frozen=True)
class Weighing:
    """The flags as given; None is what was not given."""

    metric: str | None
    window: bool | None
    metrics: Path | None
    evaluator: str | None
    timeout: float | None
    higher: bool | None
    form: str | None
    p: float | None
    schedule: str | None
    k: int | None
    decay: float | None

    def __post_init__(self) -> None:
        """Refuse flags that would have no effect."""
        ways = [name for name in ("metrics", "evaluator", "schedule") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise click.UsageError(f"--{ways[0]} and --{ways[1]} are two ways to weigh; choose one")
        by_metric = (self.schedule is None, "belongs to weights by a metric, not to a --schedule")
        belongs = {
            "metric": by_metric,
            "higher": by_metric,
            "form": by_metric,
            "window": (not ways, "belongs to the run's log"),
            "timeout": (self.evaluator is not None, "belongs to --evaluator"),
            "p": (self.schedule in (None, "step"), "belongs to weights by a metric and to --schedule step"),
            "k": (self.schedule == "last", "belongs to --schedule last"),
            "decay": (self.schedule == "ema", "belongs to --schedule ema"),
        }
        for name, (fits, owner) in belongs.items():
            if getattr(self, name) is not None and not fits:
                flag = "lower" if self.higher is False and name == "higher" else name
                raise click.UsageError(f"--{flag} {owner}")
        if self.schedule == "last" and self.k is None:
            raise click.UsageError("--schedule last needs --k, the number of checkpoints")
        if self.evaluator is not None and self.metric is None and self.higher is None:
            raise click.UsageError("say which numbers of the --evaluator are good: --lower or --higher")

    def weigh(self, saved: Sequence[Saved], *, quiet: bool) -> Weighed:
        """Find the values, if any, and the weights; warn of checkpoints that have none."""
        p = 1.0 if self.p is None else self.p
        if self.schedule is not None:
            decay = 0.9 if self.decay is None else self.decay
            detail = {"last": f" {self.k}", "ema": f", decay {decay:g}", "step": f", p {p:g}"}.get(self.schedule, "")
            weights = schedule_weights(self.schedule, [entry.step for entry in saved], k=self.k or 0, decay=decay, p=p)
            return Weighed(f"schedule {self.schedule}{detail}", weights)
        metric, values = self._values(saved, quiet)
        lower = lower_is_better(metric) if self.higher is None else not self.higher
        form = self.form or "power"
        weights = metric_weights(values, form=form, p=p, lower=lower)
        for entry, value in zip(saved, values, strict=True):
            if not math.isfinite(value):
                click.echo(printable(f"warning: {entry.name} is left out: its {metric} is {value}"), err=True)
        words = f"{form} of {metric} ({'low' if lower else 'high'} is good), p {p:g}"
        return Weighed(words, weights, metric, values)

    def _values(self, saved: Sequence[Saved], quiet: bool) -> tuple[str, list[float]]:
        if self.metrics is not None:
            from eutectic.recipes.run_metrics import read_csv

            return read_csv(self.metrics, saved, self.metric)
        if self.evaluator is not None:
            from eutectic.recipes.run_command import measure

            tell = None if quiet else _tell
            return self.metric or "evaluator", measure(self.evaluator, saved, timeout=self.timeout, report=tell)
        from eutectic.recipes.run_metrics import read_trainer_state

        metric = self.metric or "eval_loss"
        return metric, read_trainer_state(saved, metric, window=bool(self.window))


def _tell(entry: Saved, value: float) -> None:
    click.echo(printable(f"{entry.name}: {value:g}"), err=True)


def weighing_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags of `Weighing`; they reach the command as one, `weighing`."""

    @click.option("--metric", metavar="NAME", help="Weigh by this metric of the run's log.  [default: eval_loss]")
    @click.option("--window", is_flag=True, default=None, help="Means of the log since the checkpoint before.")
    @click.option("--metrics", type=click.Path(path_type=Path), metavar="FILE", help="Weigh by a column of a CSV file.")
    @click.option("--evaluator", metavar="COMMAND", help="Weigh by the number that COMMAND prints for {checkpoint}.")
    @click.option(
        "--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Of COMMAND, each time."
    )
    @click.option("--higher/--lower", default=None, help="Which values are good.  [default: told by the metric's name]")
    @click.option("--form", type=click.Choice(list(FORMS)), help="How a metric becomes weights.  [default: power]")
    @click.option("--p", "-p", type=float, metavar="P", help="Penalty factor; 0: the plain average.  [default: 1]")
    @click.option("--schedule", type=click.Choice(SCHEDULES), help="Weigh by the place in the run, not by a metric.")
    @click.option("--k", type=int, metavar="K", help="How many checkpoints --schedule last takes.")
    @click.option("--decay", type=float, metavar="B", help="Of --schedule ema.  [default: 0.9]")
    @functools.wraps(function)
    def command(**given: Any) -> Any:
        flags = {field.name: given.pop(field.name) for field in fields(Weighing)}
        return function(weighing=Weighing(**flags), **given)

    return command
