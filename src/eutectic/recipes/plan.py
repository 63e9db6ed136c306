"""`Plan`: what a merge will do, foretold from headers alone; itself a lazy `Checkpoint`.

Nothing here loads torch or reads a tensor's bytes. The memory that a plan promises is the memory that the executor
allocates: both come from `arena_bytes`, the tile and the number of threads chosen here.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eutectic.errors import MethodError, OutputError, ResourceError
from eutectic.ops.program import Program
from eutectic.recipes.compute import arena_bytes, twin
from eutectic.recipes.config_json import edited
from eutectic.recipes.cutting import Kind, cut, device_bytes
from eutectic.recipes.match import Account, Step, match_tensors
from eutectic.recipes.opened import Opened
from eutectic.recipes.options import DEFAULT_MEMORY, Options
from eutectic.recipes.rates import Rates
from eutectic.recipes.schema import Recipe
from eutectic.recipes.tree import Leaf, Tree, build_tree, expand
from eutectic.recipes.vocabulary import unify
from eutectic.weights.checkpoint import Checkpoint
from eutectic.weights.sink import Shard, split_into_shards, staging_of

if TYPE_CHECKING:
    from eutectic.recipes.planned import PlannedTensor

__all__ = ["DEFAULT_MEMORY", "Options", "Plan", "make_plan", "passes_of"]

PROCESS_BYTES = 225 << 20  # interpreter, numpy and kernels, measured on a first run, which compiles (else 170)
TORCH_BYTES = 450 << 20  # the same with torch loaded
STEP_BYTES = 4096  # bookkeeping per tensor of the result


class Plan(Checkpoint):
    """A recipe bound to opened sources: the steps, their bytes, the memory and the time they take.

    As a `Checkpoint` it maps each name of the result to a handle that merges when it is read.
    """

    def __init__(self, recipe: Recipe, tree: Tree, account: Account, options: Options) -> None:
        self.recipe, self.tree, self.options = recipe, tree, options
        self.steps, self.account = account.steps, account
        self._by_name = {step.name: step for step in self.steps}
        counts = Counter(step.kind for step in self.steps)
        examples = {step.kind: step for step in self.steps}
        self.kinds = [Kind(step, counts[kind], self.programs_of(step)) for kind, step in examples.items()]
        self._check_model_scope()
        held = sum(leaf.checkpoint.held_bytes for leaf in tree.sources)
        self.shape = cut(self.kinds, held, options)
        self._tensors_read: dict[str, PlannedTensor] = {}
        self._shared: Any = None
        self.lock = threading.RLock()
        config, dtype = tree.reference.checkpoint.config, tree.root.dtype
        edit = edited(config, None if dtype is None else dtype.torch, account.renumbered) if config else {}
        super().__init__({}, config=edit, components=_components(tree))

    def __getitem__(self, name: str) -> PlannedTensor:
        from eutectic.recipes.planned import PlannedTensor

        if name not in self._tensors_read:
            self._tensors_read[name] = PlannedTensor(self, self._by_name[name])
        return self._tensors_read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __repr__(self) -> str:
        return f"Plan({self.kind!r}, {len(self)} tensors, {self.nbytes} bytes)"

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the result."""
        return sum(kind.step.nbytes * kind.count for kind in self.kinds)

    @property
    def numel(self) -> int:
        """Elements of all tensors of the result."""
        return sum(kind.step.numel * kind.count for kind in self.kinds)

    def programs_of(self, step: Step) -> dict[int, Program]:
        """The fast twins that run for one tensor, by the index of their merge."""
        if step.action == "copy":
            return {}
        torch_only = self.options.torch_only or self.options.on_gpu
        found = {m.index: twin(m, step, torch_only=torch_only) for m in step.merges}
        return {index: program for index, program in found.items() if program is not None}

    def _check_model_scope(self) -> None:
        """A reduction over the whole model exists only in the kernels, and for one merge of all tensors."""

        def indices(kind: Kind) -> set[int]:
            return {merge.index if merge.instead is None else merge.instead for merge in kind.step.merges}

        for kind in self.kinds:
            for merge in kind.step.merges if kind.step.action == "merge" else ():
                if "model" not in (merge.parameters.get("scope"), merge.method.scope):
                    continue
                if any(merge.index == m.index and m.settings is not None for m in self.tree.merges):
                    raise MethodError(
                        f"{merge.method.name} over the whole model needs the same parameters for every tensor; give "
                        "single values instead of gradients and filters, or scope: tensor"
                    )
                if any(k.step.action == "merge" and merge.index not in indices(k) for k in self.kinds):
                    raise MethodError(
                        f"{merge.method.name} over the whole model needs whole models; slices and modules take "
                        "scope: tensor"
                    )
                if merge.index not in kind.programs:
                    raise MethodError(
                        f"{merge.method.name} over the whole model runs in the kernels only, and {kind.step.name} "
                        "cannot (float64 sources, --semantics-only, --device cuda, or a method without a fast twin); "
                        "use scope: tensor"
                    )

    # ------------------------------------------------------------------ memory

    @property
    def uses_torch(self) -> bool:
        """Whether any tensor runs in torch rather than in a kernel."""
        return any(k.step.action == "merge" and len(k.programs) < len(k.step.merges) for k in self.kinds)

    @property
    def device_peak(self) -> int:
        """Most bytes that a merge takes on a GPU; 0 where none merges."""
        return max((device_bytes(kind.step) for kind in self.kinds), default=0) if self.options.on_gpu else 0

    @cached_property
    def passes(self) -> int:
        """Most reductions that any tensor needs before it can be combined."""
        return max((passes_of(kind.programs) for kind in self.kinds), default=0)

    @property
    def peak(self) -> int:
        """Most resident bytes that the process will reach; what the CUDA runtime maps for itself comes on top."""
        process = TORCH_BYTES if self.uses_torch else PROCESS_BYTES
        return process + self.shape.buffers + STEP_BYTES * len(self.steps) * len(self.tree.leaves)

    # ------------------------------------------------------------------ bytes and time

    def over_model(self, step: Step, programs: Mapping[int, Program]) -> list[int]:
        """Indices of the merges of a tensor whose reductions run over the whole model."""
        return [
            merge.index
            for merge in step.merges
            if merge.parameters.get("scope") == "model"
            and merge.index in programs
            and programs[merge.index].most_passes
        ]

    @cached_property
    def wide(self) -> frozenset[int]:
        """Indices of the merges whose reductions run over the whole model, for any tensor."""
        return frozenset(index for kind in self.kinds for index in self.over_model(kind.step, kind.programs))

    def input_bytes(self, step: Step) -> int:
        """Bytes of a tensor's inputs, as its merges read them once."""
        if step.action == "copy":
            return step.nbytes
        return arena_bytes(step, step.numel) - step.nbytes

    @cached_property
    def bytes_read(self) -> int:
        """Bytes that the executor reads, every pass counted: all but the first find a tensor in the page cache."""
        total = 0
        for kind in self.kinds:
            once = kind.step.nbytes if kind.step.action == "copy" else self._leaf_bytes(kind.step)
            total += once * (1 + passes_of(kind.programs)) * kind.count
        return total

    def _leaf_bytes(self, step: Step) -> int:
        refs = [step.refs[n.index] for m in step.merges for n in m.inputs if isinstance(n, Leaf)]
        return sum(ref.lies_in.nbytes for ref in refs if ref is not None)

    @cached_property
    def shards(self) -> list[Shard]:
        """The weight files of the result: names, tensors, sizes."""
        return split_into_shards(self.steps, self.options.shard_bytes, self.components)

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
        if self.options.executor != "local" or self.options.on_gpu:
            return f"{self.options.device_kind if self.options.on_gpu else self.options.executor}:{names}"
        return f"torch:{names}" if self.uses_torch else names

    @cached_property
    def expanded(self) -> dict[str, Any]:
        """The recipe as plain data with absolute paths, nested recipe files written out."""
        return expand(self.recipe, self.tree.pinned)

    def shared(self, find: Callable[[], Any]) -> Any:
        """What reductions over the whole model find, looked for once."""
        with self.lock:
            if self._shared is None:
                self._shared = find()
            return self._shared

    # ------------------------------------------------------------------ words

    @property
    def notes(self) -> list[str]:
        """Where mergekit and the paper differ for the methods used, which meaning applies; weights without effect."""
        lines = [
            f"{merge.place}: the weight {merge.parameters['weight'][0]:g} of the only source has no effect, as weights "
            "are divided by their sum; normalize: false keeps it"
            for merge in self.tree.merges
            if merge.parameters.get("normalize") is True
            and len(merge.sources) == 1
            and merge.parameters.get("weight", [1])[0] != 1
        ]
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
        while not os.path.exists(parent):  # noqa: PTH110  (never raises)
            parent = parent.parent
        if not os.access(parent, os.W_OK):
            raise OutputError(f"{parent} cannot be written; choose another target or change its permissions")
        free = shutil.disk_usage(parent).free
        staging = staging_of(out.absolute())
        begun = os.path.isdir(staging)  # noqa: PTH112  (never raises)
        staged = sum(e.stat().st_blocks * 512 for e in staging.iterdir()) if begun else 0
        need = self.disk + (16 << 20) - staged
        if free < need:
            raise ResourceError(f"{parent} has {free:,} bytes free; the result needs {need:,}. Free some space first.")

    def to_json(self) -> dict[str, Any]:
        """The plan for programs; the keys are those of docs/plan.md."""
        seconds, origin = self.seconds()
        return {
            "method": self.tree.root.method.name,
            "sources": [leaf.label for leaf in self.tree.sources],
            "reference": self.tree.reference.label,
            "tensors": len(self.steps),
            "parameters": self.numel,
            "accounts": list(self.account.lines),
            "bytes_read": self.bytes_read,
            "bytes_written": self.nbytes,
            "disk": self.disk,
            "shards": [{"name": shard.name, "bytes": shard.nbytes} for shard in self.shards],
            "threads": self.shape.threads,
            "tile_elements": self.shape.tile,
            "passes": 1 + self.passes,
            "memory": {
                "budget": self.options.max_memory,
                "buffers": self.shape.buffers,
                "peak": self.peak,
                "device": self.device_peak,
            },
            "seconds": round(seconds, 3),
            "rate": origin,
            "torch": self.uses_torch,
            "device": self.options.device,
            "executor": self.options.executor,
            "notes": self.notes,
            "licence": self.licence_warning,
        }


def _components(tree: Tree) -> dict[str, str]:
    """Folder and file name of each model of the result: those of the reference come first."""
    own = tree.reference.checkpoint.components
    rest = [] if "" in own else [leaf.checkpoint.components for leaf in tree.sources]
    return own | {folder: stem for found in rest for folder, stem in found.items() if folder and folder not in own}


def passes_of(programs: Mapping[int, Program]) -> int:
    """Reductions that a tensor with these programs may need."""
    return sum(program.most_passes for program in programs.values())


def make_plan(recipe: Recipe, options: Options | None = None, opened: Opened | None = None) -> Plan:
    """Open every source, account for every tensor, and cut the work to the budget.

    Raises:
        RecipeError, SourceError: the recipe or its sources do not fit together.
        ResourceError: the budget lies below the floor; the message names the floor.
    """
    options = options or Options()
    tree = build_tree(recipe, seed=options.seed, opened=opened)
    unified = unify(tree, recipe)
    account = match_tensors(tree, allow_mismatch=options.allow_mismatch, unified=unified)
    return Plan(recipe, tree, account, options)
