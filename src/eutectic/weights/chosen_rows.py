"""A tensor made of rows of others: its own in another order, rows that other models lend, averages, zeros."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eutectic.weights.codec import widen
from eutectic.weights.dtypes import BY_NAME, DType
from eutectic.weights.tensor_ref import TensorRef

__all__ = ["MEAN", "ZERO", "ChosenRows", "Rows"]

ZERO, LENT, MEAN = -1, -2, -3
CHUNK = 1 << 16  # elements summed at a time for the mean: fixed, so that its bits are


@dataclass(frozen=True, eq=False)
class Rows:
    """Which row becomes which.

    `own[i]` is the number of the row of the tensor itself that becomes row i; or `ZERO`; or `MEAN`, the mean of the
    first `counted` rows; a row in `lent` is the average of rows of other tensors, by (tensor, row).
    """

    own: np.ndarray
    lent: Mapping[int, Sequence[tuple[TensorRef, int]]]
    counted: int

    @property
    def is_identity(self) -> bool:
        """Whether every row stays where it is."""
        return not self.lent and bool((self.own == np.arange(len(self.own))).all())


class ChosenRows(TensorRef):
    """Rows chosen along the first axis; of the tensor's own type, or float32 where rows are calculated or converted."""

    def __init__(self, tensor: TensorRef, rows: Rows) -> None:
        self.name, self.shape = tensor.name, (len(rows.own), *tensor.shape[1:])
        self.tensor, self.lent, self.counted = tensor, rows.lent, rows.counted
        self.own = rows.own.copy()
        self.own[list(rows.lent)] = LENT
        self.width = math.prod(tensor.shape[1:])
        refs = [ref for found in rows.lent.values() for ref, _ in found]
        averages = any(len(found) > 1 for found in rows.lent.values()) or bool((self.own == MEAN).any())
        self.dtype: DType = tensor.dtype
        if averages or any(ref.dtype is not tensor.dtype for ref in refs):
            widest = any(ref.dtype.name == "F64" for ref in (tensor, *refs))
            self.dtype = BY_NAME["F64" if widest else "F32"]
        # Runs of rows that are read at once: rows that follow one another, or one row of any other kind.
        follows = (self.own[1:] >= 0) & (self.own[1:] == self.own[:-1] + 1)
        same = (self.own[1:] == self.own[:-1]) & ((self.own[1:] == ZERO) | (self.own[1:] == MEAN))
        self._ends = np.append(np.flatnonzero(~(follows | same)) + 1, len(self.own))
        self._mean: np.ndarray | None = None
        self._lock = threading.Lock()

    @property
    def native(self) -> DType:
        return self.tensor.native

    @property
    def lies_in(self) -> TensorRef:
        return self.tensor.lies_in

    def work_bytes(self, elements: int) -> int:
        calculated = 0 if self.dtype is self.tensor.dtype else (elements + 4 * self.width) * 2 * self.dtype.size
        return calculated + self.tensor.work_bytes(elements)

    def read_into(self, buffer: memoryview, start: int, stop: int) -> None:
        size, at = self.dtype.size, start
        run = int(np.searchsorted(self._ends, start // self.width, side="right"))
        while at < stop:
            to = min(stop, int(self._ends[run]) * self.width)
            self._fill(buffer[(at - start) * size : (to - start) * size], at, to)
            at, run = to, run + 1

    def _fill(self, buffer: memoryview, start: int, stop: int) -> None:
        """Elements start .. stop, which lie in one run."""
        row = start // self.width
        kind = int(self.own[row])
        if kind >= 0:
            shift = (kind - row) * self.width
            if self.dtype is self.tensor.dtype:
                self.tensor.read_into(buffer, start + shift, stop + shift)
            else:
                values = _read(self.tensor, start + shift, stop + shift)
                buffer[:] = values.astype(self._numpy, copy=False).view(np.uint8).data
        elif kind == ZERO:
            buffer[:] = bytes(len(buffer))
        elif kind == MEAN:
            columns = np.arange(start, stop) % self.width
            buffer[:] = self._mean_of_rows()[columns].view(np.uint8).data
        else:
            self._fill_lent(buffer, row, start, stop)

    def _fill_lent(self, buffer: memoryview, row: int, start: int, stop: int) -> None:
        lent = self.lent[row]
        ranges = [(ref, start + (at - row) * self.width, stop + (at - row) * self.width) for ref, at in lent]
        if len(ranges) == 1 and ranges[0][0].dtype is self.dtype:
            ranges[0][0].read_into(buffer, *ranges[0][1:])
            return
        total = sum((_read(*found).astype(np.float64) for found in ranges), np.zeros(stop - start))
        buffer[:] = (total / len(ranges)).astype(self._numpy).view(np.uint8).data

    @property
    def _numpy(self) -> type[np.floating]:
        return np.float64 if self.dtype.name == "F64" else np.float32

    def _mean_of_rows(self) -> np.ndarray:
        with self._lock:
            mean = self._mean
            if mean is None:
                total, step = np.zeros(self.width), max(1, CHUNK // self.width)
                for first in range(0, self.counted, step):
                    last = min(self.counted, first + step)
                    total += _read(self, first * self.width, last * self.width).reshape(-1, self.width).sum(
                        axis=0, dtype=np.float64
                    )  # fmt: skip
                self._mean = mean = (total / max(1, self.counted)).astype(self._numpy)
        return mean


def _read(ref: TensorRef, start: int, stop: int) -> np.ndarray:
    return widen(np.frombuffer(ref.read(start, stop), dtype=np.uint8), ref.dtype.name)
