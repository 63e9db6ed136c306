"""Tensors made of others without a copy: a stretch of one, or several one behind the other."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from eutectic.weights.dtypes import DType
from eutectic.weights.tensor_ref import StoredTensor, TensorRef

__all__ = ["Joined", "stretch"]


def stretch(tensor: TensorRef, name: str, shape: tuple[int, ...], first: int = 0) -> TensorRef:
    """The elements of a tensor from `first` on, as many as `shape` takes, under another name."""
    assert first >= 0 and first + math.prod(shape) <= tensor.numel
    if isinstance(tensor, StoredTensor):
        return replace(tensor, name=name, shape=shape, offset=tensor.offset + first * tensor.dtype.size)
    return _Stretch(tensor, name, shape, first)


class _Stretch(TensorRef):
    def __init__(self, tensor: TensorRef, name: str, shape: tuple[int, ...], first: int) -> None:
        self.tensor, self.name, self.shape, self.first = tensor, name, shape, first
        self.dtype: DType = tensor.dtype

    @property
    def native(self) -> DType:
        return self.tensor.native

    @property
    def lies_in(self) -> TensorRef:
        return self if self.numel < self.tensor.numel else self.tensor.lies_in

    def work_bytes(self, elements: int) -> int:
        return self.tensor.work_bytes(elements)

    def rehearse(self) -> None:
        self.tensor.rehearse()

    def read_into(self, buffer: memoryview, start: int, stop: int) -> None:
        self.tensor.read_into(buffer, self.first + start, self.first + stop)


class Joined(TensorRef):
    """Tensors of one type one behind the other, as one of `shape`."""

    def __init__(self, name: str, shape: tuple[int, ...], parts: Sequence[TensorRef]) -> None:
        assert math.prod(shape) == sum(part.numel for part in parts)
        assert len({(part.dtype, part.native) for part in parts}) == 1
        self.name, self.shape, self.parts = name, shape, tuple(parts)
        self.dtype: DType = parts[0].dtype
        self._starts = [0, *accumulate(part.numel for part in parts)]

    @property
    def native(self) -> DType:
        return self.parts[0].native

    def work_bytes(self, elements: int) -> int:
        return max(part.work_bytes(elements) for part in self.parts)

    def rehearse(self) -> None:
        for part in self.parts:
            part.rehearse()

    def read_into(self, buffer: memoryview, start: int, stop: int) -> None:
        size, at = self.dtype.size, start
        while at < stop:
            number = bisect_right(self._starts, at) - 1
            first, end = self._starts[number], min(stop, self._starts[number + 1])
            self.parts[number].read_into(buffer[(at - start) * size : (end - start) * size], at - first, end - first)
            at = end
