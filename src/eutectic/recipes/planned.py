"""A tensor of a planned recipe: merged when it is read, and never written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from eutectic.recipes.compute import Workspace
from eutectic.recipes.cutting import tile_of
from eutectic.recipes.match import Step
from eutectic.recipes.semantics import one_thread
from eutectic.weights.tensor_ref import TensorRef

if TYPE_CHECKING:
    from eutectic.recipes.compute import Job
    from eutectic.recipes.plan import Plan

__all__ = ["PlannedTensor"]


class PlannedTensor(TensorRef):
    """One tensor of a plan. What its reductions find is kept after the first read; its values are not."""

    def __init__(self, plan: Plan, step: Step) -> None:
        self.name, self.dtype, self.shape = step.name, step.dtype, step.shape
        self.plan, self.step = plan, step
        self._job: Job | None = None

    def read_into(self, buffer: memoryview, start: int, stop: int) -> None:
        if self.step.action == "copy":
            self.step.origin.read_into(buffer, start, stop)
            return
        with one_thread(self.plan.uses_torch):  # the bits of a merge that is written
            self._merge_into(buffer, start, stop)

    def _merge_into(self, buffer: memoryview, start: int, stop: int) -> None:
        worker = Workspace(allow_nonfinite=self.plan.options.allow_nonfinite, device=self.plan.options.device)
        job = self._solved(worker)
        size = self.dtype.size
        tile = tile_of(self.step, self.plan.shape.tile, job.programs)
        for first in range(start // tile * tile, stop, tile):
            n = min(tile, self.step.numel - first)
            out = np.empty(n * size, dtype=np.uint8)
            worker.combine(job, job.step.root, worker.inputs(job, job.step.root, first, n), out, self.dtype)
            low, high = max(first, start), min(first + n, stop)
            buffer[(low - start) * size : (high - start) * size] = out.data[
                (low - first) * size : (high - first) * size
            ]

    def _solved(self, worker: Workspace) -> Job:
        from eutectic.recipes.executors.local import solve_one

        with self.plan.lock:
            if self._job is None:
                self._job = solve_one(self.plan, self.step, worker)
            return self._job
