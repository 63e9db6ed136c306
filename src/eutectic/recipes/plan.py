"""`Plan`: what a merge will do, foretold from headers alone; itself a lazy `Checkpoint`.

Nothing here loads torch or reads a tensor's bytes. The memory that a plan promises is the memory that the executor
allocates: both come from `arena_bytes`, the tile and the number of threads chosen here.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eutectic.errors import OutputError, ResourceError
from eutectic.ops.program import BLOCK
from eutectic.recipes.compute import arena_bytes, twin
from eutectic.recipes.match import Account, Step, match_tensors
from eutectic.recipes.rates import Rates
from eutectic.recipes.schema import Recipe
from eutectic.recipes.tree import Tree, build_tree, expand
from eutectic.weights.checkpoint import Checkpoint
from eutectic.weights.sink import DEFAULT_SHARD_BYTES, Shard, split_into_shards

__all__ = ["DEFAULT_MEMORY", "Options", "Plan", "make_plan"]

DEFAULT_MEMORY = 256 << 20
MOST_TILE = 4 * BLOCK
JOBS_AHEAD = 2  # tensors that may be under way at once
PROCESS_BYTES = 175 << 20  # interpreter, numpy and the compiled kernels, measured
TORCH_BYTES = 450 << 20  # the same with torch loaded
STEP_BYTES = 4096  # bookkeeping per tensor of the result


@dataclass(frozen=True)
class Options:
    """How to run a merge; none of these but `seed`, `allow_mismatch` and `shard_bytes` changes a byte of it."""

    max_memory: int = DEFAULT_MEMORY
    threads: int | None = None
    seed: int | None = None
    shard_bytes: int = DEFAULT_SHARD_BYTES
    allow_mismatch: bool = False
    allow_nonfinite: bool = False
    torch_only: bool = False
    fsync: bool = True
    hash_sources: bool = False


@dataclass(frozen=True)
class Shape:
    """How tensors are cut: threads, elements per tile, bytes of buffers, and bytes kept between passes."""

    threads: int
    tile: int
    buffers: int
    cache: int


class Plan(Checkpoint):
    """A recipe bound to opened sources: the steps, their bytes, the memory and the time they take.

    As a `Checkpoint` it maps each name of the result to a handle that merges when it is read.
    """

    def __init__(self, recipe: Recipe, tree: Tree, account: Account, options: Options) -> None:
        from eutectic.recipes.planned import PlannedTensor

        self.recipe, self.tree, self.options = recipe, tree, options
        self.steps, self.account = account.steps, account
        self.programs = {
            step.name: {m.index: p for m in tree.merges if (p := twin(m, step, torch_only=options.torch_only))}
            for step in self.steps
            if step.action == "merge"
        }
        self.shape = self._cut()
        self._shared: Any = None
        self._shared_lock = threading.Lock()
        super().__init__(
            {step.name: PlannedTensor(self, step) for step in self.steps},
            config=tree.reference.checkpoint.config,
        )

    # ------------------------------------------------------------------ memory

    @property
    def uses_torch(self) -> bool:
        """Whether any tensor runs in torch rather than in a kernel."""
        return any(len(found) < len(self.tree.merges) for found in self.programs.values())

    def tile_of(self, step: Step, most: int) -> int:
        """Elements per tile of one tensor: whole blocks, or whole rows or the tensor where torch needs them."""
        tile = min(most, -(-step.numel // BLOCK) * BLOCK)
        programs = self.programs.get(step.name)
        if programs is None:
            return tile
        scopes = {merge.method.scope for merge in self.tree.merges if merge.index not in programs}
        if scopes & {"tensor", "model"}:
            return step.numel
        if "row" in scopes and step.shape:
            row = step.numel // max(1, step.shape[0])
            return min(step.numel, max(row, tile // max(1, row) * row))
        return tile

    def thread_bytes(self, step: Step, most: int) -> int:
        """Bytes that one thread holds for a tile of a tensor, torch's float32 copies and temporaries included."""
        elements = self.tile_of(step, most)
        programs = self.programs.get(step.name, {})
        total = arena_bytes(self.tree, step, elements)
        if step.action == "merge":
            for merge in self.tree.merges:
                if merge.index not in programs:
                    total += elements * 4 * 3 * (len(merge.inputs) + 2)
        return total

    def scratch_bytes(self) -> int:
        """Bytes of histograms that each thread fills for each tensor under way."""
        sizes = {sum(p.scratch_bytes for p in programs.values()) for programs in self.programs.values()}
        return JOBS_AHEAD * max(sizes, default=0)

    def _buffers(self, threads: int, tile: int) -> int:
        largest = max((self.thread_bytes(step, tile) for step in self.steps), default=0)
        return threads * (largest + self.scratch_bytes())

    def _cut(self) -> Shape:
        budget = self.options.max_memory
        floor = self._buffers(1, BLOCK)
        if budget < floor:
            largest = max(self.steps, key=lambda step: self.thread_bytes(step, BLOCK))
            raise ResourceError(
                f"a budget of {budget:,} bytes is below the floor of {floor:,} bytes that this recipe needs "
                f"(for {largest.name} {list(largest.shape)}); raise --max-memory to at least {-(-floor >> 20)}MiB"
            )
        asked = self.options.threads or os.cpu_count() or 1
        for threads in range(asked, 0, -1):
            for tile in (MOST_TILE, MOST_TILE // 2, BLOCK):
                buffers = self._buffers(threads, tile)
                if buffers <= budget:
                    cache = min(budget - buffers, budget * 3 // 8) if self.passes() else 0
                    return Shape(threads, tile, buffers, cache)
        raise AssertionError("one thread and one block fit the floor")

    def passes(self) -> int:
        """Most reductions that any tensor needs before it can be combined."""
        return max((self.passes_of(step) for step in self.steps), default=0)

    def passes_of(self, step: Step) -> int:
        """Reductions that one tensor may need."""
        return sum(program.most_passes for program in self.programs.get(step.name, {}).values())

    @property
    def peak(self) -> int:
        """Most resident bytes that the process will reach."""
        process = TORCH_BYTES if self.uses_torch else PROCESS_BYTES
        return process + self.shape.buffers + self.shape.cache + STEP_BYTES * len(self.steps) * len(self.tree.leaves)

    # ------------------------------------------------------------------ bytes and time

    def kept(self, step: Step) -> bool:
        """Whether a tensor's inputs stay in memory between its passes."""
        if len(self.tree.merges) > 1 or self.over_model(step):
            return False
        return self.input_bytes(step) * JOBS_AHEAD <= self.shape.cache

    def over_model(self, step: Step) -> list[int]:
        """Indices of the merges whose reductions run over the whole model."""
        programs = self.programs.get(step.name, {})
        return [
            merge.index
            for merge in self.tree.merges
            if merge.index in programs
            and merge.parameters.get("scope") == "model"
            and programs[merge.index].most_passes
        ]

    def input_bytes(self, step: Step) -> int:
        """Bytes of a tensor's inputs, as its merges read them once."""
        if step.action == "copy":
            return step.nbytes
        return arena_bytes(self.tree, step, step.numel) - step.nbytes

    @property
    def bytes_read(self) -> int:
        """Bytes that the executor reads from files, every pass counted that does not find them in memory."""
        total = 0
        for step in self.steps:
            once = step.nbytes if step.action == "copy" else self._leaf_bytes(step)
            total += once * (1 if self.kept(step) else 1 + self.passes_of(step))
        return total

    def _leaf_bytes(self, step: Step) -> int:
        refs = [step.refs[n.index] for m in self.tree.merges for n in m.inputs if not hasattr(n, "inputs")]
        return sum(ref.nbytes for ref in refs if ref is not None)

    @property
    def shards(self) -> list[Shard]:
        """The weight files of the result: names, tensors, sizes."""
        return split_into_shards(self.steps, self.options.shard_bytes)

    @property
    def disk(self) -> int:
        """Bytes that the finished weight files take."""
        return sum(shard.nbytes for shard in self.shards)

    def seconds(self, rates: Rates | None = None) -> tuple[float, str]:
        """Expected wall time, and where the rate comes from."""
        rate, origin = (rates or Rates.load()).of(self.kind, self.shape.threads)
        return (self.bytes_read + self.nbytes) / rate, origin

    @property
    def kind(self) -> str:
        """What the rate is measured for: the methods involved, inner ones first."""
        names = "+".join(dict.fromkeys(merge.method.name for merge in self.tree.merges))
        return f"torch:{names}" if self.uses_torch else names

    @property
    def expanded(self) -> dict[str, Any]:
        """The recipe as plain data with absolute paths, nested recipe files written out."""
        return expand(self.recipe)

    def shared(self, find: Callable[[], Any]) -> Any:
        """What reductions over the whole model find, looked for once."""
        with self._shared_lock:
            if self._shared is None:
                self._shared = find()
            return self._shared

    # ------------------------------------------------------------------ words

    @property
    def notes(self) -> list[str]:
        """Where mergekit and the paper differ for the methods used, and which meaning applies."""
        lines = []
        for merge in {m.method.name: m for m in self.tree.merges}.values():
            for line in merge.method.departures:
                lines.append(f"{merge.method.name} (semantics: {merge.semantics}): {line}")
        return lines

    @property
    def licence_warning(self) -> str | None:
        """A sentence where the sources' licences are unknown or differ."""
        from eutectic.recipes.provenance import licence_warning, parents_of

        return licence_warning(parents_of(self))

    def check_room(self, out: Path) -> None:
        """Refuse a target whose file system has too little room or cannot be written."""
        parent = out.absolute().parent
        while not parent.exists():
            parent = parent.parent
        if not os.access(parent, os.W_OK):
            raise OutputError(f"{parent} cannot be written; choose another target or change its permissions")
        free = shutil.disk_usage(parent).free
        need = self.disk + (16 << 20)
        if free < need:
            raise ResourceError(f"{parent} has {free:,} bytes free; the result needs {need:,}. Free some space first.")

    def to_json(self) -> dict[str, Any]:
        """The plan for programs; the keys are those of docs/plan.md."""
        seconds, origin = self.seconds()
        return {
            "method": self.tree.root.method.name,
            "sources": [leaf.label for leaf in self.tree.leaves],
            "tensors": len(self.steps),
            "parameters": self.numel,
            "accounts": list(self.account.lines),
            "bytes_read": self.bytes_read,
            "bytes_written": self.nbytes,
            "disk": self.disk,
            "shards": [{"name": shard.name, "bytes": shard.nbytes} for shard in self.shards],
            "threads": self.shape.threads,
            "tile_elements": self.shape.tile,
            "passes": 1 + self.passes(),
            "memory": {
                "budget": self.options.max_memory,
                "buffers": self.shape.buffers + self.shape.cache,
                "peak": self.peak,
            },
            "seconds": round(seconds, 3),
            "rate": origin,
            "torch": self.uses_torch,
            "notes": self.notes,
            "licence": self.licence_warning,
        }


def make_plan(recipe: Recipe, options: Options | None = None) -> Plan:
    """Open every source, account for every tensor, and cut the work to the budget.

    Raises:
        RecipeError, SourceError: the recipe or its sources do not fit together.
        ResourceError: the budget lies below the floor; the message names the floor.
    """
    options = options or Options()
    tree = build_tree(recipe, seed=options.seed)
    account = match_tensors(tree, allow_mismatch=options.allow_mismatch)
    return Plan(recipe, tree, account, options)
