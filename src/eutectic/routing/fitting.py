"""Fitting the router of a Twin pool: the shared expert reads each expert's own data; and the file of the result.

POOL/router.safetensors holds the router's tensors; its metadata say, as JSON, for which experts and core it was fitted,
on what, and how often it is right. One file, so that a router is there whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eutectic.errors import FormatError, OutputError, RecipeError, SourceError
from eutectic.evaluation.model import Model
from eutectic.evaluation.statistics import generator
from eutectic.evaluation.suite import Suite
from eutectic.evaluation.tasks.classification import Classification
from eutectic.evaluation.tasks.task import DataTask, Task
from eutectic.pools.pool import Pool
from eutectic.recipes.semantics import one_thread
from eutectic.routing.features import answer_and_features
from eutectic.routing.router import DEFAULTS, Router, RouterSettings, fit_router
from eutectic.routing.twin_pool import check_twin
from eutectic.weights.checkpoint import open_checkpoint
from eutectic.weights.files import open_file
from eutectic.weights.safetensors import read_header, write_safetensors

if TYPE_CHECKING:
    import torch

__all__ = ["FILE", "Fitted", "expert_tasks", "fit_pool", "load_router", "save_router"]

FILE, KEY, VERSION = "router.safetensors", "eutectic.router", 1
Counts = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Fitted:
    """A router and what is known of it: samples of each expert, and for validation samples of each expert how many
    went to which one."""

    router: Router
    settings: RouterSettings
    suite: str
    samples: Mapping[str, int]
    counts: Counts

    @property
    def accuracy(self) -> float:
        """The mean over experts of the share of their validation samples that is routed to them."""
        return float(np.mean([found[name] / sum(found.values()) for name, found in self.counts.items()]))


def expert_tasks(pool: Pool, suite: Suite) -> dict[str, list[DataTask]]:
    """The tasks of each expert of a pool.

    Raises:
        RecipeError: a task without an expert in the pool, an expert without a task, or tasks whose answers mean
            different things.
    """
    found: dict[str, list[DataTask]] = {expert: [] for expert in pool}
    for task in suite:
        if task.expert in found and isinstance(task, DataTask):
            found[task.expert].append(task)
        elif task.role != "base":
            raise RecipeError(_without_expert(pool, suite, task))
    idle = [expert for expert, tasks in found.items() if not tasks]
    if idle:
        raise RecipeError(
            f"suite {suite.name}: no task is that of {', '.join(idle)}, so a router cannot learn when to choose it; "
            "add a task with that `expert`, or take the expert out of the pool"
        )
    _same_answers([task for tasks in found.values() for task in tasks])
    return found


def _without_expert(pool: Pool, suite: Suite, task: Task) -> str:
    has = f"its experts are {', '.join(pool)}"
    if task.expert is None:
        return f"suite {suite.name}: task {task.name} names no `expert` of {pool.path}; {has}"
    if task.expert not in pool:
        return (
            f"suite {suite.name}: task {task.name} is that of expert {task.expert!r}, which {pool.path} has not; {has}"
        )
    kind = getattr(task, "kind", type(task).__name__)
    return f"suite {suite.name}: task {task.name} is of kind {kind}, which has no samples that could be routed"


def _same_answers(tasks: list[DataTask]) -> None:
    """Classifiers that share the network's outputs must mean the same by them."""
    own = [task for task in tasks if isinstance(task, Classification) and task.head is None]
    for task in own[1:]:
        if task.labels != own[0].labels:
            raise RecipeError(
                f"tasks {own[0].name} and {task.name} read the same outputs of the network as different classes: "
                f"{_shown(own[0])} and {_shown(task)}; experts with heads of their own need the encoder alone in the "
                "pool and a `head` for each task"
            )


def _shown(task: Classification) -> str:
    return "unnamed classes" if task.labels is None else ", ".join(task.labels[:4])


def fit_pool(
    pool: Pool,
    suite: Suite,
    settings: RouterSettings = DEFAULTS,
    *,
    split: str = "train",
    held_out: str = "validation",
    limit: int | None = None,
    report: Callable[[str], None] | None = None,
) -> Fitted:
    """Fit a router on the tasks of the pool's experts and count its choices on samples that it has not seen.

    Args:
        split, held_out: whose data to learn from, and to count on.
        limit: at most so many samples of an expert.

    Raises:
        RecipeError: a pool of another scheme, or a suite that does not fit it. SourceError: data are missing.
    """
    import torch

    check_twin(pool)
    tasks = expert_tasks(pool, suite)
    for name in (split, held_out):
        for task in (task for found in tasks.values() for task in found):
            task.file(name)  # what is missing is said before anything is calculated
    reader = _Reader(pool)
    with one_thread(True):
        known = {name: _features(reader, found, split, limit) for name, found in tasks.items()}
        if report is not None:
            report(f"{sum(map(len, known.values())):,} samples read by the shared expert")
        router = fit_router(known, settings)
        counts = {}
        for name, found in tasks.items():
            unseen = torch.from_numpy(_features(reader, found, held_out, None))
            chosen = router.gates(unseen, soft=False).sum(0).long().tolist()
            counts[name] = dict(zip(router.experts, chosen, strict=True))
    return Fitted(router, settings, suite.name, {name: len(found) for name, found in known.items()}, counts)


