"""How tensors are cut into tiles, so that the buffers of all threads stay within the memory budget."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eutectic.errors import ResourceError
from eutectic.ops.program import BLOCK, Program
from eutectic.recipes.compute import arena_bytes, torch_bytes
from eutectic.recipes.match import Step
from eutectic.recipes.options import Options

__all__ = ["Kind", "Shape", "buffers_of", "cut", "device_bytes", "most_jobs", "tile_of"]

MOST_TILE = 4 * BLOCK
MOST_SPAN = 256 * BLOCK  # elements that a GPU merges at a time, where the method lets them be cut
MOST_PINNED, LEAST_PINNED = 32 << 20, 1 << 20  # bytes of one buffer between host and device
JOBS_AHEAD = 2  # tensors that may be under way at once


@dataclass(frozen=True)
class Kind:
    """Tensors that are cut alike and cost alike: one of them, how many there are, and their programs."""

    step: Step
    count: int
    programs: dict[int, Program]


@dataclass(frozen=True)
class Shape:
    """How tensors are cut: threads, elements per tile (a span, on a GPU), bytes of buffers."""

    threads: int
    tile: int
    buffers: int


def cut(kinds: Sequence[Kind], held: int, options: Options) -> Shape:
    """The most threads and the largest tiles whose buffers, and what the sources hold, fit the budget.

    Raises:
        ResourceError: the budget lies below the floor; the message names the floor.
    """
    if options.on_gpu:
        return _cut_for_gpu(options)
    budget = options.max_memory
    floor = buffers_of(kinds, held, 1, BLOCK)
    if budget < floor:
        largest = max(kinds, key=lambda kind: _thread_bytes(kind, BLOCK)).step
        raise ResourceError(
            f"a budget of {budget:,} bytes is below the floor of {floor:,} bytes that this recipe needs "
            f"(for {largest.name} {list(largest.shape)}); raise --max-memory to at least {-(-floor >> 20)}MiB"
        )
    for threads in range(_threads(options), 0, -1):
        for tile in (MOST_TILE, MOST_TILE // 2, BLOCK):
            buffers = buffers_of(kinds, held, threads, tile)
            if buffers <= budget:
                return Shape(threads, tile, buffers)
    raise AssertionError("one thread and one block fit the floor")


def _cut_for_gpu(options: Options) -> Shape:
    """Two pinned buffers a thread: one towards the device, one back."""
    budget = options.max_memory
    threads = max(1, min(_threads(options), budget // (2 * LEAST_PINNED)))
    pinned = min(MOST_PINNED, budget // (2 * threads) // LEAST_PINNED * LEAST_PINNED)
    if not pinned:
        floor = 2 * LEAST_PINNED
        raise ResourceError(
            f"a budget of {budget:,} bytes is below the floor of {floor:,} bytes that two buffers need; "
            f"raise --max-memory to at least {-(-floor >> 20)}MiB"
        )
    return Shape(threads, MOST_SPAN, 2 * threads * pinned)


def _threads(options: Options) -> int:
    return options.threads or len(os.sched_getaffinity(0))


def tile_of(step: Step, most: int, programs: Mapping[int, Program]) -> int:
    """Elements per tile of one tensor: whole blocks, or whole rows or the tensor where torch needs them."""
    unit = math.lcm(*(program.unit for program in programs.values())) if programs else BLOCK
    tile = max(unit, min(most, -(-step.numel // unit) * unit) // unit * unit)
    if step.action == "copy":
        return tile
    scopes = {merge.method.scope for merge in step.merges if merge.index not in programs}
    if scopes & {"tensor", "model"}:
        return step.numel
    if "row" in scopes and step.shape:
        row = max(1, step.numel // max(1, step.shape[0]))
        unit = math.lcm(row, unit) if programs else row  # whole rows that are whole units of the kernels, too
        return min(step.numel, max(unit, tile // unit * unit))
    return tile


def buffers_of(kinds: Sequence[Kind], held: int, threads: int, tile: int) -> int:
    """Bytes that so many threads hold with tiles of so many elements, and the sources (`held`) besides."""
    largest = max((_thread_bytes(kind, tile) for kind in kinds), default=0)
    scratch = _scratch_bytes(kinds)
    found = max((sum(p.held_bytes for p in kind.programs.values()) for kind in kinds), default=0)
    return threads * (largest + JOBS_AHEAD * scratch) + most_jobs(kinds, threads) * found + held


def most_jobs(kinds: Sequence[Kind], threads: int) -> int:
    """How many tensors may be under way at once."""
    return JOBS_AHEAD if _scratch_bytes(kinds) else threads + 1


def _scratch_bytes(kinds: Sequence[Kind]) -> int:
    """Bytes of histograms that each thread fills for each tensor under way."""
    return max((sum(p.scratch_bytes for p in kind.programs.values()) for kind in kinds), default=0)


def _thread_bytes(kind: Kind, most: int) -> int:
    """Bytes that one thread holds for a tile, torch's float32 copies and temporaries included."""
    elements = tile_of(kind.step, most, kind.programs)
    total = arena_bytes(kind.step, elements)
    total += sum(ref.work_bytes(elements) for ref in kind.step.refs if ref is not None)
    total += elements * sum(program.work_bytes for program in kind.programs.values())
    if kind.step.action == "merge":
        for merge in kind.step.merges:
            if merge.index not in kind.programs:
                total += torch_bytes(merge, kind.step, elements)
    return total


def device_bytes(step: Step) -> int:
    """Bytes that a tensor takes on a GPU: two spans of raw inputs and results, float32 copies and temporaries."""
    if step.action == "copy":
        return 0
    elements = tile_of(step, MOST_SPAN, {})
    return 2 * arena_bytes(step, elements) + max(torch_bytes(merge, step, elements) for merge in step.merges)
