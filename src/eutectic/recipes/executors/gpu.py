"""The executor on a GPU: torch semantics over spans of tensors, transfers behind the computation.

Reader threads fill pinned buffers from the files and send them to the device, where a span of a tensor is put
together; while it is merged the next one arrives, and writer threads bring the one before back, hash and write it.
The host holds the pinned buffers only, the device two spans. A span is the whole tensor where the method needs it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from eutectic.errors import ResourceError
from eutectic.recipes.compute import check_range, row_dtype
from eutectic.recipes.cutting import device_bytes, tile_of
from eutectic.recipes.match import Step
from eutectic.recipes.plan import Plan
from eutectic.recipes.profile import Clock, Profile
from eutectic.recipes.semantics import check_inputs, merge_in_torch, one_thread
from eutectic.recipes.tree import Leaf, Merge
from eutectic.weights.digest import PIECE, combine_pieces, hash_pieces, hash_range
from eutectic.weights.readahead import ReadAhead
from eutectic.weights.sink import Sink
from eutectic.weights.tensor_ref import TensorRef

if TYPE_CHECKING:
    import torch

    from eutectic.recipes.executors import Progress

__all__ = ["GpuStream", "check_device"]

SPARE = 0.8  # share of the device's free memory that is counted on: torch's allocator rounds and fragments


def check_device(plan: Plan) -> torch.device:
    """The device that a plan runs on.

    Raises:
        ResourceError: torch finds no such device, or it has too little free memory for the largest tensor.
    """
    import torch

    device = torch.device(plan.options.device)
    if device.type != "cpu":
        module = torch.get_device_module(device)
        count = module.device_count() if module.is_available() else 0
        if (device.index or 0) >= count:
            found = f"{count} GPU{'s' if count > 1 else ''}, numbered from 0" if count else "no GPU"
            raise ResourceError(
                f"--device {plan.options.device}: torch {torch.__version__} finds {found}. Leave the flag out, or "
                "install a torch that is built for this machine's GPU"
            )
        free = int(module.mem_get_info(device)[0] * SPARE)
        step = max((kind.step for kind in plan.kinds), key=device_bytes, default=None)
        if step is not None and (need := device_bytes(step)) > free:
            raise ResourceError(
                f"--device {plan.options.device}: {step.name} {list(step.shape)} needs about {need:,} bytes of device "
                f"memory, {free:,} can be counted on; leave the flag out to merge on the CPU, in bounded memory"
            )
    return device


@dataclass(eq=False)
class _Lane:
    """A pinned buffer, as tensor and as array, and the stream that its copies run on (None on the CPU)."""

    buffer: torch.Tensor
    view: np.ndarray
    stream: Any


@dataclass(eq=False)
class _Tensor:
    """One tensor on its way out: the digests of its pieces by offset, and the copies still under way."""

    step: Step
    whole: bool = True  # every span begins at a piece's boundary
    pieces: dict[int, list[bytes]] = field(default_factory=dict)
    stores: list[Future[None]] = field(default_factory=list)


@dataclass(eq=False)
class _Span:
    """Elements first .. first+n of one tensor: its inputs on the device, and the copies that fill them."""

    out: _Tensor
    first: int
    n: int
    inputs: dict[int, torch.Tensor]
    loads: list[Future[None]]
    last: bool


class GpuStream:
    """One execution of a plan on a torch device into a sink; see `Stream` for `progress` and `profile`."""

    def __init__(
        self,
        plan: Plan,
        progress: Progress | None = None,
        profile: Profile | None = None,
    ) -> None:
        import torch

        self.plan, self.progress, self.profile = plan, progress or (lambda nbytes: None), profile
        self.device = check_device(plan)
        self.module: Any = torch.get_device_module(self.device)
        self.streams = self.device.type != "cpu"  # the CPU, which tests take for a device, copies at once
        self.chunk = plan.shape.buffers // (2 * plan.shape.threads)
        self._clocks = threading.local()

    # ------------------------------------------------------------------ the pipeline

    def run(self, sink: Sink) -> None:
        """Merge and write every tensor that the sink does not hold yet."""
        import torch

        self.sink = sink
        todo = [step for step in self.plan.steps if step.name not in sink.digests]
        threads = self.plan.shape.threads
        self.up, self.down = self._lanes(threads), self._lanes(threads)
        with (
            one_thread(True),  # what torch does on the host must not depend on their number either
            ReadAhead([ref for step in todo for ref in step.refs if ref is not None]) as ahead,
            ThreadPoolExecutor(threads, "read") as readers,
            ThreadPoolExecutor(threads, "write") as writers,
        ):
            self.ahead, self.readers, self.writers = ahead, readers, writers
            try:
                self._pump(todo)
            except torch.OutOfMemoryError as error:
                raise ResourceError(
                    f"--device {self.plan.options.device}: out of device memory ({error}); leave the flag out to "
                    "merge on the CPU, or free the device"
                ) from None
            finally:
                readers.shutdown(wait=False, cancel_futures=True)  # after a failure nothing more is begun
                writers.shutdown(wait=False, cancel_futures=True)
                self._clock().enter("")

    def close(self) -> None:
        """Nothing is held between runs."""

    def _pump(self, todo: list[Step]) -> None:
        before: _Span | None = None  # is merged while the next one loads
        finishing: _Tensor | None = None
        for span in self._spans(todo):
            if before is not None:
                finishing = self._merge(before, finishing)
            before = span
        if before is not None:
            finishing = self._merge(before, finishing)
        if finishing is not None:
            self._finish(finishing)

    def _spans(self, todo: list[Step]) -> Iterator[_Span]:
        """Every span in order, its loads begun."""
        for step in todo:
            most = tile_of(step, self.plan.shape.tile, {}) if step.action == "merge" else step.numel
            out = _Tensor(step, whole=most >= step.numel or most * step.dtype.size % PIECE == 0)
            for first in range(0, step.numel, max(1, most)) if step.numel else (0,):
                n = min(most, step.numel - first)
                yield self._load(out, first, n, last=first + n == step.numel)

    def _merge(self, span: _Span, finishing: _Tensor | None) -> _Tensor | None:
        """Merge one loaded span and send it back; returns a tensor whose copies are still to be waited for."""
        out, step = span.out, span.out.step
        clock = self._clock()
        clock.enter("wait")
        self._wait(span.loads)
        if step.action == "copy":
            self._copy(out)
        elif span.n:
            clock.enter("compute")
            merged = self._value(step.root, span, step.dtype.torch)
            clock.enter("wait")
            if finishing is None:
                self._wait(out.stores)  # of this tensor's span before: no more than two results on the device
                out.stores.clear()
            self._store(out, span, merged)
        if finishing is not None:
            self._finish(finishing)
        span.inputs.clear()
        return out if span.last else None

    def _finish(self, out: _Tensor) -> None:
        self._wait(out.stores)
        if out.whole:
            digest = combine_pieces(piece for at in sorted(out.pieces) for piece in out.pieces[at])
        else:
            digest = hash_range(self.sink.runs(out.step.name))
        self.sink.complete(out.step.name, digest)
        self.ahead.passed([ref for ref in out.step.refs if ref is not None])

    def _wait(self, futures: list[Future[None]]) -> None:
        for future in futures:
            future.result()

    # ------------------------------------------------------------------ to the device

    def _load(self, out: _Tensor, first: int, n: int, *, last: bool) -> _Span:
        """Begin to bring the inputs of a span to the device, each leaf once."""
        import torch

        step = out.step
        span = _Span(out, first, n, {}, [], last)
        if step.action == "copy" or not n:
            return span
        for leaf in step.root.leaves:
            ref = step.refs[leaf.index]
            assert ref is not None
            raw = torch.empty(n * ref.dtype.size, dtype=torch.uint8, device=self.device)
            span.inputs[leaf.index] = raw
            free = self._mark()  # its memory may have been another tensor's
            for at in range(0, raw.numel(), self.chunk):
                span.loads.append(self.readers.submit(self._upload, ref, first, raw, at, free))
        return span

    def _upload(self, ref: TensorRef, first: int, raw: torch.Tensor, at: int, free: Any) -> None:
        size, count = ref.dtype.size, min(self.chunk, raw.numel() - at)
        with self._lane(self.up) as lane:
            self._clock().enter("read")
            ref.read_into(lane.view[:count].data, first + at // size, first + (at + count) // size)
            self._transfer(raw[at : at + count], lane.buffer[:count], lane, free)

    # ------------------------------------------------------------------ on the device

    def _value(self, merge: Merge, span: _Span, dtype: str) -> torch.Tensor:
        """What a merge makes of a span, flat and rounded to `dtype`."""
        import torch

        tensors = []
        for node in merge.inputs:
            stored = row_dtype(node, span.out.step)
            if isinstance(node, Leaf):
                tensors.append(span.inputs[node.index].view(getattr(torch, stored.torch)))
            else:
                assert isinstance(node, Merge)
                tensors.append(self._value(node, span, stored.torch))
        trusted = self.plan.options.allow_nonfinite
        if not trusted:
            check_inputs(merge, span.out.step, tensors, span.first)
        return merge_in_torch(merge, span.out.step, tensors, span.first, getattr(torch, dtype), check=not trusted)

    # ------------------------------------------------------------------ from the device

    def _store(self, out: _Tensor, span: _Span, merged: torch.Tensor) -> None:
        import torch

        raw = merged.view(torch.uint8)
        done = self._mark()
        start = span.first * out.step.dtype.size
        for at in range(0, raw.numel(), self.chunk):
            out.stores.append(self.writers.submit(self._download, out, start, raw, at, done))
        self.progress(raw.numel() + self.plan.input_bytes(out.step) * span.n // max(1, out.step.numel))

    def _download(self, out: _Tensor, start: int, raw: torch.Tensor, at: int, done: Any) -> None:
        step, count = out.step, min(self.chunk, raw.numel() - at)
        with self._lane(self.down) as lane:
            self._clock().enter("write")
            self._transfer(lane.buffer[:count], raw[at : at + count], lane, done)
            narrow = lane.view[:count]
            if not self.plan.options.allow_nonfinite:
                check_range(step, (start + at) // step.dtype.size, narrow, step.dtype)
            self._write(out, start + at, narrow)

    def _copy(self, out: _Tensor) -> None:
        """Copy a tensor from its file to the result, past the device."""
        for at in range(0, out.step.nbytes, self.chunk):
            out.stores.append(self.writers.submit(self._pass_on, out, at))
        self.progress(2 * out.step.nbytes)

    def _pass_on(self, out: _Tensor, at: int) -> None:
        size, count = out.step.dtype.size, min(self.chunk, out.step.nbytes - at)
        with self._lane(self.down) as lane:
            self._clock().enter("read")
            out.step.origin.read_into(lane.view[:count].data, at // size, (at + count) // size)
            self._write(out, at, lane.view[:count])

    def _write(self, out: _Tensor, start: int, data: np.ndarray) -> None:
        if out.whole:
            self._clock().enter("hash")
            out.pieces[start] = hash_pieces(data.data)
        self._clock().enter("write")
        self.sink.write(out.step.name, start, data.data)

    # ------------------------------------------------------------------ lanes and clocks

    def _mark(self) -> Any:
        """An event: everything that the device was given until now."""
        return self.module.current_stream(self.device).record_event() if self.streams else None

    def _transfer(self, target: torch.Tensor, source: torch.Tensor, lane: _Lane, after: Any) -> None:
        """Copy between host and device on the lane's stream, once the device has passed `after`; returns when done."""
        with self.module.stream(lane.stream) if self.streams else nullcontext():
            if self.streams:
                lane.stream.wait_event(after)
            target.copy_(source, non_blocking=True)
            if self.streams:
                lane.stream.synchronize()

    def _lanes(self, count: int) -> queue.SimpleQueue[_Lane]:
        import torch

        lanes: queue.SimpleQueue[_Lane] = queue.SimpleQueue()
        for _ in range(count):
            buffer = torch.empty(self.chunk, dtype=torch.uint8, pin_memory=self.streams)
            lanes.put(_Lane(buffer, buffer.numpy(), self.module.Stream(self.device) if self.streams else None))
        return lanes

    @contextmanager
    def _lane(self, lanes: queue.SimpleQueue[_Lane]) -> Iterator[_Lane]:
        """A lane that nobody else uses."""
        lane = lanes.get()
        try:
            yield lane
        finally:
            self._clock().enter("wait")
            lanes.put(lane)

    def _clock(self) -> Clock:
        """This thread's stopwatch."""
        if not hasattr(self._clocks, "clock"):
            self._clocks.clock = self.profile.thread() if self.profile is not None else Clock()
        return self._clocks.clock
