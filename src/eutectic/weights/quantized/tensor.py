"""What all formats share: a tensor that is calculated from codes as it is read, and the codes' companions."""

from __future__ import annotations

import math
import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import TypeVar

import numpy as np

from eutectic.errors import FormatError
from eutectic.weights.checkpoint import Checkpoint
from eutectic.weights.codec import widen
from eutectic.weights.dtypes import BY_NAME, DType
from eutectic.weights.quantized.scheme import Scheme
from eutectic.weights.tensor_ref import StoredTensor, TensorRef

__all__ = ["FLOATS", "STRIP", "DequantisedTensor", "Parts", "Strips", "numbers", "place", "raw"]

FLOATS = ("F32", "BF16", "F16")
CHUNK = 1 << 16  # elements decoded at a time: what is made on the way stays in the caches
COST = 32  # bytes per element of what is made on the way
STRIP = 4 << 20  # bytes of codes that are kept of a tensor that is stored turned
HELD = 4  # strips kept, for the tensors under way
T = TypeVar("T")


class DequantisedTensor(TensorRef):
    """A tensor as float32, decoded in whole units of elements; `native` is the type that a result takes."""

    def __init__(self, name: str, shape: tuple[int, ...], codes: TensorRef, native: DType, unit: int) -> None:
        self.name, self.shape, self.codes, self.unit = name, shape, codes, max(1, unit)
        self.dtype: DType = BY_NAME["F32"]
        self._native = native

    @property
    def native(self) -> DType:
        return self._native

    @property
    def lies_in(self) -> TensorRef:
        return self.codes.lies_in

    def work_bytes(self, elements: int) -> int:
        return (min(elements, CHUNK) + 2 * self.unit) * COST

    def read_into(self, buffer: memoryview, start: int, stop: int) -> None:
        unit, at = self.unit, start
        step = max(1, CHUNK // unit) * unit
        while at < stop:
            first = at // unit * unit
            last = min(self.numel, first + step, -(-stop // unit) * unit)
            to = min(last, stop)
            values = self.decode(first, last)[at - first : to - first]
            buffer[(at - start) * 4 : (to - start) * 4] = values.view(np.uint8).data
            at = to

    @abstractmethod
    def decode(self, start: int, stop: int) -> np.ndarray:
        """Elements start .. stop as a flat float32 array; both are whole units, or the end."""


class Strips:
    """Parts of tensors that are stored turned, as last read: at most `HELD`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int], object] = OrderedDict()
        self.largest = 0  # bytes of the largest strip

    @property
    def held_bytes(self) -> int:
        """What is kept, and what reading a strip takes besides: it is turned, and perhaps unpacked before."""
        return (HELD + 2) * self.largest

    def of(self, owner: object, number: int, read: Callable[[int], T]) -> T:
        """Strip `number` of a tensor, read unless it is kept."""
        key = (id(owner), number)
        with self._lock:
            if key not in self._kept:
                if len(self._kept) == HELD:
                    self._kept.popitem(last=False)
                self._kept[key] = read(number)
            self._kept.move_to_end(key)
            return self._kept[key]  # pyright: ignore[reportReturnType]


class Parts:
    """The tensors of a quantised checkpoint, asked for by name; `used` are those that become part of dense ones."""

    def __init__(self, checkpoint: Checkpoint, scheme: Scheme, native: DType) -> None:
        self.tensors, self.scheme, self.native = checkpoint, scheme, native
        self.used: set[str] = set()
        self.strips = Strips()

    def find(
        self,
        code: TensorRef,
        name: str,
        dtypes: Collection[str],
        *shapes: tuple[int, ...],
    ) -> TensorRef | None:
        """The companion `name` of the codes `code`, its type and shape checked; None where there is none."""
        if name not in self.tensors:
            return None
        ref = self.tensors[name]
        if ref.dtype.name not in dtypes:
            known = " or ".join(str(BY_NAME[wanted]) for wanted in dtypes)
            raise FormatError(f"{place(ref)} is {ref.dtype}; beside {code.name!r} it must be {known}")
        if shapes and ref.shape not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
            raise FormatError(
                f"{place(ref)} is {list(ref.shape)}; beside {code.name!r} {list(code.shape)} it must be {wanted} "
                f"({self.scheme.words})"
            )
        self.used.add(name)
        return ref

    def need(self, code: TensorRef, name: str, dtypes: Collection[str], *shapes: tuple[int, ...]) -> TensorRef:
        """The same, where there must be one."""
        found = self.find(code, name, dtypes, *shapes)
        if found is None:
            raise FormatError(f"{place(code)} are codes ({self.scheme.words}), but {name!r} is missing; fetch it again")
        return found


def place(ref: TensorRef) -> str:
    """The file and the name of a tensor, for messages."""
    stored = ref.lies_in
    return f"{stored.file.path}: {ref.name!r}" if isinstance(stored, StoredTensor) else repr(ref.name)


def raw(ref: TensorRef, start: int = 0, stop: int | None = None) -> np.ndarray:
    """The bytes of a range of elements."""
    return np.frombuffer(ref.read(start, stop), dtype=np.uint8)


def numbers(ref: TensorRef, start: int = 0, stop: int | None = None) -> np.ndarray:
    """A range of elements in float32; bytes and float8_e8m0fnu are exponents, 2^(b - 127), 255 not a number."""
    found = raw(ref, start, stop)
    if ref.dtype.name in ("U8", "F8_E8M0"):
        powers = np.ldexp(np.float32(1), found.astype(np.int32) - 127)
        return np.where(found == 255, np.float32(np.nan), powers)
    return widen(found, ref.dtype.name).astype(np.float32, copy=False)


def rows_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """A shape as (rows, columns): all axes but the last are rows."""
    return math.prod(shape[:-1]), shape[-1] if shape else 1
