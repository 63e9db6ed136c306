"""A tensor made of rows of others: its own in another order, rows that other models lend, averages, zeros."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np

from eutectic.weights.codec import widen
from eutectic.weights.dtypes import BY_NAME, DType
from eutectic.weights.tensor_ref import StoredTensor, TensorRef

__all__ = ["MEAN", "ZERO", "ChosenRows", "Rows"]

ZERO, AVERAGED, MEAN, DONE = -1, -2, -3, -4
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
    """Rows chosen along the first axis; of the tensor's own type, or float32 where rows are calculated or converted.

    `sources` holds the tensor itself and those that lend whole rows; row i is row `numbers[i]` of source `owners[i]`,
    or `owners[i]` says what it is instead.
    """

    def __init__(self, tensor: TensorRef, rows: Rows) -> None:
        self.name, self.shape = tensor.name, (len(rows.own), *tensor.shape[1:])
        self.tensor, self.counted = tensor, rows.counted
        self.owners, self.numbers = np.minimum(rows.own, 0), rows.own.copy()
        self.width = math.prod(tensor.shape[1:])
        self.averaged = {row: found for row, found in rows.lent.items() if len(found) > 1}
        self.owners[list(self.averaged)] = AVERAGED
        sources = {id(tensor): tensor} | {id(ref): ref for found in rows.lent.values() for ref, _ in found}
        self.sources, at = list(sources.values()), {key: at for at, key in enumerate(sources)}
        for row, found in rows.lent.items():
            if row not in self.averaged:
                self.owners[row], self.numbers[row] = at[id(found[0][0])], found[0][1]
        calculated = bool(self.averaged) or bool((self.owners == MEAN).any())
        self.dtype: DType = tensor.dtype
        if calculated or any(ref.dtype is not tensor.dtype for ref in self.sources):
            self.dtype = BY_NAME["F64" if any(ref.dtype.name == "F64" for ref in self.sources) else "F32"]
        # Runs of rows that are read at once: rows that follow one another, or one row of any other kind.
        owners, numbers = self.owners, self.numbers
        follows = (owners[1:] >= 0) & (numbers[1:] == numbers[:-1] + 1)
        follows |= (owners[1:] == ZERO) | (owners[1:] == MEAN)
        self._ends = np.append(np.flatnonzero(~(follows & (owners[1:] == owners[:-1]))) + 1, len(owners))
        self._mean: np.ndarray | None = None
        self._lock = threading.Lock()

    @property
    def native(self) -> DType:
        return self.tensor.native

    @property
    def lies_in(self) -> TensorRef:
        return self.tensor.lies_in

    def work_bytes(self, elements: int) -> int:
        calculated = (elements + 4 * self.width) * 2 * self.dtype.size + elements * 8
        pieces = 8 * 8 * (elements // max(1, self.width) + 2)  # numbers about every row of the range
        return (0 if self.dtype is self.tensor.dtype else calculated) + pieces + self.tensor.work_bytes(elements)

    def rehearse(self) -> None:
        for source in self.sources:
            source.rehearse()
        if any(map(_is_file, self.sources)):
            from eutectic.weights.row_kernels import read_pieces

            none = np.empty(0, dtype=np.int64)
            read_pieces(0, np.empty(0, dtype=np.uint8), none, none, none)

    def read_into(self, buffer: memoryview, start: int, stop: int) -> None:
        first = int(np.searchsorted(self._ends, start // self.width, side="right"))
        last = int(np.searchsorted(self._ends, -(-stop // self.width), side="left")) + 1
        edges = np.concatenate(([start], self._ends[first:last] * self.width)).clip(max=stop)
        owners = self.owners[edges[:-1] // self.width]
        for at, source in enumerate(self.sources):
            if _is_file(source) and (owners == at).any():
                self._gather(buffer, source, edges, owners == at)
                owners = np.where(owners == at, DONE, owners)
        size = self.dtype.size
        for run in np.flatnonzero(owners != DONE):
            at, to = int(edges[run]), int(edges[run + 1])
            self._fill(buffer[(at - start) * size : (to - start) * size], at, to)

    def _gather(self, buffer: memoryview, source: StoredTensor, edges: np.ndarray, mine: np.ndarray) -> None:
        """Fill those of the runs between `edges` that are rows of one source, in few calls.

        Where a piece cannot be read at once the file's own way tells why.
        """
        from eutectic.weights.row_kernels import read_pieces

        size, same = source.dtype.size, self.dtype is source.dtype
        first, counts = edges[:-1][mine], np.diff(edges)[mine]
        rows = first // self.width
        offsets = source.offset + (first + (self.numbers[rows] - rows) * self.width) * size
        targets = first - edges[0]
        places = targets if same else np.cumsum(counts) - counts
        raw = np.frombuffer(buffer, dtype=np.uint8) if same else np.empty(int(counts.sum()) * size, dtype=np.uint8)
        lengths, starts, done = counts * size, places * size, 0
        while done < len(starts):
            done += read_pieces(source.file.fileno(), raw, starts[done:], lengths[done:], offsets[done:])
            if done < len(starts):
                begin = int(starts[done])
                source.file.read_into(raw.data[begin : begin + int(lengths[done])], int(offsets[done]))
                done += 1
        if not same:
            within = np.repeat(targets - places, counts) + np.arange(counts.sum())
            np.frombuffer(buffer, dtype=self._numpy)[within] = widen(raw, source.dtype.name)

    def _fill(self, buffer: memoryview, start: int, stop: int) -> None:
        """Elements start .. stop, which lie in one run."""
        row = start // self.width
        owner = int(self.owners[row])
        if owner >= 0:
            source, shift = self.sources[owner], (int(self.numbers[row]) - row) * self.width
            if self.dtype is source.dtype:
                source.read_into(buffer, start + shift, stop + shift)
            else:
                values = _read(source, start + shift, stop + shift)
                buffer[:] = values.astype(self._numpy, copy=False).view(np.uint8).data
        elif owner == ZERO:
            buffer[:] = bytes(len(buffer))
        elif owner == MEAN:
            columns = np.arange(start, stop) % self.width
            buffer[:] = self._mean_of_rows()[columns].view(np.uint8).data
        else:
            found = self.averaged[row]
            shifts = [(ref, (number - row) * self.width) for ref, number in found]
            total = sum(
                (_read(ref, start + shift, stop + shift).astype(np.float64) for ref, shift in shifts),
                np.zeros(stop - start),
            )
            buffer[:] = (total / len(found)).astype(self._numpy).view(np.uint8).data

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


def _is_file(source: TensorRef) -> TypeGuard[StoredTensor]:
    """Whether a tensor is read by positions of one file on this machine."""
    return isinstance(source, StoredTensor) and source.file.on_disk
