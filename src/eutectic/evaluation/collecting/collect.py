"""Collect statistics of a model on a task's data into a folder, in as many passes over the data as the memory needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import eutectic
from eutectic.errors import NonFiniteError, OutputError, RecipeError
from eutectic.evaluation.collecting.activations import ACTIVATIONS
from eutectic.evaluation.collecting.fisher import FISHER
from eutectic.evaluation.collecting.gradients import GRADIENTS
from eutectic.evaluation.collecting.gram import GRAM
from eutectic.evaluation.collecting.parameters import PIECE
from eutectic.evaluation.collecting.samples import Labels, Samples
from eutectic.evaluation.collecting.statistic import Statistic
from eutectic.evaluation.model import Model
from eutectic.evaluation.tasks.task import Task
from eutectic.recipes.semantics import one_thread
from eutectic.weights.digest import hash_bytes
from eutectic.weights.statistics_folder import (
    KINDS,
    Statistics,
    check_kinds,
    identity_of,
    open_statistics,
    staged,
    write_facts,
    write_kind,
)

if TYPE_CHECKING:
    import numpy

__all__ = ["MEMORY", "collect_statistics"]

MEMORY = 64 << 20
_STATISTICS = {statistic.name: statistic for statistic in (FISHER, GRAM, ACTIVATIONS, GRADIENTS)}
Report = Callable[[str], None]


def collect_statistics(
    model: Model,
    task: Task,
    out: Path,
    *,
    kinds: Sequence[str] = ("fisher", "gram"),
    split: str = "train",
    limit: int | None = None,
    labels: Labels = "data",
    memory: int = MEMORY,
    report: Report | None = None,
) -> Statistics:
    """Collect `kinds` and write them to the folder `out`; kinds of the same model and data that it holds are kept.

    Args:
        model: a stored checkpoint. task, split: a task of kind classification or bits_per_byte, and which data.
        limit: at most so many samples. labels: whose answers the Fisher information is of, see `fisher.py`.
        memory: bytes of the sums that are held at once, and their gradients; a single tensor may take more.

    Raises:
        RecipeError: an unknown kind, task without likelihood, or a planned recipe instead of a checkpoint.
        OutputError: `out` holds something else, or statistics of another model or other data.
        NonFiniteError: NaN or infinity; nothing is written.
    """
    talk = report or (lambda line: None)
    fault = check_kinds(tuple(kinds))
    if fault:
        raise RecipeError(fault)
    if model.recipe is not None:
        raise RecipeError(f"{model.label}: statistics belong to a stored model; merge this recipe first")
    samples = Samples.of(task, split, model, limit=limit, labels=labels)
    rows = hash_bytes(samples.rows.tobytes())
    fingerprint = hash_bytes(f"{samples.task.fingerprint(split)} {split} {rows} {labels}".encode())
    known = _known(out, identity_of(model.checkpoint), fingerprint)
    wanted = [kind for kind in KINDS if kind in kinds and kind not in known]
    if not wanted:
        talk(f"{out}: has {', '.join(known)} of this model and data already")
        return open_statistics(out)
    with staged(out) as folder, one_thread(True):
        for kind in wanted:
            statistic = _STATISTICS[kind]
            shapes = statistic.shapes(model.network)
            groups = list(_groups(statistic, shapes, memory))
            passes = f"{len(groups)} pass{'es' if len(groups) != 1 else ''}"
            talk(f"{kind}: {len(shapes)} tensors, {len(samples)} samples, {passes}")
            write_kind(folder, kind, shapes, _collect(statistic, groups, model, samples, talk))
        write_facts(folder, {
            "eutectic": eutectic.__version__,
            "model": {"name": model.label, "fingerprint": identity_of(model.checkpoint)},
            "data": {
                "task": task.name, "split": split, "samples": len(samples), "labels": labels,
                "fingerprint": fingerprint,
            },
            "kinds": [kind for kind in KINDS if kind in known or kind in wanted],
        })  # fmt: skip
    return open_statistics(out)


def _known(out: Path, model: str, data: str) -> tuple[str, ...]:
    """The kinds that a folder has of this model and data."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return ()
    if not (out / "stats.json").is_file():
        raise OutputError(f"{out} exists and holds no statistics; choose another folder")
    found = open_statistics(out)
    for what, one, other in (("another model", found.model, model), ("other data", found.data, data)):
        if one != other:
            of = found.facts["model" if what == "another model" else "data"]
            shown = ", ".join(f"{key} {value}" for key, value in of.items() if key != "fingerprint")
            raise OutputError(f"{out} holds statistics of {what} ({shown}); choose another folder, or remove it first")
    return found.kinds


def _groups(statistic: Statistic, shapes: Mapping[str, tuple[int, ...]], memory: int) -> Iterator[list[str]]:
    """The names in order, cut so that the tensors of each group fit the memory; one alone may be larger."""
    import math

    group: list[str] = []
    held = 0
    for name, shape in shapes.items():
        nbytes = math.prod(shape) * statistic.entry_bytes
        if group and held + nbytes > memory:
            yield group
            group, held = [], 0
        group.append(name)
        held += nbytes
    if group:
        yield group


def _collect(
    statistic: Statistic, groups: Sequence[Sequence[str]], model: Model, samples: Samples, talk: Report
) -> Iterator[dict[str, numpy.ndarray]]:
    import torch

    zero: list[str] = []
    for group in groups:
        found = statistic.collect(model.network, group, samples)
        for name in group:
            total = found.pop(name).float()
            if not all(bool(torch.isfinite(piece).all()) for piece in total.view(-1).split(PIECE)):
                raise NonFiniteError(f"{model.label}: the {statistic.name} of {name} is NaN or infinite on this data")
            zero += [name] if total.numel() and not bool(total.any()) else []
            ready = {name: total.numpy()}
            del total
            yield ready
            ready.clear()  # whoever wrote it still holds the mapping while the next group is collected
    if zero:
        shown = ", ".join(zero[:4]) + (", ..." if len(zero) > 4 else "")
        talk(f"{statistic.name}: zero for {len(zero)} tensors, which this data does not reach: {shown}")
