"""The executor on a Ray cluster: a task for every weight file, written in place on a shared folder.

The driver plans, checks and stages as it does for itself; each task plans the same recipe from the same headers,
fills the one file that it was given by position, and returns the digests of its tensors. The driver journals those
and publishes, so a worker may die at any moment: its file is written again, with the same bytes, on another.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eutectic.errors import EutecticError, MissingDependencyError, OutputError, ResourceError, SourceError
from eutectic.recipes.executors.local import Shared, Stream, find_shared_here
from eutectic.recipes.plan import Options, Plan, make_plan
from eutectic.recipes.provenance import fingerprint
from eutectic.weights.shard_writer import ShardWriter
from eutectic.weights.sink import Sink, fingerprint_of

if TYPE_CHECKING:
    from eutectic.recipes.executors import Progress

__all__ = ["Cluster"]

PATIENCE = 10  # seconds that a cluster has to answer
RETRIES = 5  # times that a task is begun again after its worker died
HELP = "every node needs the same version of Eutectic and sees the sources and OUT under the same paths"


@dataclass(frozen=True)
class _Order:
    """What every task of a run is told: a recipe as JSON with absolute paths, and what its plan must come to."""

    recipe: str
    options: Options
    fingerprint: str


class Cluster:
    """One execution of a plan on a Ray cluster. Connecting and asking every node come first, before any output.

    Raises:
        MissingDependencyError: ray is not installed. ResourceError: no cluster at that address, or none of its nodes
            has the processors or the memory for a task. SourceError: a node sees other sources, or other code.
    """

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self.plan, self.progress = plan, progress
        self.ray = _import_ray()
        self._connected = _connect(self.ray, plan.options.address)
        try:
            self.nodes = [node for node in self.ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
            threads = plan.options.threads or int(min((n["Resources"]["CPU"] for n in self.nodes), default=1)) or 1
            options = replace(plan.options, threads=threads, executor="local", address=None)
            self.demand = self._demand(threads, make_plan(plan.recipe, options).peak)
            self.order = _Order(json.dumps(plan.expanded), options, fingerprint(plan))
            self._ask_nodes()
        except BaseException:
            self.close()
            raise

    def _demand(self, threads: int, memory: int) -> dict[str, Any]:
        """The resources of one task, which some node must have; Ray would wait for such a node for ever."""
        most = max((node["Resources"] for node in self.nodes), key=lambda found: found["CPU"], default={"CPU": 0})
        if threads > most["CPU"] or memory > most.get("memory", 0):
            raise ResourceError(
                f"a task needs {threads} processors and {memory:,} bytes of memory; the largest of {len(self.nodes)} "
                f"nodes offers {most['CPU']:g} and {int(most.get('memory', 0)):,}. Lower --threads or --max-memory"
            )
        return {"num_cpus": threads, "memory": memory}

    def _ask_nodes(self) -> None:
        """Let every node plan the recipe: the same paths, the same headers, the same code."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ask = self.ray.remote(num_cpus=0, max_retries=1)(_check_plan)
        asked = [
            ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                self.order
            )
            for node in self.nodes
        ]
        for node, answer in zip(self.nodes, asked, strict=True):
            with self._named(f"node {node['NodeManagerAddress']}"):
                self.ray.get(answer)

    def run(self, sink: Sink) -> None:
        """Merge and write every tensor that the sink does not hold yet."""
        steps = {step.name: step for step in self.plan.steps}
        shared = self.ray.put(find_shared_here(self.plan)) if self.plan.wide else None
        task = self.ray.remote(max_retries=RETRIES, **self.demand)(_merge_shard)
        pending = {}
        for at, shard in enumerate(sink.shards):
            todo = [name for name in shard.offsets if name not in sink.digests]
            if todo:
                pending[task.remote(self.order, str(sink.staging), at, todo, shared)] = shard
        try:
            while pending:
                (ready,), _ = self.ray.wait(list(pending), num_returns=1)
                shard = pending.pop(ready)
                with self._named(shard.name):
                    digests = self.ray.get(ready)
                for name, digest in digests.items():
                    sink.complete(name, digest)
                    step = steps[name]
                    self.progress(step.nbytes + self.plan.input_bytes(step))
        finally:
            for begun in pending:  # after a failure, or an interruption: nobody writes into what is left
                self.ray.cancel(begun, force=True)

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        """Errors of a task, as errors of the merge that say where they arose."""
        errors = self.ray.exceptions
        try:
            yield
        except errors.RayTaskError as error:
            if isinstance(error.cause, EutecticError):
                raise type(error.cause)(f"{what}: {error.cause}") from None
            raise
        except errors.RayError as error:
            why = str(error).strip().partition("\n")[0]
            raise ResourceError(f"{what}: {why}; --resume continues when the cluster is well again") from None

    def close(self) -> None:
        """Leave the cluster; tasks that still run are stopped with it."""
        if self._connected:
            self.ray.shutdown()


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError:
        raise MissingDependencyError("--executor ray needs Ray: pip install 'eutectic[ray]'") from None


def _connect(ray: Any, address: str | None) -> bool:
    """Join a cluster, or start one on this machine where none is named or running; false if joined already."""
    if ray.is_initialized():
        return False
    if address is not None:
        _reach(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves this machine unasked
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error", include_dashboard=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ResourceError(f"no Ray cluster at {address or 'this machine'}: {error}") from None
    return True


def _reach(address: str) -> None:
    """Refuse an address where nobody listens: Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise ResourceError(
            f"{address!r} is no address of a Ray cluster; give HOST:PORT of its head, as in 10.0.0.1:6379"
        )
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise ResourceError(f"no Ray cluster at {address}: {error}. `ray start --head` starts one") from None


@functools.lru_cache(maxsize=1)
def _plan_of(order: _Order) -> Plan:
    """The plan of an order, made once per worker process."""
    from eutectic.recipes.merge import plan

    made = plan(json.loads(order.recipe), order.options)
    if fingerprint(made) != order.fingerprint:
        raise SourceError(f"it would merge other files, or by other code, than the driver; {HELP}")
    return made


def _check_plan(order: _Order) -> None:
    """A task: does this node see what the driver sees?"""
    try:
        _plan_of(order)
    except FileNotFoundError as error:
        raise SourceError(f"{error}; {HELP}") from None


def _merge_shard(order: _Order, staging: str, at: int, names: list[str], shared: Shared | None) -> dict[str, str]:
    """A task: merge the named tensors into one weight file that the driver has made; their digests by name."""
    made = _plan_of(order)
    wanted = set(names)
    steps = [step for step in made.steps if step.name in wanted]
    if not Path(staging).is_dir():
        raise OutputError(f"{staging} is not there on this node; {HELP}")
    if fingerprint_of(Path(staging)) != order.fingerprint:
        raise OutputError(f"{staging} belongs to another run by now")  # ours was given up, and its tasks outlived it
    writer = ShardWriter(Path(staging), made.shards[at], steps)
    try:
        Stream(made, shared=shared).run(writer, steps)
        if order.options.fsync:
            writer.flush()
    finally:
        writer.close()
    return writer.digests
