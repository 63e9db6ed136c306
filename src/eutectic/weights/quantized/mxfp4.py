"""MXFP4 (`quant_method: mxfp4`), as gpt-oss stores its experts: FP4 codes with one exponent for each 32 of them.

W[e, h, n] = v(q[e, n, h]) 2^(s[e, n, h // 32] - 127), v the sixteen numbers of E2M1. `NAME_blocks` [e, n, h / 32, 16]
has two codes to a byte, the first in the low half; `NAME_scales` [e, n, h / 32] are E8M0 (255 is not a number). The
dense tensor is turned, [e, h, n]: `hidden_states @ W`, as transformers' `integrations/mxfp4.py` makes it. Formats of
the numbers: OCP Microscaling Formats (MX) specification 1.0.
"""

from __future__ import annotations

import numpy as np

from eutectic.errors import FormatError
from eutectic.weights.dtypes import DType
from eutectic.weights.quantized.bits import E2M1, unpack
from eutectic.weights.quantized.tensor import STRIP, DequantisedTensor, Parts, Strips, place
from eutectic.weights.tensor_ref import TensorRef

__all__ = ["dequantised"]

BLOCK = 32
_NUMBERS = np.array(E2M1, dtype=np.float32)


def dequantised(parts: Parts) -> dict[str, DequantisedTensor]:
    """The dense tensor for each tensor of codes."""
    found: dict[str, DequantisedTensor] = {}
    for name, code in parts.tensors.items():
        if not name.endswith("_blocks"):
            continue
        stem = name.removesuffix("_blocks")
        if code.dtype.name != "U8" or len(code.shape) != 4 or code.shape[3] * 2 != BLOCK:
            raise FormatError(
                f"{place(code)} is {code.dtype} {list(code.shape)}; MXFP4 codes are uint8 [experts, n, blocks, 16]"
            )
        scales = parts.need(code, f"{stem}_scales", ("U8", "F8_E8M0"), code.shape[:3])
        found[name] = _Turned(stem, code, scales, parts.native, parts.strips)
    return found


class _Turned(DequantisedTensor):
    """Rows of [e, h, n] from codes that lie as [e, n, h]: a strip of whole blocks of h is unpacked at a time."""

    def __init__(self, name: str, codes: TensorRef, scales: TensorRef, native: DType, strips: Strips) -> None:
        self.experts, self.n, self.blocks, _ = codes.shape
        super().__init__(name, (self.experts, self.blocks * BLOCK, self.n), codes, native, self.n)
        self.scales, self.strips = scales, strips
        self.wide = max(1, min(self.blocks, STRIP // max(1, self.n * BLOCK)))  # blocks of a strip
        self.count = -(-self.blocks // max(1, self.wide))  # strips of one expert
        strips.largest = max(strips.largest, self.wide * self.n * (BLOCK + 4))

    def decode(self, start: int, stop: int) -> np.ndarray:
        values = np.empty((stop - start) // self.unit * self.n, dtype=np.float32).reshape(-1, self.n)
        first = start // self.unit
        height, tall = self.blocks * BLOCK, self.wide * BLOCK
        at = 0
        while at < len(values):
            expert, row = divmod(first + at, height)
            number, low = divmod(row, tall)
            codes, powers = self.strips.of(self, expert * self.count + number, self._strip)
            high = min(len(codes), low + len(values) - at)
            part = values[at : at + high - low]
            np.take(_NUMBERS, codes[low:high], out=part)
            part *= powers[np.arange(low, high) // BLOCK]
            at += high - low
        return values.reshape(-1)

    def _strip(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Codes uint8 [h, n] and scales float32 [h / 32, n] of one strip."""
        expert, strip = divmod(number, self.count)
        low = strip * self.wide
        wide = min(self.blocks - low, self.wide)
        half = BLOCK // 2
        packed = np.empty((self.n, wide * half), dtype=np.uint8)
        exponents = np.empty((self.n, wide), dtype=np.uint8)
        for row in range(self.n):
            at = (expert * self.n + row) * self.blocks + low
            self.codes.read_into(packed[row].data, at * half, (at + wide) * half)
            self.scales.read_into(exponents[row].data, at, at + wide)
        powers = np.ldexp(np.float32(1), exponents.T.astype(np.int32) - 127)
        powers[exponents.T == 255] = np.nan
        return np.ascontiguousarray(unpack(packed, 4, wide * BLOCK).T), powers
