"""GPTQ (Frantar et al. 2022, arXiv 2210.17323) as AutoGPTQ and GPTQModel store it: 2, 3, 4 or 8 bits, by groups.

W[j, i] = (q[i, j] - z[g(i), j]) s[g(i), j]. `qweight` int32 [in bits / 32, out] packs the inputs of an output without
gaps, the first in the lowest bits; `qzeros` int32 [groups, out bits / 32] packs the outputs of a group; `scales`
[groups, out]; `g_idx` [in] is the group of each input (`desc_act`), or else it is i // group_size. The first
`checkpoint_format`, `gptq`, stores z - 1; `gptq_v2` stores z. Layout of AutoGPTQ's `qlinear_cuda.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from eutectic.errors import FormatError, SourceError
from eutectic.weights.dtypes import DType
from eutectic.weights.quantized.bits import unpack
from eutectic.weights.quantized.tensor import FLOATS, DequantisedTensor, Parts, Strips, place
from eutectic.weights.quantized.turned import Strip, TurnedTensor, columns, group_index
from eutectic.weights.tensor_ref import TensorRef

__all__ = ["dequantised", "group_size_of"]

BITS = (2, 3, 4, 8)


def dequantised(parts: Parts) -> dict[str, DequantisedTensor]:
    """The dense tensor for each tensor of codes."""
    settings = parts.scheme.settings
    bits = settings.get("bits")
    stored = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    if settings.get("is_marlin_format") or stored not in ("gptq", "gptq_v2"):
        named = "marlin" if settings.get("is_marlin_format") else stored
        raise SourceError(
            f"{parts.tensors.path}: GPTQ in the layout {named!r:.40} is arranged for one kernel and not known here; "
            "use the checkpoint with checkpoint_format gptq or gptq_v2, or the one from before quantisation"
        )
    found: dict[str, DequantisedTensor] = {}
    for name, code in parts.tensors.items():
        if not name.endswith(".qweight"):
            continue
        stem = name.removesuffix("qweight")
        if type(bits) is not int or bits not in BITS:
            raise SourceError(f"{place(code)}: GPTQ with bits {bits!r:.40}; {BITS} are understood")
        if code.dtype.name != "I32" or len(code.shape) != 2 or code.shape[0] * 32 % bits or code.shape[1] * bits % 32:
            raise FormatError(
                f"{place(code)} is {code.dtype} {list(code.shape)}; {bits} bits are packed in int32 words"
            )
        inputs, outputs = code.shape[0] * 32 // bits, code.shape[1]
        group = group_size_of(settings.get("group_size"), inputs, code)
        groups = -(-inputs // group)
        zeros = parts.need(code, f"{stem}qzeros", ("I32",), (groups, outputs * bits // 32))
        scales = parts.need(code, f"{stem}scales", FLOATS, (groups, outputs))
        index = parts.find(code, f"{stem}g_idx", ("I32", "I64"), (inputs,))
        found[name] = _GPTQ(
            f"{stem}weight", (outputs, inputs), (code, zeros, scales, index), parts.native, parts.strips, bits=bits,
            group=group, plus=stored == "gptq",
        )  # fmt: skip
    return found


def group_size_of(size: Any, inputs: int, code: TensorRef) -> int:
    """The inputs of a group; -1 and None mean all."""
    if size in (None, -1):
        return max(1, inputs)
    if type(size) is not int or size < 1:
        raise FormatError(f"{place(code)}: config.json states group_size {size!r:.40}, not a number of inputs")
    return size


class _GPTQ(TurnedTensor):
    """A strip keeps the packed words of each output."""

    def __init__(
        self, name: str, shape: tuple[int, int], refs: tuple[TensorRef, TensorRef, TensorRef, TensorRef | None],
        native: DType, strips: Strips, *, bits: int, group: int, plus: bool,
    ) -> None:  # fmt: skip
        self.groups = -(-shape[1] // group)
        each = shape[1] * bits // 8 + 8 * self.groups
        super().__init__(name, shape, refs[0], native, strips, group=group, bytes_each=each)
        self.refs, self.bits, self.plus = refs, bits, plus

    def read_strip(self, first: int, last: int) -> Strip:
        codes, zeros, scales, index = self.refs
        words = np.ascontiguousarray(columns(codes, first, last).T)  # [outputs, words]
        packed = columns(zeros, first * self.bits // 32, last * self.bits // 32)
        z = unpack(packed.reshape(self.groups, -1).view(np.uint8), self.bits, last - first).astype(np.float32)
        return Strip(
            words.view(np.uint8).reshape(last - first, -1),
            np.ascontiguousarray(z.T) + np.float32(self.plus),
            np.ascontiguousarray(columns(scales, first, last).T.astype(np.float32)),
            None if index is None else group_index(index, self.group, self.groups),
        )

    def widen(self, codes: np.ndarray) -> np.ndarray:
        return unpack(codes, self.bits, self.shape[1]).astype(np.float32)
