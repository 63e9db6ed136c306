"""Learn numbers of a recipe from data: gradients of an objective go through the merged network and the merge.

    values <- Adam(values, d/dvalues mean over tasks of mean over a batch of objective(merged(values), x))

AdaMerging (Yang et al. 2024, arXiv 2310.02575) is the weight of task_arithmetic with the objective entropy: task-wise
with one value a source, layer-wise with one for each source and tensor.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import eutectic
from eutectic.errors import NonFiniteError, OutputError, RecipeError
from eutectic.evaluation.fitting.adam import Adam
from eutectic.evaluation.fitting.blend import Blend, Granularity
from eutectic.evaluation.fitting.fitted import Fitted, learned_recipe, partial_of
from eutectic.evaluation.fitting.objective import Drawn, Objective
from eutectic.evaluation.model import Model
from eutectic.evaluation.suite import Suite, load_suite
from eutectic.evaluation.tasks.task import DataTask, Task
from eutectic.recipes.merge import RecipeLike, plan
from eutectic.recipes.opened import Opened
from eutectic.recipes.options import Options
from eutectic.recipes.provenance import fingerprint
from eutectic.recipes.semantics import one_thread
from eutectic.weights.digest import hash_bytes

if TYPE_CHECKING:
    import torch

__all__ = ["MEASURED", "fit"]

MEASURED = 256  # samples of each task on which the objective is measured before and after
CURVE = 50  # points of the learning curve, at most
KEPT = 5.0  # seconds between two savings of an unfinished run
Report = Callable[[str], None]


def fit(
    recipe: RecipeLike,
    data: Suite | str | os.PathLike[str] | Mapping[str, Any],
    out: str | os.PathLike[str] | None = None,
    *,
    tasks: Sequence[str] | None = None,
    split: str = "train",
    objective: Objective = "entropy",
    parameter: str = "weight",
    granularity: Granularity = "source",
    steps: int = 1000,
    rate: float = 1e-3,
    batch: int = 16,
    seed: int = 0,
    limit: int | None = None,
    options: Options | None = None,
    opened: Opened | None = None,
    resume: bool = False,
    force: bool = False,
    report: Report | None = None,
) -> Fitted:
    """The recipe with `parameter` learned on a suite's data, from the values that the recipe has; written to `out`.

    Args:
        recipe: of models, with a method that gradients go through. data: a suite, its file, or a family's folder.
        tasks, split, limit: whose samples, which of them, and at most how many of each task. By default all tasks of
            role "task".
        objective: entropy (no labels are read) or loss (of the data's answers).
        parameter, granularity: what is learned: one value for each source (or one, where the parameter is one for all),
            for each source and layer, or for each source and tensor.
        steps, rate, batch: of Adam, and the samples of each task in a step. seed: of the samples.
        resume, force: continue an unfinished run of `out`, or replace what is there.
        report: called with lines for people.

    Raises:
        RecipeError, MethodError: the recipe, its method or the parameter cannot be learned, or the tasks have no
            likelihood.
        SourceError: data or sources are missing or unsuitable. NonFiniteError: the objective became NaN or infinite.
        OutputError: `out` exists, or holds another unfinished run.
    """

    talk = report or (lambda line: None)
    if steps < 1 or batch < 1 or not (rate > 0 and math.isfinite(rate)):
        raise RecipeError(f"steps ({steps}) and batch ({batch}) must be at least 1, the rate ({rate:g}) above 0")
    target = None if out is None else Path(out)
    if target is not None and target.exists() and not force:
        raise OutputError(f"{target} exists; --force replaces it")
    suite = data if isinstance(data, Suite) else load_suite(data)
    chosen = suite.only(tasks) if tasks else Suite(suite.name, _of_role_task(suite))
    planned = plan(recipe, options, opened=opened)
    model = Model(planned, "the merged model")
    drawn = [Drawn.of(task, split, model, objective, limit=limit, seed=seed) for task in chosen]
    about = {
        "objective": objective, "parameter": parameter, "granularity": granularity, "steps": steps, "rate": rate,
        "batch": batch, "seed": seed, "data": {one.task.name: _data(one) for one in drawn},
    }  # fmt: skip
    partial = partial_of(target, hash_bytes(f"{fingerprint(planned)} {about}".encode()), resume=resume, force=force)
    started = time.perf_counter()
    with one_thread(True):
        blend = Blend(planned, parameter, granularity)
        network = _Network(model, blend)
        state = partial.load() if partial is not None else None
        adam = Adam(blend.start, rate) if state is None else Adam.load(state, rate)
        losses: list[float] = [] if state is None else state["losses"]
        before = _measure(network, drawn, blend.start)
        count = f"{blend.start.numel()} value{'s' if blend.start.numel() > 1 else ''} of {parameter}"
        talk(f"{count}, {len(drawn)} task{'s' if len(drawn) > 1 else ''}: {_words(objective, before)} before")
        if losses:
            talk(f"resumed after {len(losses)} of {steps} steps")
        for step in range(len(losses), steps):
            loss, gradient = network.step(drawn, adam.values, step, batch)
            adam.descend(gradient)
            adam.values = blend.clamp(adam.values)
            losses.append(loss)
            if partial is not None and partial.due(KEPT):
                partial.save({**adam.state(), "losses": losses})
            if (step + 1) % max(1, steps // 10) == 0:
                per_step = (time.perf_counter() - started) / (step + 1)
                talk(f"step {step + 1:,} of {steps:,}: {objective} {loss:.4f}, {per_step * 1000:.0f} ms a step")
        values = _rounded(adam.values)
        after = _measure(network, drawn, values)
    talk(f"{_words(objective, after)} after {steps:,} steps")
    facts = {
        "eutectic": eutectic.__version__, "recipe": fingerprint(planned), **about,
        "before": before, "after": after, "curve": _curve(losses), "seconds": round(time.perf_counter() - started, 3),
    }  # fmt: skip
    found = Fitted(learned_recipe(blend, values, target), facts)
    if target is not None:
        found.save(target)
    if partial is not None:
        partial.drop()
    return found


class _Network:
    """The merged network as a function of the blend's values."""

    def __init__(self, model: Model, blend: Blend) -> None:
        from eutectic.evaluation.networks import load_network

        self.blend = blend
        self.network = load_network(blend.tensors(blend.start), model.checkpoint.config).requires_grad_(False)
        # a tensor that several modules share has one place, under its first name, as where the network was loaded
        self.types = {name: p.dtype for name, p in (*self.network.named_parameters(), *self.network.named_buffers())}

    def at(self, tensors: Mapping[str, torch.Tensor]) -> Any:
        """The network with these tensors, to be called as a network is."""
        import torch

        return lambda *args, **keywords: torch.func.functional_call(self.network, dict(tensors), args, keywords)

    def tensors(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """The merged tensors that the network has, in its types."""
        merged = self.blend.tensors(values)
        return {name: tensor.to(self.types[name]) for name, tensor in merged.items() if name in self.types}

    def step(self, drawn: Sequence[Drawn], values: torch.Tensor, step: int, batch: int) -> tuple[float, torch.Tensor]:
        """The mean over tasks of the objective on a step's samples, and its gradient by the values."""
        merged = self.tensors(values)
        leaves = {name: t.requires_grad_(True) if t.is_floating_point() else t for name, t in merged.items()}
        network = self.at(leaves)
        total = 0.0
        for one in drawn:
            parts = one.at(step, batch)
            samples = sum(map(len, parts))
            for rows in parts:
                loss = one.values(network, rows).sum() / (samples * len(drawn))
                total += _finite(float(loss.detach()), f"step {step + 1}, task {one.task.name}")
                loss.backward()
        return total, self.blend.gradient(values, {name: tensor.grad for name, tensor in leaves.items()})


def _measure(network: _Network, drawn: Sequence[Drawn], values: torch.Tensor) -> dict[str, float]:
    """The objective of each task at some values, on the same samples whenever it is called."""
    import torch

    found: dict[str, float] = {}
    with torch.no_grad():
        merged = network.at(network.tensors(values))
        for one in drawn:
            sums = [one.values(merged, rows).double() for rows in one.first(MEASURED)]
            found[one.task.name] = round(_finite(float(torch.cat(sums).mean()), f"task {one.task.name}"), 6)
    return found


def _finite(value: float, where: str) -> float:
    if not math.isfinite(value):
        raise NonFiniteError(f"{where}: the objective is {value}; start from other values, or choose a smaller --rate")
    return value


def _of_role_task(suite: Suite) -> dict[str, Task]:
    found = {task.name: task for task in suite if task.role == "task"}
    if not found:
        raise RecipeError(f"suite {suite.name}: no task has the role task; --task names those to learn from")
    return found


def _data(one: Drawn) -> dict[str, Any]:
    assert isinstance(one.task, DataTask)
    rows = hash_bytes(one.rows.tobytes())
    return {"split": one.split, "samples": len(one), "fingerprint": hash_bytes(
        f"{one.task.fingerprint(one.split)} {one.split} {rows}".encode()
    )}  # fmt: skip


def _words(objective: str, values: Mapping[str, float]) -> str:
    return f"{objective} {sum(values.values()) / len(values):.4f}"


def _rounded(values: torch.Tensor) -> torch.Tensor:
    """What is written is what was measured: eight decimals."""
    return values.mul(1e8).round().div(1e8)


def _curve(losses: Sequence[float]) -> list[list[float]]:
    """[step, mean objective of the batches since the point before], at most `CURVE` points."""
    width = math.ceil(len(losses) / CURVE)
    parts = [losses[at : at + width] for at in range(0, len(losses), width)]
    ends = [min(at + width, len(losses)) for at in range(0, len(losses), width)]
    return [[end, round(sum(part) / len(part), 6)] for end, part in zip(ends, parts, strict=True)]
