"""Tensors that stay in memory once they were read, up to a budget: for checkpoints that many recipes read."""

from __future__ import annotations

import threading

from eutectic.weights.checkpoint import Checkpoint
from eutectic.weights.dtypes import DType
from eutectic.weights.tensor_ref import TensorRef

__all__ = ["Held", "HeldTensor"]


class Held:
    """A budget of bytes, shared by the checkpoints that it holds. What does not fit is read each time."""

    def __init__(self, budget: int) -> None:
        self.free = budget
        self._lock = threading.Lock()

    def hold(self, checkpoint: Checkpoint) -> Checkpoint:
        """The same checkpoint, whose tensors stay in memory when they were read."""
        return Checkpoint(
            {name: HeldTensor(ref, self) for name, ref in checkpoint.items()},
            path=checkpoint.path,
            config=checkpoint.config,
            headers=checkpoint.headers,
            held_bytes=checkpoint.held_bytes,
            components=checkpoint.components,
        )

    def take(self, nbytes: int) -> bool:
        """Whether these bytes still fit; if so they are taken."""
        with self._lock:
            if nbytes > self.free:
                return False
            self.free -= nbytes
            return True


class HeldTensor(TensorRef):
    """A tensor of another checkpoint, read whole at the first reading and then from memory."""

    def __init__(self, tensor: TensorRef, held: Held) -> None:
        self.name, self.shape, self.tensor, self.held = tensor.name, tensor.shape, tensor, held
        self.dtype: DType = tensor.dtype
        self._bytes: memoryview | None = None
        self._refused = False
        self._lock = threading.Lock()

    @property
    def native(self) -> DType:
        return self.tensor.native

    @property
    def lies_in(self) -> TensorRef:
        return self.tensor.lies_in

    def work_bytes(self, elements: int) -> int:
        return self.tensor.work_bytes(elements)

    def rehearse(self) -> None:
        self.tensor.rehearse()

    def read_into(self, buffer: memoryview, start: int, stop: int) -> None:
        kept = self._kept()
        if kept is None:
            self.tensor.read_into(buffer, start, stop)
        else:
            buffer[: (stop - start) * self.dtype.size] = kept[start * self.dtype.size : stop * self.dtype.size]

    def _kept(self) -> memoryview | None:
        with self._lock:
            if self._bytes is None and not self._refused:
                if self.held.take(self.nbytes):
                    self._bytes = memoryview(bytes(self.tensor.read()))
                else:
                    self._refused = True
            return self._bytes
