"""FP8 with scales (`quant_method: fp8`): DeepSeek's and Qwen's blocks, or one scale for each tensor or row.

W[i, j] = q[i, j] S[i // m, j // n] with q of float8 E4M3 (or E5M2) and m x n from `weight_block_size`; the last blocks
may be smaller. S is `NAME_scale_inv`, or `NAME_scale` (both are multiplied with), of float32, bfloat16 or float16, or
of exponents, 2^(b - 127) (`scale_fmt: ue8m0`). The format is that of transformers' `integrations/finegrained_fp8.py`
and of DeepSeek-V3's `inference/kernel.py`; E4M3 and E5M2 are those of OCP's 8-bit floating point specification 1.0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from eutectic.errors import FormatError
from eutectic.weights.codec import widen
from eutectic.weights.quantized.grid import BlockNumbers, GridTensor, grid_of
from eutectic.weights.quantized.scheme import BLOCKS
from eutectic.weights.quantized.tensor import FLOATS, DequantisedTensor, Parts

__all__ = ["CODES", "dequantised", "widen_as"]

CODES = ("F8_E4M3", "F8_E5M2")
SCALES = (*FLOATS, "U8", "F8_E8M0")


def dequantised(parts: Parts) -> dict[str, DequantisedTensor]:
    """The dense tensor for each tensor of codes."""
    found: dict[str, DequantisedTensor] = {}
    blocks = _blocks(parts)
    for name, code in parts.tensors.items():
        if code.dtype.name not in CODES:
            continue
        near = next((end for end in ("_scale_inv", "_scale") if name + end in parts.tensors), "_scale_inv")
        scale = parts.need(code, name + near, SCALES)
        grid = grid_of(code, scale, code.shape, blocks)
        found[name] = GridTensor(
            name, code.shape, code, parts.native, widen_as(code.dtype.name), BlockNumbers(scale, grid), width=grid.width
        )
    return found


def widen_as(dtype: str) -> Any:
    """Bytes of an 8-bit type as float32."""
    return lambda stored: widen(stored, dtype).astype(np.float32, copy=False)


def _blocks(parts: Parts) -> list[tuple[int, int]]:
    blocks = parts.scheme.settings.get("weight_block_size", BLOCKS)
    if blocks is None:
        return []
    if not isinstance(blocks, (list, tuple)) or len(blocks) != 2 or not all(type(b) is int and b > 0 for b in blocks):
        raise FormatError(
            f"{parts.tensors.path}: config.json states weight_block_size {blocks!r:.60}, which is not two sizes"
        )
    return [(blocks[0], blocks[1])]
