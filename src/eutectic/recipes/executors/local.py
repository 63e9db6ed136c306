"""The executor: read ahead, merge tile by tile on a few threads, hash, write. Memory is what the plan said."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from eutectic.ops.program import BLOCK, Program, Reduction, Tile
from eutectic.recipes.compute import Job, Workspace
from eutectic.recipes.cutting import most_jobs, tile_of
from eutectic.recipes.executors import Progress
from eutectic.recipes.executors.schedule import Chain, Stage, run_chains
from eutectic.recipes.match import Step
from eutectic.recipes.plan import Plan
from eutectic.recipes.profile import Profile
from eutectic.recipes.semantics import one_thread
from eutectic.weights.digest import PIECE, combine_pieces, hash_pieces, hash_range
from eutectic.weights.readahead import ReadAhead

__all__ = ["Shared", "Stream", "Target", "find_shared_here", "rehearse", "solve_one"]

Shared = tuple[dict[int, object], dict[str, int]]
"""What reductions over the whole model find, by merge, and each tensor's first block in them."""


class Target(Protocol):
    """Where a merge goes: a `Sink`, or a `ShardWriter` of one of its files."""

    digests: dict[str, str]

    def write(self, name: str, start: int, data: memoryview) -> None: ...
    def complete(self, name: str, digest: str) -> None: ...
    def runs(self, name: str) -> Iterator[memoryview]: ...


def rehearse(program: Program, inputs: int) -> None:
    """Run a program on eight elements or a row: its kernels are compiled (or loaded) before the work starts."""
    n = program.row or 8
    values = np.tile(np.arange(n, dtype=np.float32), (inputs, 1)) * np.arange(inputs, dtype=np.float32)[:, None]
    codes, bad = np.full(inputs, 2, dtype=np.int64), np.zeros(inputs, dtype=np.int64)
    tile = Tile(values.view(np.uint8), codes, n, 0, 0, bad)
    for blocks in (1, 2):  # small and large tensors may take different kernels
        found = program.begin(n, blocks)
        while (reduction := program.wants(found)) is not None:
            lead = () if reduction.fold == "sum" else (blocks,)
            total = np.zeros((*lead, *reduction.shape), dtype=reduction.dtype)
            program.reduce(reduction, tile, found, total if reduction.fold == "sum" else total[:1])
            found = program.solve(reduction, total, found)
    program.combine(tile, found, np.empty(4 * n, dtype=np.uint8), 2)


@dataclass(eq=False)
class _Totals:
    """What one pass adds up: a shared array of block rows, or one integer total per worker."""

    reduction: Reduction
    blocks: int
    rows: np.ndarray | None = None
    sums: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.reduction.fold == "blocks":
            self.rows = np.zeros((self.blocks, *self.reduction.shape), dtype=self.reduction.dtype)

    def part(self, worker: Workspace, block: int, count: int) -> np.ndarray:
        if self.rows is not None:
            return self.rows[block : block + count]
        if id(worker) not in self.sums:
            self.sums[id(worker)] = np.zeros(self.reduction.shape, dtype=self.reduction.dtype)
        return self.sums[id(worker)]

    def total(self) -> np.ndarray:
        if self.rows is not None:
            return self.rows
        total = np.zeros(self.reduction.shape, dtype=self.reduction.dtype)
        for part in self.sums.values():  # integers: the order does not matter
            total += part
        return total


def _tiles(step: Step, tile: int) -> Iterator[tuple[int, int]]:
    for first in range(0, step.numel, max(1, tile)):
        yield first, min(tile, step.numel - first)


