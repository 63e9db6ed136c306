"""Matrices [out, in] from codes that are stored turned, [in, out]: a strip of outputs is read and turned at a time."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from eutectic.errors import FormatError
from eutectic.weights.codec import widen
from eutectic.weights.dtypes import DType
from eutectic.weights.quantized.tensor import STRIP, DequantisedTensor, Strips, place
from eutectic.weights.tensor_ref import TensorRef

__all__ = ["UNIT", "Strip", "TurnedTensor", "columns", "group_index"]

UNIT = 32  # outputs: as many codes fill whole 32-bit words, whatever their bits


@dataclass(frozen=True)
class Strip:
    """Some outputs: codes as the format keeps them [outputs, n], zero points and scales float32 [outputs, groups]."""

    codes: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray
    group: np.ndarray | None
    """The group of each input, where groups are not runs of inputs."""


class TurnedTensor(DequantisedTensor):
    """W[j, i] = (q[i, j] - z[g(i), j]) s[g(i), j], by strips of outputs j."""

    def __init__(
        self, name: str, shape: tuple[int, int], codes: TensorRef, native: DType, strips: Strips, *, group: int,
        bytes_each: int,
    ) -> None:  # fmt: skip
        super().__init__(name, shape, codes, native, shape[1])
        self.strips, self.group = strips, group
        self.tall = max(UNIT, STRIP // max(1, bytes_each) // UNIT * UNIT)  # outputs of a strip
        strips.largest = max(strips.largest, min(self.tall, shape[0]) * bytes_each)

    def decode(self, start: int, stop: int) -> np.ndarray:
        row, last = start // self.unit, stop // self.unit
        parts = []
        while row < last:
            number, low = divmod(row, self.tall)
            strip = self.strips.of(self, number, self._strip)
            high = min(self.tall, low + last - row)
            parts.append(self._values(strip, low, high))
            row += high - low
        return (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(-1)

    def _values(self, strip: Strip, low: int, high: int) -> np.ndarray:
        values = self.widen(strip.codes[low:high])
        zeros, scales = strip.zeros[low:high], strip.scales[low:high]
        inputs = self.shape[1]
        if strip.group is not None:
            values -= zeros[:, strip.group]
            values *= scales[:, strip.group]
        elif inputs % self.group == 0:
            blocks = values.reshape(high - low, -1, self.group)
            blocks -= zeros[:, :, None]
            blocks *= scales[:, :, None]
        else:
            values -= np.repeat(zeros, self.group, axis=1)[:, :inputs]
            values *= np.repeat(scales, self.group, axis=1)[:, :inputs]
        return values

    def _strip(self, number: int) -> Strip:
        first = number * self.tall
        return self.read_strip(first, min(self.shape[0], first + self.tall))

    @abstractmethod
    def read_strip(self, first: int, last: int) -> Strip:
        """Outputs first .. last; `first` is a multiple of `UNIT`."""

    @abstractmethod
    def widen(self, codes: np.ndarray) -> np.ndarray:
        """Codes as kept in a strip as float32 [outputs, in]."""


def columns(ref: TensorRef, first: int, last: int) -> np.ndarray:
    """Columns first .. last of a matrix, as numpy knows its type (bfloat16 widens to float32)."""
    rows, width = ref.shape
    size = ref.dtype.size
    found = np.empty((rows, (last - first) * size), dtype=np.uint8)
    if first == 0 and last == width:
        ref.read_into(found.reshape(-1).data, 0, rows * width)
    else:
        for row in range(rows):
            ref.read_into(found[row].data, row * width + first, row * width + last)
    return widen(found.reshape(-1), ref.dtype.name).reshape(rows, last - first)


def group_index(ref: TensorRef, group: int, groups: int) -> np.ndarray | None:
    """The group of each input as stored; None where they are runs of `group` inputs.

    Raises:
        FormatError: one lies outside the groups that there are.
    """
    index = ref.to_numpy()
    if (index == np.arange(len(index)) // group).all():
        return None
    if index.min() < 0 or index.max() >= groups:
        raise FormatError(f"{place(ref)} names group {int(index.max())} or {int(index.min())}; there are {groups}")
    return index.astype(np.int64)
