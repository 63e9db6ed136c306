"""A model with a LoRA adapter of PEFT's format, read as the dense model that it stands for; nothing dense is held.

W' = W + s B A (`lora.py` has s). DoRA: W' = m (W + s B A) / |W + s B A| by output row (Liu et al. 2024, arXiv
2402.09353, eq. 5). Rows are made when they are read, in float32, each entry by the same sum in the same order whatever
is read around it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from eutectic.errors import SourceError
from eutectic.weights.checkpoint import Checkpoint
from eutectic.weights.codec import widen
from eutectic.weights.dtypes import BY_NAME, DType
from eutectic.weights.files import Place
from eutectic.weights.lora import HeldFactors, Pair, read_adapter
from eutectic.weights.tensor_ref import StoredTensor, TensorRef

__all__ = ["AdaptedTensor", "open_adapted"]


def open_adapted(base: Checkpoint, folder: Place) -> Checkpoint:
    """`base` with the adapter in `folder` applied: the same names, lazily; headers only are read.

    Tensors that the adapter saved whole (modules_to_save, biases) take the place of the base's.

    Raises:
        SourceError: no adapter there, one of another base, or of a kind whose dense form is not known here.
        FormatError: a file breaks its format.
    """
    adapter = read_adapter(folder)
    tensors = dict(base.items())
    for name, ref in adapter.whole.items():
        target = _find(name, tensors) or name
        if target in tensors and tensors[target].shape != ref.shape:
            raise _mismatch(folder, repr(ref.name), ref.shape, target, tensors[target].shape)
        tensors[target] = replace(ref, name=target) if isinstance(ref, StoredTensor) else ref
    held = HeldFactors()
    for module, pair in adapter.pairs.items():
        target = _find(f"{module}.weight", base)
        if target is None:
            raise SourceError(
                f"{folder}: adapts {module}, which the base {base.path} has not; was it trained on another model?"
            )
        _check_fit(folder, module, pair, tensors[target])
        tensors[target] = AdaptedTensor(tensors[target], pair, held)
    return Checkpoint(
        tensors,
        path=base.path,
        config=base.config,
        headers={**base.headers, **adapter.headers},
        held_bytes=base.held_bytes + adapter.held_bytes,
    )


def _mismatch(folder: Place, what: str, shape: Any, target: str, wanted: Any) -> SourceError:
    return SourceError(f"{folder}: {what} {list(shape)} does not fit {target} {list(wanted)} of the base")


def _find(name: str, tensors: Mapping[str, TensorRef]) -> str | None:
    """The base's name for a tensor: the same, or the only one that differs by a prefix."""
    if name in tensors:
        return name
    near = [known for known in tensors if known.endswith(f".{name}") or name.endswith(f".{known}")]
    return near[0] if len(near) == 1 else None


def _check_fit(folder: Place, module: str, pair: Pair, base: TensorRef) -> None:
    rows, width = pair.shape[0], math.prod(pair.shape[1:])
    if len(base.shape) < 2 or base.shape[0] != rows or math.prod(base.shape[1:]) != width or not base.dtype.floating:
        raise _mismatch(folder, f"'{module}.lora_A, lora_B'", (rows, width), base.name, base.shape)
    if pair.magnitude is not None and (pair.turned or len(base.shape) != 2 or pair.magnitude.numel != rows):
        raise SourceError(f"{folder}: {module}: DoRA of other layers than plain linear ones is not known here")


class AdaptedTensor(TensorRef):
    """One tensor of a base with its part of an adapter: float32 (float64 above float64)."""

    def __init__(self, base: TensorRef, pair: Pair, held: HeldFactors) -> None:
        self.base, self.pair, self.held = base, pair, held
        self.name, self.shape = base.name, base.shape
        self.dtype: DType = BY_NAME["F64" if base.dtype.name == "F64" else "F32"]
        self.row = math.prod(base.shape[1:])

    @property
    def native(self) -> DType:
        return self.base.dtype

    @property
    def lies_in(self) -> TensorRef:
        return self.base.lies_in

    def work_bytes(self, elements: int) -> int:
        return (elements + 2 * self.row) * (self.base.dtype.size + 4 * self.dtype.size)

    def read_into(self, buffer: memoryview, start: int, stop: int) -> None:
        first, last = start // self.row, -(-stop // self.row)
        raw = np.empty((last - first) * self.row * self.base.dtype.size, dtype=np.uint8)
        self.base.read_into(raw.data, first * self.row, last * self.row)
        wide = np.float64 if self.dtype.name == "F64" else np.float32
        values = widen(raw, self.base.dtype.name).astype(wide, copy=False).reshape(-1, self.row)
        values = self._adapt(values, first, last).reshape(-1)[start - first * self.row : stop - first * self.row]
        buffer[: values.nbytes] = np.ascontiguousarray(values).view(np.uint8).data

    def _adapt(self, values: np.ndarray, first: int, last: int) -> np.ndarray:
        """Rows first .. last of the dense tensor."""
        adapted = values + self.held.change(self.pair, first, last)
        if self.pair.magnitude is None:
            return adapted
        magnitude = self.held.of(self.pair)[2]
        assert magnitude is not None
        lengths = np.sqrt((adapted.astype(np.float64) ** 2).sum(axis=1))
        factors = magnitude[first:last] / np.where(lengths > 0, lengths, 1.0)
        return (adapted * factors[:, None]).astype(adapted.dtype)