def _units(step: Step, program: Program) -> int:
    return -(-step.numel // program.unit)


def _job(plan: Plan, step: Step, shared: dict[int, object], block: int = 0) -> Job:
    return Job(step, plan.programs_of(step), dict(shared), dict.fromkeys(plan.wide, block))


def _solve_tensor(plan: Plan, job: Job, indices: frozenset[int] | None = None) -> Chain:
    """The passes of one tensor's own reductions (of the merges `indices`), inner ones first; fills `job.found`."""
    step = job.step
    tile = tile_of(step, plan.shape.tile, job.programs)
    for merge in step.merges:
        program = job.programs.get(merge.index)
        if program is None or merge.index in job.found or not (indices is None or merge.index in indices):
            continue
        found = program.begin(step.numel, _units(step, program))
        while (reduction := program.wants(found)) is not None:
            totals = _Totals(reduction, _units(step, program))

            def reduce(at: tuple[int, int], worker: Workspace, m=merge, p=program, r=reduction, f=found, t=totals):
                read = worker.inputs(job, m, *at)
                p.reduce(r, read, f, t.part(worker, at[0] // p.unit, -(-at[1] // p.unit)))
                worker.check(job, m, read)

            yield Stage(_tiles(step, tile), reduce)
            found = program.solve(reduction, totals.total(), found)
        job.found[merge.index] = found


def find_shared(plan: Plan, run: Callable[[Chain], None]) -> Shared:
    """Run the reductions over the whole model."""
    steps = [step for step in plan.steps if step.action == "merge"]
    shared: dict[int, object] = {}
    first_block: dict[str, int] = {}
    blocks = 0
    for step in steps:
        first_block[step.name] = blocks
        blocks += -(-step.numel // BLOCK)
    for at, merge in enumerate(plan.tree.merges):
        if merge.index not in plan.wide:
            continue
        own = [step for step in steps if any(m.index == merge.index for m in step.merges)]
        jobs = [_job(plan, step, shared, first_block[step.name]) for step in own]
        inner = frozenset(m.index for m in plan.tree.merges[:at] if m.index not in shared)
        for job in jobs:
            run(_solve_tensor(plan, job, inner))
        run(_solve_model(plan, merge.index, jobs, blocks, shared))
    return shared, first_block


def _solve_model(plan: Plan, index: int, jobs: list[Job], blocks: int, shared: dict[int, object]) -> Chain:
    program = jobs[0].programs[index]
    found = program.begin(sum(job.step.numel for job in jobs), blocks)
    while (reduction := program.wants(found)) is not None:
        totals = _Totals(reduction, blocks)

        def reduce(at: tuple[Job, int, int], worker: Workspace, r=reduction, f=found, t=totals) -> None:
            job, first, n = at
            merge = next(m for m in job.step.merges if m.index == index)
            read = worker.inputs(job, merge, first, n)
            program.reduce(r, read, f, t.part(worker, job.blocks[index] + first // BLOCK, -(-n // BLOCK)))
            worker.check(job, merge, read)

        everywhere = (
            (job, first, n)
            for job in jobs
            for first, n in _tiles(job.step, tile_of(job.step, plan.shape.tile, job.programs))
        )
        yield Stage(everywhere, reduce)
        found = program.solve(reduction, totals.total(), found)
    shared[index] = found


def run_here(chain: Chain, worker: Workspace) -> None:
    """Run one chain on this thread."""
    for stage in chain:
        for tile in stage.tiles:
            stage.run(tile, worker)


def solve_one(plan: Plan, step: Step, worker: Workspace) -> Job:
    """A job whose reductions are done, on this thread: what reading one planned tensor needs."""
    shared, first_block = plan.shared(lambda: find_shared(plan, lambda chain: run_here(chain, worker)))
    job = _job(plan, step, shared, first_block.get(step.name, 0) if shared else 0)
    run_here(_solve_tensor(plan, job), worker)
    return job


def find_shared_here(plan: Plan) -> Shared:
    """Run the reductions over the whole model on this machine's threads."""
    workers = [Workspace(allow_nonfinite=plan.options.allow_nonfinite) for _ in range(plan.shape.threads)]
    return find_shared(plan, lambda chain: run_chains([chain], workers, 1))


class Stream:
    """One execution of a plan on this machine. `progress` is told the bytes that each tile moved, `profile` the time.

    `shared` is what reductions over the whole model found, where that is known already.
    """

    def __init__(
        self,
        plan: Plan,
        progress: Progress | None = None,
        profile: Profile | None = None,
        shared: Shared | None = None,
    ) -> None:
        self.plan, self.shared = plan, shared
        self.progress = progress or (lambda nbytes: None)
        self.workers = [
            Workspace(allow_nonfinite=plan.options.allow_nonfinite, clock=profile.thread() if profile else None)
            for _ in range(plan.shape.threads)
        ]

    def run(self, sink: Target, steps: Sequence[Step] | None = None) -> None:
        """Merge and write every tensor (of `steps`, or of the plan) that the sink does not hold yet."""
        plan, self.sink = self.plan, sink
        todo = [step for step in (plan.steps if steps is None else steps) if step.name not in sink.digests]
        with (
            one_thread(plan.uses_torch),
            ReadAhead([ref for step in todo for ref in step.refs if ref is not None]) as self.ahead,
        ):
            if self.shared is None:
                self.shared = (
                    find_shared(plan, lambda chain: run_chains([chain], self.workers, 1)) if todo else ({}, {})
                )
            found, first_block = self.shared
            tensors = (self._tensor(step, found, first_block.get(step.name, 0)) for step in todo)
            run_chains(tensors, self.workers, most_jobs(plan.kinds, len(self.workers)))

    def close(self) -> None:
        """Nothing is held between runs."""

    def _tensor(self, step: Step, shared: dict[int, object], block: int) -> Chain:
        pieces: dict[int, list[bytes]] = {}
        job = _job(self.plan, step, shared, block)
        tile = tile_of(step, self.plan.shape.tile, job.programs)
        whole = tile * step.dtype.size % PIECE == 0 or tile >= step.numel
        if step.action == "copy":
            yield Stage(_tiles(step, tile), lambda at, worker: self._copy(step, at, worker, pieces))
        else:
            yield from _solve_tensor(self.plan, job)
            yield Stage(_tiles(step, tile), lambda at, worker: self._merge(job, at, worker, pieces if whole else None))
        if whole:
            digest = combine_pieces(piece for first in sorted(pieces) for piece in pieces[first])
        else:
            digest = hash_range(self.sink.runs(step.name))
        self.sink.complete(step.name, digest)
        self.ahead.passed([ref for ref in step.refs if ref is not None])

    def _copy(self, step: Step, at: tuple[int, int], worker: Workspace, pieces: dict[int, list[bytes]]) -> None:
        first, n = at
        out = worker.output(n * step.dtype.size)
        worker.clock.enter("read")
        step.origin.read_into(out.data, first, first + n)
        self._write(step, first, out, worker, pieces)
        self.progress(2 * out.nbytes)

    def _merge(self, job: Job, at: tuple[int, int], worker: Workspace, pieces: dict[int, list[bytes]] | None) -> None:
        root, step = job.step.root, job.step
        first, n = at
        tile = worker.inputs(job, root, first, n)
        out = worker.output(n * step.dtype.size)
        worker.combine(job, root, tile, out, step.dtype)
        self._write(step, first, out, worker, pieces)
        self.progress(out.nbytes + self.plan.input_bytes(step) * n // step.numel)

    def _write(
        self, step: Step, first: int, out: np.ndarray, worker: Workspace, pieces: dict[int, list[bytes]] | None
    ) -> None:
        view = out.data
        if pieces is not None:
            worker.clock.enter("hash")
            pieces[first] = hash_pieces(view)
        worker.clock.enter("write")
        self.sink.write(step.name, first * step.dtype.size, view)
