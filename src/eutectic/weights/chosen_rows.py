"""A tensor made of rows of others: its own in another order, rows that other models lend, averages, zeros."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eutectic.weights.codec import widen
from eutectic.weights.dtypes import BY_NAME, DType
from eutectic.weights.tensor_ref import StoredTensor, TensorRef

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
        pieces = 8 * 8 * (elements // max(1, self.width) + 2)  # numbers about every row of the range
        return calculated + pieces + self.tensor.work_bytes(elements)

    def rehearse(self) -> None:
        self.tensor.rehearse()
        if self._gathers:
            from eutectic.weights.row_kernels import read_pieces

            none = np.empty(0, dtype=np.int64)
            read_pieces(0, np.empty(0, dtype=np.uint8), none, none, none)

    @property
    def _gathers(self) -> bool:
        """Whether own rows are read by positions of one file on this machine."""
        return isinstance(self.tensor, StoredTensor) and self.tensor.file.on_disk

    def read_into(self, buffer: memoryview, start: int, stop: int) -> None:
        first = int(np.searchsorted(self._ends, start // self.width, side="right"))
        last = int(np.searchsorted(self._ends, -(-stop // self.width), side="left")) + 1
        edges = np.concatenate(([start], self._ends[first:last] * self.width)).clip(max=stop)
        kinds = self.own[edges[:-1] // self.width]
        gathered = self._gathers and bool((kinds >= 0).any())
        if gathered:
            self._gather(buffer, edges, kinds)
        size = self.dtype.size
        for run in np.flatnonzero(kinds < 0) if gathered else range(len(kinds)):
            at, to = int(edges[run]), int(edges[run + 1])
            self._fill(buffer[(at - start) * size : (to - start) * size], at, to)

    def _gather(self, buffer: memoryview, edges: np.ndarray, kinds: np.ndarray) -> None:
        """Fill the runs of own rows among the runs between `edges`; where they are converted, the others with rubbish.

        Where a piece cannot be read at once the file's own way tells why.
        """
        from eutectic.weights.row_kernels import read_pieces

        tensor = self.tensor
        assert isinstance(tensor, StoredTensor)
        size, start = tensor.dtype.size, edges[0]
        own = kinds >= 0
        first, last = edges[:-1][own], edges[1:][own]
        shift = (kinds[own] - first // self.width) * self.width
        places, lengths, offsets = (first - start) * size, (last - first) * size, (first + shift) * size + tensor.offset
        same = self.dtype is tensor.dtype
        raw = np.frombuffer(buffer, dtype=np.uint8) if same else np.zeros(int(edges[-1] - start) * size, dtype=np.uint8)
        done = 0
        while done < len(places):
            done += read_pieces(tensor.file.fileno(), raw, places[done:], lengths[done:], offsets[done:])
            if done < len(places):
                place = int(places[done])
                tensor.file.read_into(raw.data[place : place + int(lengths[done])], int(offsets[done]))
                done += 1
        if not same:
            np.frombuffer(buffer, dtype=self._numpy)[:] = widen(raw, tensor.dtype.name)

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
