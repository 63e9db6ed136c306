"""Executors: who runs a plan. All merge the same plan into the same sink, tensor by tensor.

`local` streams tiles through the kernels on this machine's threads, `gpu` sends spans to a torch device, `ray` has a
cluster write the weight files. Making one checks everything that it needs, before any output exists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from eutectic.recipes.plan import Plan
    from eutectic.recipes.profile import Profile
    from eutectic.weights.sink import Sink

__all__ = ["Executor", "Progress", "make_executor"]

Progress = Callable[[int], None]
"""Is told the bytes (read and written) that were moved since the last call."""


class Executor(Protocol):
    """One execution of one plan."""

    def run(self, sink: Sink, /) -> None:
        """Merge and write every tensor that the sink does not hold yet."""

    def close(self) -> None:
        """Let go of what was taken hold of: a cluster, a device."""


def make_executor(plan: Plan, progress: Progress, profile: Profile | None) -> Executor:
    """The executor that a plan's options ask for.

    Raises:
        ResourceError, MissingDependencyError, SourceError: it cannot run here; nothing has been written.
    """
    if plan.options.executor == "ray":
        from eutectic.recipes.executors.ray import Cluster

        return Cluster(plan, progress)
    if plan.options.on_gpu:
        from eutectic.recipes.executors.gpu import GpuStream

        return GpuStream(plan, progress, profile)
    from eutectic.recipes.executors.local import Stream

    return Stream(plan, progress, profile)
