"""A handle to one tensor: what it is, and how to read any range of it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eutectic.weights.dtypes import DType
from eutectic.weights.files import SourceFile

if TYPE_CHECKING:
    import numpy
    import torch

__all__ = ["StoredTensor", "TensorRef"]


class TensorRef(ABC):
    """A lazy tensor: `name`, `shape`, `dtype`, and reads by element range (flat, row-major).

    Nothing is read until asked for. `read_into` fills the caller's buffer; `to_numpy` and `to_torch` allocate.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor, unpadded."""
        return self.numel * self.dtype.size

    @property
    def native(self) -> DType:
        """The type that a result takes after this tensor; another than `dtype` where reading widens it."""
        return self.dtype

    @property
    def lies_in(self) -> TensorRef:
        """The tensor whose bytes are read, where this one is made of it."""
        return self

    def work_bytes(self, elements: int) -> int:
        """Bytes that reading `elements` of it takes besides the caller's buffer."""
        return 0

    def rehearse(self) -> None:  # noqa: B027  (most need nothing)
        """Load or compile what reading it needs, before the work starts."""

    @abstractmethod
    def read_into(self, buffer: memoryview, start: int, stop: int) -> None:
        """Fill `buffer` with the little-endian bytes of elements `start` to `stop` (exclusive)."""

    def read(self, start: int = 0, stop: int | None = None) -> bytearray:
        """The bytes of elements `start` to `stop` (default: all)."""
        stop = self.numel if stop is None else stop
        if not 0 <= start <= stop <= self.numel:
            raise IndexError(f"{self.name}: elements {start}:{stop} lie outside 0:{self.numel}")
        buffer = bytearray((stop - start) * self.dtype.size)
        if buffer:
            self.read_into(memoryview(buffer), start, stop)
        return buffer

    def to_numpy(self) -> numpy.ndarray:
        """The tensor as a numpy array; bfloat16 widens to float32 (exactly), as numpy has no such type."""
        import numpy as np

        from eutectic.weights.codec import widen

        raw = np.frombuffer(self.read(), dtype=np.uint8)
        return widen(raw, self.dtype.name).reshape(self.shape)

    def to_torch(self) -> torch.Tensor:
        """The tensor as a torch tensor of its own dtype."""
        import torch

        target = getattr(torch, self.dtype.torch)
        if not self.numel:
            return torch.empty(self.shape, dtype=target)
        return torch.frombuffer(self.read(), dtype=torch.uint8).view(target).reshape(self.shape)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {list(self.shape)}, {self.dtype})"


@dataclass(frozen=True, repr=False, eq=False)
class StoredTensor(TensorRef):
    """A tensor that lies in a file as contiguous row-major bytes from `offset`."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: SourceFile
    offset: int

    def read_into(self, buffer: memoryview, start: int, stop: int) -> None:
        self.file.read_into(buffer, self.offset + start * self.dtype.size)
