"""The arithmetic of one tile: read the leaves, run the inner merges, combine. One `Workspace` per thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from eutectic.errors import MethodError, NonFiniteError
from eutectic.methods.method import Setting
from eutectic.ops.program import Program, Tile
from eutectic.recipes.match import Step
from eutectic.recipes.profile import Clock
from eutectic.recipes.semantics import check_inputs, merge_in_torch, nonfinite
from eutectic.recipes.tree import Leaf, Merge, Node
from eutectic.weights.codec import widen
from eutectic.weights.dtypes import BY_NAME, DType

__all__ = ["Job", "Workspace", "arena_bytes", "check_range", "row_dtype", "setting_of", "torch_bytes", "twin"]

F32, F64 = BY_NAME["F32"], BY_NAME["F64"]
LARGEST_FINITE = {BY_NAME["F16"].code: 65504.0, BY_NAME["F8_E4M3"].code: 448.0, BY_NAME["F8_E5M2"].code: 57344.0}


def twin(merge: Merge, step: Step, *, torch_only: bool = False) -> Program | None:
    """The fast twin of one merge for one tensor; None where torch runs it (no twin, or float64 beyond it)."""
    if merge.method.lower is None:
        return None
    try:
        program = merge.method.lower(setting_of(merge, step))
    except MethodError as error:
        raise MethodError(f"{merge.place}: {error} (found for {step.name})") from None
    if program is None:
        return None
    wide = any(row_dtype(node, step) is F64 for node in merge.inputs)
    return None if torch_only or (wide and not program.float64) else program


def setting_of(merge: Merge, step: Step) -> Setting:
    """What a method may know about one tensor before it reads it."""
    return Setting(merge.parameters, len(merge.sources), step.name, merge.seed, step.shape, merge.base is not None)


def torch_bytes(merge: Merge, step: Step, elements: int) -> int:
    """Bytes of torch's copies and temporaries while one merge of `elements` of a tensor runs."""
    usual = elements * 4 * 3 * (len(merge.inputs) + 2)
    usual += sum(2 * ref.nbytes for leaf in merge.statistics if (ref := step.refs[leaf.index]) is not None)
    if merge.method.work_bytes is None or elements < step.numel:
        return usual
    wide = sum(8 if row_dtype(node, step) is F64 else 4 for node in merge.inputs)
    side = sum(ref.nbytes for leaf in merge.statistics if (ref := step.refs[leaf.index]) is not None)
    return max(usual, elements * wide + side + merge.method.work_bytes(setting_of(merge, step)))


def row_dtype(node: Node, step: Step) -> DType:
    """The type in which a node's values reach its parent: as stored, or float32 (float64 above float64)."""
    if isinstance(node, Leaf):
        ref = step.refs[node.index]
        assert ref is not None
        return ref.dtype
    assert isinstance(node, Merge)  # a bound merge holds no stack
    if node.dtype is not None:
        return node.dtype
    return F64 if any(row_dtype(child, step) is F64 for child in node.inputs) else F32


def arena_bytes(step: Step, elements: int) -> int:
    """Bytes of one thread's buffers for a tile of `elements` of one tensor."""
    if step.action == "copy":
        return elements * step.dtype.size
    rows = sum(max(row_dtype(c, step).size for c in merge.inputs) * len(merge.inputs) for merge in step.merges)
    return elements * (rows + step.dtype.size)


@dataclass(eq=False)
class Job:
    """One tensor on its way: its programs, what their passes found, and the tiles kept for the next pass.

    `found` and `programs` are keyed by the merge's index; `blocks` is the tensor's first block in a
    reduction that runs over the whole model.
    """

    step: Step
    programs: dict[int, Program]
    found: dict[int, Any]
    blocks: dict[int, int]

    def name_nonfinite(self, merge: Merge, tile: Tile) -> None:
        """Raise for the first non-finite input of a tile, naming source, tensor and position."""
        for at, node in enumerate(merge.inputs):
            if tile.bad[at]:
                dtype = row_dtype(node, self.step)
                values = widen(tile.rows[at][: tile.n * dtype.size], dtype.name)
                place = int(np.flatnonzero(~np.isfinite(values.astype(np.float64)))[0])
                raise nonfinite(self.step, node, values[place], tile.first + place)


