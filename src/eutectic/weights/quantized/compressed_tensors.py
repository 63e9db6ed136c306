"""compressed-tensors (vLLM's LLM Compressor): integers packed or plain, FP8, MXFP8, MXFP4 and NVFP4.

W = (q - z) s, s by tensor, row, group of columns or block, as `config_groups` say. Plain codes are `NAME.weight`
(int8, float8) beside `NAME.weight_scale` and perhaps `NAME.weight_zero_point`. `pack-quantized`: `NAME.weight_packed`
int32 packs q + 2^(b - 1) of b bits without gaps along the columns (`NAME.weight_shape` has their number), zero points
likewise along the rows; `NAME.weight_g_idx` is the group of each column. `nvfp4-pack-quantized`: two E2M1 codes to a
byte, the first in the low half, W = v(q) s / `weight_global_scale` with s of float8 E4M3 for 16 columns;
`mxfp4-pack-quantized` has exponents for 32 columns, 2^(s - 127).
Formats of compressed-tensors' `compressors/` and `quantization/lifecycle/`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from eutectic.errors import FormatError, SourceError
from eutectic.weights.quantized.bits import E2M1, pairs, unpack
from eutectic.weights.quantized.fp8 import CODES, SCALES, widen_as
from eutectic.weights.quantized.grid import BlockNumbers, Grid, GridTensor, Numbers, grid_of
from eutectic.weights.quantized.tensor import FLOATS, DequantisedTensor, Parts, numbers, place, raw
from eutectic.weights.quantized.turned import group_index
from eutectic.weights.tensor_ref import TensorRef

__all__ = ["dequantised"]

FORMATS = (
    "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mxfp8-quantized", "nvfp4-pack-quantized",
    "mxfp4-pack-quantized", "mixed-precision",
)  # fmt: skip
_PAIRS = pairs(E2M1)


def dequantised(parts: Parts) -> dict[str, DequantisedTensor]:
    """The dense tensor for each tensor of codes."""
    settings = parts.scheme.settings
    sparse = settings.get("sparsity_config")
    kind = sparse.get("format", "dense") if isinstance(sparse, dict) else "dense"
    wanted = settings.get("format", "pack-quantized")
    if kind != "dense" or wanted not in FORMATS:
        named = f"sparse weights ({kind!r:.40})" if kind != "dense" else f"the format {wanted!r:.40}"
        raise SourceError(
            f"{parts.tensors.path}: compressed-tensors with {named}, which is not known here; use the checkpoint from "
            "before quantisation, or decompress it with compressed-tensors"
        )
    found: dict[str, DequantisedTensor] = {}
    for name, code in parts.tensors.items():
        stem = name.removesuffix("weight_packed").removesuffix("weight")
        if name.endswith(".weight_packed"):
            reader = _packed if code.dtype.name == "I32" else _fp4
            found[name] = reader(parts, code, stem, _arguments(parts, code, stem))
        elif name.endswith(".weight") and f"{name}_scale" in parts.tensors:
            found[name] = _plain(parts, code, stem, _arguments(parts, code, stem))
    return found


# ---------------------------------------------------------------- what config.json says


def _arguments(parts: Parts, code: TensorRef, stem: str) -> Mapping[str, Any]:
    """The `weights` of the group that a module belongs to: named, or by pattern, or by its class."""
    module = stem.removesuffix(".")
    groups = parts.scheme.settings.get("config_groups")
    listed = [group for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []
    tests: list[Callable[[str], bool]] = [
        lambda target: target == module,
        lambda target: target.startswith("re:") and _matches(target[3:], module, code),
        lambda target: not target.startswith("re:") and "." not in target,
    ]
    for test in tests:
        for group in listed:
            listed_targets = group.get("targets")
            targets = [t for t in listed_targets if isinstance(t, str)] if isinstance(listed_targets, list) else []
            if any(map(test, targets)) and isinstance(group.get("weights"), dict):
                return group["weights"]
    raise FormatError(f"{place(code)} are codes, but no config_groups of config.json say of what kind")


def _matches(pattern: str, module: str, code: TensorRef) -> bool:
    try:
        return re.match(pattern, module) is not None
    except re.error as error:
        raise FormatError(f"{place(code)}: config.json has the target {pattern!r:.60}: {error}") from None


def _blocks(arguments: Mapping[str, Any], columns: int, code: TensorRef) -> list[tuple[int, int]]:
    """The sizes of blocks that a scale may be for."""
    group, blocks = arguments.get("group_size"), arguments.get("block_structure")
    found = []
    if type(group) is int and group > 0:
        if columns % group:
            raise FormatError(f"{place(code)}: groups of {group} do not divide {columns} columns")
        found.append((1, group))
    if isinstance(blocks, (list, tuple)) and len(blocks) == 2 and all(type(b) is int and b > 0 for b in blocks):
        found.append((blocks[0], blocks[1]))
    return found


# ---------------------------------------------------------------- codes


def _plain(parts: Parts, code: TensorRef, stem: str, arguments: Mapping[str, Any]) -> GridTensor:
    if code.dtype.name not in ("I8", *CODES) or len(code.shape) < 2:
        raise FormatError(
            f"{place(code)} is {code.dtype} {list(code.shape)} beside a scale; codes are int8 or float8 matrices. Was "
            "it saved before it was compressed?"
        )
    scale = parts.need(code, f"{stem}weight_scale", SCALES)
    grid = grid_of(code, scale, code.shape, _blocks(arguments, code.shape[-1], code))
    zero = parts.find(code, f"{stem}weight_zero_point", ("I8", *CODES, *FLOATS), scale.shape)
    return GridTensor(
        code.name, code.shape, code, parts.native, widen_as(code.dtype.name), BlockNumbers(scale, grid),
        None if zero is None else BlockNumbers(zero, grid), width=grid.width, index=_index(parts, code, stem, grid),
    )  # fmt: skip


def _index(parts: Parts, code: TensorRef, stem: str, grid: Grid) -> Callable[[], np.ndarray | None]:
    """Reads the group of each column, where it is stored; -1 throughout means that it is not used."""
    ref = parts.find(code, f"{stem}weight_g_idx", ("I32", "I64"), (grid.columns,))

    def read() -> np.ndarray | None:
        if ref is None or grid.across == 1 or (ref.to_numpy() == -1).any():
            return None
        return group_index(ref, grid.width, grid.across)

    return read


def _packed(parts: Parts, code: TensorRef, stem: str, arguments: Mapping[str, Any]) -> GridTensor:
    bits = arguments.get("num_bits")
    if type(bits) is not int or not 1 <= bits <= 8 or arguments.get("type", "int") != "int":
        raise SourceError(
            f"{place(code)}: packed codes of {bits!r:.40} bits, type {arguments.get('type')!r:.40}; integers of 1 to 8 "
            "bits are understood"
        )
    said = parts.need(code, f"{stem}weight_shape", ("I64", "I32"), (len(code.shape),))
    shape = tuple(int(size) for size in said.to_numpy())
    if len(shape) < 2 or min(shape) < 0 or code.shape != (*shape[:-1], -(-shape[-1] * bits // 32)):
        raise FormatError(
            f"{place(code)} {list(code.shape)} does not hold {list(shape)} in {bits} bits, as {said.name!r} says"
        )
    columns, offset = shape[-1], np.float32(1 << bits - 1)
    scale = parts.need(code, f"{stem}weight_scale", FLOATS)
    grid = grid_of(code, scale, shape, _blocks(arguments, columns, code))

    def widen(stored: np.ndarray) -> np.ndarray:
        values = unpack(stored, bits, columns).astype(np.float32)
        values -= offset
        return values

    return GridTensor(
        f"{stem}weight", shape, code, parts.native, widen, BlockNumbers(scale, grid),
        _zeros(parts, code, stem, scale, grid, bits), width=grid.width, index=_index(parts, code, stem, grid),
    )  # fmt: skip


def _zeros(parts: Parts, code: TensorRef, stem: str, scale: TensorRef, grid: Grid, bits: int) -> Numbers | None:
    name = f"{stem}weight_zero_point"
    if name not in parts.tensors or parts.tensors[name].dtype.name != "I32":
        zero = parts.find(code, name, ("I8",), scale.shape)
        return None if zero is None else BlockNumbers(zero, grid)
    if grid.height != 1 or len(code.shape) != 2:
        raise SourceError(f"{place(parts.tensors[name])}: packed zero points of other than rows are not known here")
    return _PackedZeros(parts.need(code, name, ("I32",), (-(-grid.rows * bits // 32), grid.across)), bits)


@dataclass(frozen=True, eq=False)
class _PackedZeros:
    """Zero points [rows, groups], packed along the rows: words [rows bits / 32, groups]."""

    ref: TensorRef
    bits: int

    def read(self, first: int, last: int) -> np.ndarray:
        groups = self.ref.shape[1]
        low, high = first // 32 * 32, -(-last // 32) * 32  # as many codes fill whole words
        top = min(self.ref.shape[0], high * self.bits // 32)
        words = raw(self.ref, low * self.bits // 32 * groups, top * groups).view("<u4").reshape(-1, groups)
        packed = np.ascontiguousarray(words.T).view(np.uint8).reshape(groups, -1)
        codes = unpack(packed, self.bits, last - low)[:, first - low :]
        return codes.T.astype(np.float32) - np.float32(1 << self.bits - 1)


def _fp4(parts: Parts, code: TensorRef, stem: str, arguments: Mapping[str, Any]) -> GridTensor:
    group = arguments.get("group_size")
    if code.dtype.name != "U8" or len(code.shape) < 2 or group not in (16, 32) or arguments.get("type") != "float":
        raise FormatError(
            f"{place(code)} is {code.dtype} {list(code.shape)} in groups of {group!r:.40}; integers are packed in "
            "int32, and FP4 in bytes, in groups of 16 (nvfp4) or 32 (mxfp4)"
        )
    shape = (*code.shape[:-1], 2 * code.shape[-1])
    blocks = _blocks(arguments, shape[-1], code)
    scale = parts.need(
        code, f"{stem}weight_scale", ("F8_E4M3", *FLOATS) if group == 16 else ("U8", "F8_E8M0"),
        (*shape[:-1], shape[-1] // group),
    )  # fmt: skip
    scales: Numbers = BlockNumbers(scale, grid_of(code, scale, shape, blocks))
    if group == 16:
        whole = parts.need(code, f"{stem}weight_global_scale", FLOATS, (), (1,))
        scales = _Divided(scales, whole)

    def widen(stored: np.ndarray) -> np.ndarray:
        return np.take(_PAIRS, stored).view(np.float32).reshape(len(stored), -1)

    return GridTensor(f"{stem}weight", shape, code, parts.native, widen, scales, width=group)


@dataclass(frozen=True, eq=False)
class _Divided:
    """Scales of groups, divided by that of the tensor."""

    groups: Numbers
    whole: TensorRef

    def read(self, first: int, last: int) -> np.ndarray:
        return self.groups.read(first, last) / numbers(self.whole)[0]