class _Reader(Model):
    """The shared expert, which keeps the features of everything that it is asked."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool.core, str(pool.path))
        self.found: list[torch.Tensor] = []

    @property
    def networks(self) -> list[torch.nn.Module]:
        """The network, whose calls are kept."""
        return [_reading(self.network, self.found)]


def _reading(network: torch.nn.Module, found: list[torch.Tensor]) -> torch.nn.Module:
    import torch

    class Reading(torch.nn.Module):
        def forward(self, *inputs: torch.Tensor, **named: Any) -> Any:
            if named.get("past_key_values") is not None:  # what continues a text is no input of its own
                return network(*inputs, **named)
            answer, states = answer_and_features(network, inputs, named)
            found.append(states.clone())
            return answer

    return Reading().eval()


def _features(reader: _Reader, tasks: list[DataTask], split: str, limit: int | None) -> np.ndarray:
    """[n, d] of the samples of some tasks, by asking the shared expert what the tasks ask."""
    import torch

    reader.found.clear()
    for task in tasks:
        count = task.count(split)
        rows = np.arange(count)
        most = None if limit is None else -(-limit // len(tasks))
        if most is not None and most < count:
            rows = np.sort(generator(0, f"routing {count}").permutation(count)[:most])
        if count:
            task.measure(reader, split, rows)
    if not reader.found:
        raise SourceError(f"task {tasks[0].name}: its {split} data hold no samples")
    return torch.cat(reader.found).numpy()


# ---------------------------------------------------------------- the file


def _belongs_to(pool: Pool) -> dict[str, Any]:
    """What a router is fitted for: the core, and each expert's file."""
    files = {name: expert.file for name, expert in pool.manifest.experts.items()}
    experts = [[name, None if file is None else file.blake3] for name, file in files.items()]
    return {"core": pool.manifest.core.identity, "experts": experts}


def save_router(pool: Pool, fitted: Fitted) -> None:
    """Put the router into the pool's folder, in place of an earlier one.

    Raises:
        OutputError: it cannot be written.
    """
    facts = {
        "version": VERSION, "pool": _belongs_to(pool), "settings": asdict(fitted.settings), "suite": fitted.suite,
        "samples": dict(fitted.samples), "validation": {name: dict(found) for name, found in fitted.counts.items()},
    }  # fmt: skip
    beside = pool.path / f"{FILE}.partial"
    try:
        write_safetensors(beside, fitted.router.tensors, {KEY: json.dumps(facts)})
        beside.replace(pool.path / FILE)
    except OSError as error:
        raise OutputError(f"{pool.path / FILE} cannot be written: {error.strerror}") from None


def load_router(pool: Pool) -> Fitted:
    """The router of a pool.

    Raises:
        SourceError: there is none, or it was fitted for other experts. FormatError: it is malformed.
    """
    path = pool.path / FILE
    if not path.is_file():
        raise SourceError(f"{pool.path}: has no router yet; `eutectic route fit {pool.path} --data SUITE` fits one")
    try:
        facts = json.loads(read_header(open_file(path)).metadata[KEY])
        if facts["version"] != VERSION:
            raise FormatError(f"{path}: a router of version {facts['version']!r:.20}; this reads {VERSION}")
        belongs, experts = facts["pool"], tuple(name for name, _ in facts["pool"]["experts"])
        tensors = {name: ref.to_numpy() for name, ref in open_checkpoint(path).items()}
        fitted = Fitted(
            Router(experts, tensors), RouterSettings(**facts["settings"]), str(facts["suite"]), facts["samples"],
            facts["validation"],
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{path}: is no router of ours ({error!r:.80})") from None
    if belongs != _belongs_to(pool):
        raise SourceError(
            f"{path}: was fitted for other experts than the pool now has ({', '.join(pool)}); fit it again: "
            f"`eutectic route fit {pool.path} --data SUITE`"
        )
    return fitted