def check_range(step: Step, first: int, out: np.ndarray, dtype: DType) -> None:
    """Refuse results (bytes of `dtype`, from element `first`) that a narrow type turned into infinity or NaN."""
    if dtype.code not in LARGEST_FINITE:
        return
    lost = ~np.isfinite(widen(out, dtype.name))
    if lost.any():
        at = np.unravel_index(first + int(lost.argmax()), step.shape or (1,))
        raise NonFiniteError(
            f"{step.name!r} at {[int(i) for i in at]}: the result does not fit {dtype}, whose largest "
            f"number is {LARGEST_FINITE[dtype.code]:g}. Choose dtype: bfloat16 or float32, or accept it with "
            "--allow-nonfinite."
        )


class Workspace:
    """One thread's buffers: rows for the inputs of every merge, reused for every tile. Torch runs on `device`."""

    def __init__(self, *, allow_nonfinite: bool = False, device: str = "cpu", clock: Clock | None = None) -> None:
        self.allow_nonfinite, self.device = allow_nonfinite, device
        self.clock = clock or Clock()
        self._arenas: dict[int, np.ndarray] = {}
        self._out = np.empty(0, dtype=np.uint8)

    def inputs(self, job: Job, merge: Merge, first: int, n: int) -> Tile:
        """Rows of all inputs of a merge over elements first .. first+n."""
        step = job.step
        dtypes = [row_dtype(node, step) for node in merge.inputs]
        width = n * max(dtype.size for dtype in dtypes)
        rows = self._rows(merge, len(dtypes), width)[: len(dtypes) * width].reshape(len(dtypes), width)
        for at, (node, dtype) in enumerate(zip(merge.inputs, dtypes, strict=True)):
            row = rows[at][: n * dtype.size]
            if isinstance(node, Leaf):
                ref = step.refs[node.index]
                assert ref is not None
                self.clock.enter("read")
                ref.read_into(row.data, first, first + n)
                self.clock.enter("compute")
            else:
                assert isinstance(node, Merge)
                self.combine(job, node, self.inputs(job, node, first, n), row, dtype)
        codes = np.array([dtype.code for dtype in dtypes], dtype=np.int64)
        bad = np.zeros(len(codes), dtype=np.int64)
        program = job.programs.get(merge.index)
        unit = job.blocks.get(merge.index, 0) + first // program.unit if program is not None else 0
        return Tile(rows, codes, n, first, unit, bad)

    def combine(self, job: Job, merge: Merge, tile: Tile, out: np.ndarray, dtype: DType) -> None:
        """Merge one tile into `out` (bytes of `dtype`)."""
        if merge.index in job.programs:
            job.programs[merge.index].combine(tile, job.found.get(merge.index), out, dtype.code)
        else:
            self._combine_in_torch(job, merge, tile, out, dtype)
        self.check(job, merge, tile)
        if not self.allow_nonfinite:
            check_range(job.step, tile.first, out, dtype)

    def check(self, job: Job, merge: Merge, tile: Tile) -> None:
        """Refuse non-finite inputs unless they are allowed."""
        if not self.allow_nonfinite and tile.bad.any():
            job.name_nonfinite(merge, tile)

    def output(self, nbytes: int) -> np.ndarray:
        """A reused buffer for the result of a tile."""
        if len(self._out) < nbytes:
            self._out = np.empty(nbytes, dtype=np.uint8)
        return self._out[:nbytes]

    def _rows(self, merge: Merge, count: int, width: int) -> np.ndarray:
        arena = self._arenas.get(merge.index)
        if arena is None or len(arena) < count * width:
            arena = self._arenas[merge.index] = np.empty(count * width, dtype=np.uint8)
        return arena

    def _combine_in_torch(self, job: Job, merge: Merge, tile: Tile, out: np.ndarray, dtype: DType) -> None:
        import torch

        tensors = []
        for at, node in enumerate(merge.inputs):
            source = row_dtype(node, job.step)
            raw = torch.from_numpy(tile.rows[at][: tile.n * source.size]).to(self.device)
            tensors.append(raw.view(getattr(torch, source.torch)))
        if not self.allow_nonfinite:
            check_inputs(merge, job.step, tensors, tile.first)
        merged = merge_in_torch(
            merge, job.step, tensors, tile.first, getattr(torch, dtype.torch), check=not self.allow_nonfinite
        )
        out[:] = merged.view(torch.uint8).cpu().numpy()
