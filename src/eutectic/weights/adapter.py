"""A model with a LoRA adapter of PEFT's format, read as the dense model that it stands for; nothing dense is held.

W' = W + s B A (`lora.py` has s). DoRA: W' = m (W + s B A) / |W + s B A| by output row (Liu et al. 2024, arXiv
2402.09353, eq. 5). Elements are made when they are read, in float32, each by the same sum in the same order whatever is
read around it.
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
        components=base.components,
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
        scaled = self.pair.magnitude is not None  # by rows, which are made whole
        whole = elements + 2 * self.row if scaled else elements
        return whole * (self.base.dtype.size + (2 if scaled else 1) * self.dtype.size) + self.base.work_bytes(whole)

    def rehearse(self) -> None:
        from eutectic.weights.adapter_kernels import add_product, rescale

        self.base.rehearse()
        one, values = np.ones((1, 1), dtype=np.float32), np.ones(1, dtype=self._numpy)
        add_product(np.empty(0, dtype=np.uint16), values, one, one, np.float32(self.pair.scale), 0)
        if self.pair.magnitude is not None:
            rescale(values.reshape(1, 1), one[0])

    def read_into(self, buffer: memoryview, start: int, stop: int) -> None:
        left, right, magnitude = self.held.of(self.pair)
        if magnitude is None:
            self._adapt(np.frombuffer(buffer, dtype=self._numpy, count=stop - start), left, right, start)
            return
        from eutectic.weights.adapter_kernels import rescale

        first, last = start // self.row, -(-stop // self.row)  # a row's length is that of the whole row
        values = np.empty((last - first) * self.row, dtype=self._numpy)
        self._adapt(values, left, right, first * self.row)
        rescale(values.reshape(-1, self.row), magnitude[first:last])
        values = values[start - first * self.row : stop - first * self.row]
        buffer[: values.nbytes] = values.view(np.uint8).data

    @property
    def _numpy(self) -> type[np.floating]:
        return np.float64 if self.dtype.name == "F64" else np.float32

    def _adapt(self, values: np.ndarray, left: np.ndarray, right: np.ndarray, start: int) -> None:
        """Fill `values` from element `start`: a sum over the rank in its order, never a matrix product, whose order of
        summation depends on how many rows are asked for."""
        from eutectic.weights.adapter_kernels import add_product

        stop, halves = start + len(values), np.empty(0, dtype=np.uint16)
        if self.base.dtype is self.dtype:
            self.base.read_into(values.view(np.uint8).data, start, stop)
        elif self.base.dtype.name == "BF16":
            halves = np.empty(len(values), dtype=np.uint16)
            self.base.read_into(halves.view(np.uint8).data, start, stop)
        else:
            raw = np.empty(len(values) * self.base.dtype.size, dtype=np.uint8)
            self.base.read_into(raw.data, start, stop)
            values[:] = widen(raw, self.base.dtype.name)
        add_product(halves, values, left, right, np.float32(self.pair.scale), start)
