"""Ranges of tensors as flat arrays to calculate with, and arrays as the bytes of a type, rounded once."""

from __future__ import annotations

import numpy as np

from eutectic.errors import NonFiniteError
from eutectic.weights.dtypes import DType
from eutectic.weights.tensor_ref import TensorRef

__all__ = ["read_finite", "read_part", "read_values", "rounded"]


def read_values(ref: TensorRef, start: int, stop: int) -> np.ndarray:
    """Elements of a tensor of floats, flat: float64 of float64, else float32, exactly."""
    return _read(ref, start, stop)[0]


def read_finite(ref: TensorRef, start: int, stop: int, whose: str) -> np.ndarray:
    """`read_values`, refusing NaN and infinity.

    Raises:
        NonFiniteError: there is one.
    """
    values, bad = _read(ref, start, stop)
    if bad:
        at = int(np.flatnonzero(~np.isfinite(values))[0])
        index = [int(i) for i in np.unravel_index(start + at, ref.shape or (1,))]
        raise NonFiniteError(f"{whose}: {ref.name!r} holds {values[at]} at {index}; repair it first")
    return values


def read_part(ref: TensorRef, start: int, stop: int) -> np.ndarray:
    """Entries of a stored part: floats as `read_values` has them, others as they are."""
    if ref.dtype.floating:
        return read_values(ref, start, stop)
    return np.frombuffer(ref.read(start, stop), dtype=ref.dtype.numpy)


def rounded(values: np.ndarray, dtype: DType) -> np.ndarray:
    """The bytes (uint8) of values in a type of a tensor: floats rounded to nearest even once."""
    if not dtype.floating:
        return np.ascontiguousarray(values, dtype=dtype.numpy).view(np.uint8)
    if dtype.name == "F64":
        return np.ascontiguousarray(values, dtype=np.float64).view(np.uint8)
    from eutectic.ops.element_kernels import narrowed

    raw = np.empty(values.size * dtype.size, dtype=np.uint8)
    narrowed(np.ascontiguousarray(values, dtype=np.float32), dtype.code, raw)
    return raw


def _read(ref: TensorRef, start: int, stop: int) -> tuple[np.ndarray, bool]:
    raw = np.empty((stop - start) * ref.dtype.size, dtype=np.uint8)
    if raw.size:
        ref.read_into(raw.data, start, stop)
    if ref.dtype.name == "F64":
        values = raw.view(np.float64)
        return values, not np.isfinite(values).all()
    from eutectic.ops.element_kernels import widened

    values = np.empty(stop - start, dtype=np.float32)
    return values, bool(widened(raw, ref.dtype.code, values))
