"""bitsandbytes: NF4 and FP4 (QLoRA, Dettmers et al. 2023, arXiv 2305.14314) and LLM.int8 (2022, arXiv 2208.07339).

4 bits: entry i of the flat tensor is map[q[i]] a[i // blocksize], two codes to a byte, the first in the *high* half.
`NAME` holds the codes, `NAME.quant_map` the sixteen numbers, `NAME.absmax` the scales a, and
`NAME.quant_state.bitsandbytes__nf4` (or `fp4`) a JSON text with shape and blocksize. With double quantisation a itself
is coded: a[k] = nested_quant_map[absmax[k]] nested_absmax[k // nested_blocksize] + nested_offset.
8 bits: W[i, j] = q[i, j] SCB[i] / 127. Formats of bitsandbytes' `functional.py` (QuantState) and `nn/modules.py`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from eutectic.errors import FormatError, SourceError
from eutectic.weights.dtypes import DType
from eutectic.weights.quantized.bits import pairs
from eutectic.weights.quantized.fp8 import widen_as
from eutectic.weights.quantized.grid import BlockNumbers, Grid, GridTensor
from eutectic.weights.quantized.tensor import DequantisedTensor, Parts, numbers, place, raw
from eutectic.weights.tensor_ref import TensorRef

__all__ = ["dequantised"]

STATE = ".quant_state.bitsandbytes__"
MOST_STATE = 1 << 16  # bytes of the JSON text
STORAGE = ("U8", "I8", "F16", "BF16", "F32")  # types that the bytes of codes may be stored as
BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
SCALE = np.float32(1 / 127)


def dequantised(parts: Parts) -> dict[str, DequantisedTensor]:
    """The dense tensor for each tensor of codes."""
    found: dict[str, DequantisedTensor] = {}
    for name in parts.tensors:
        if STATE in name:
            code = _code(parts, name, name.partition(STATE)[0])
            found[code.name] = _four_bits(parts, code, name)
        elif name.endswith(".SCB"):
            code = _code(parts, name, name.removesuffix("SCB") + "weight")
            found[code.name] = _eight_bits(parts, code, name)
    return found


def _code(parts: Parts, name: str, code: str) -> TensorRef:
    if code not in parts.tensors:
        raise FormatError(f"{place(parts.tensors[name])} belongs to {code!r}, which is missing; fetch it again")
    return parts.tensors[code]


def _eight_bits(parts: Parts, code: TensorRef, name: str) -> GridTensor:
    if code.dtype.name != "I8" or len(code.shape) != 2:
        raise FormatError(
            f"{place(code)} is {code.dtype} {list(code.shape)}; beside {name!r} it must be an int8 matrix"
        )
    rows, columns = code.shape
    scale = parts.need(code, name, ("F32",), (rows,), (rows, 1), (1, rows))
    layout = parts.find(code, name.removesuffix("SCB") + "weight_format", ("U8", "I8", "I32", "I64"))
    if layout is not None and raw(layout).any():
        raise SourceError(
            f"{place(layout)}: codes in a layout of one GPU (not row by row), which is not known here; "
            "save the model again with a recent bitsandbytes"
        )
    width = max(1, columns)
    return GridTensor(
        code.name,
        code.shape,
        code,
        parts.native,
        widen_as("I8"),
        _Rows(scale, Grid(rows, width, 1, width)),
        width=width,
    )


class _Rows(BlockNumbers):
    """SCB is the largest magnitude of a row: 127 steps."""

    def read(self, first: int, last: int) -> np.ndarray:
        return super().read(first, last) * SCALE


@dataclass(frozen=True)
class _State:
    """What the JSON text says."""

    shape: tuple[int, ...]
    blocksize: int
    nested: int
    offset: float


def _state(ref: TensorRef) -> _State:
    if ref.dtype.name != "U8" or ref.numel > MOST_STATE:
        raise FormatError(f"{place(ref)} is {ref.dtype} {list(ref.shape)}, not the bytes of a short JSON text")
    try:
        said: Any = json.loads(bytes(ref.read()).decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise FormatError(f"{place(ref)} is not valid JSON: {str(error)[:120]}") from None
    shape = said.get("shape") if isinstance(said, dict) else None
    if not isinstance(shape, list) or not shape or not all(type(size) is int and size >= 0 for size in shape):
        raise FormatError(f"{place(ref)} states no shape, but {shape!r:.80}")
    sizes: list[Any] = [said.get("blocksize"), said.get("nested_blocksize", 256)]
    if not all(type(size) is int and size in BLOCKSIZES for size in sizes):
        shown = " and ".join(f"{size!r:.40}" for size in sizes)
        raise FormatError(f"{place(ref)} states blocks of {shown}; known are {BLOCKSIZES}")
    offset = said.get("nested_offset", 0.0)
    if not isinstance(offset, (int, float)):
        raise FormatError(f"{place(ref)} states nested_offset {offset!r:.40}, not a number")
    return _State(tuple(shape), sizes[0], sizes[1], float(offset))


def _four_bits(parts: Parts, code: TensorRef, name: str) -> DequantisedTensor:
    said = _state(parts.tensors[name])
    parts.used.add(name)
    numel = math.prod(said.shape)
    if code.dtype.name not in STORAGE or code.nbytes != -(-numel // 2):
        raise FormatError(
            f"{place(code)} has {code.nbytes} bytes ({code.dtype}); {list(said.shape)} in 4 bits takes {-(-numel // 2)}"
        )
    blocks = -(-numel // said.blocksize)
    table = parts.need(code, f"{code.name}.quant_map", ("F32",), (16,))
    nested = f"{code.name}.nested_absmax" in parts.tensors
    scale = parts.need(code, f"{code.name}.absmax", ("U8",) if nested else ("F32",), (blocks,), (blocks, 1))
    if not nested:
        return _FourBits(code, said, table, scale, None, parts.native)
    outer = parts.need(code, f"{code.name}.nested_absmax", ("F32",), (-(-blocks // said.nested),))
    return _FourBits(
        code, said, table, scale, (parts.need(code, f"{code.name}.nested_quant_map", ("F32",), (256,)), outer),
        parts.native,
    )  # fmt: skip


class _FourBits(DequantisedTensor):
    """Blocks of the flat tensor."""

    def __init__(
        self, codes: TensorRef, said: _State, table: TensorRef, scale: TensorRef,
        nested: tuple[TensorRef, TensorRef] | None, native: DType,
    ) -> None:  # fmt: skip
        super().__init__(codes.name, said.shape, codes, native, said.blocksize)
        self.said, self.scale = said, scale
        self.table, self.nested = table, nested

    def decode(self, start: int, stop: int) -> np.ndarray:
        size = self.codes.dtype.size  # the bytes of codes may be stored as numbers of a wider type
        low, high = start // 2, -(-stop // 2)
        stored = raw(self.codes, low // size, -(-high // size))[low % size :][: high - low]
        table = pairs(numbers(self.table), high_first=True)
        values = np.take(table, stored).view(np.float32)[: stop - start]
        blocksize = self.said.blocksize
        scale = self._scales(start // blocksize, -(-stop // blocksize))
        whole = len(values) // blocksize
        blocks = values[: whole * blocksize].reshape(whole, blocksize)
        blocks *= scale[:whole, None]
        values[whole * blocksize :] *= scale[-1]
        return values

    def _scales(self, first: int, last: int) -> np.ndarray:
        if self.nested is None:
            return numbers(self.scale, first, last)
        table, outer = self.nested
        codes = raw(self.scale, first, last)
        low = first // self.said.nested
        wide = numbers(outer, low, (last - 1) // self.said.nested + 1)
        found = numbers(table)[codes] * wide[np.arange(first, last) // self.said.nested - low]
        return found + np.float32(self.said.offset)
