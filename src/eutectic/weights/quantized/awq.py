"""AWQ (Lin et al. 2023, arXiv 2306.00978) as AutoAWQ stores it for its `gemm` kernels: 4 bits by groups of inputs.

W[j, i] = (q[i, j] - z[i // g, j]) s[i // g, j]. `qweight` int32 [in, out / 8] and `qzeros` int32 [groups, out / 8] pack
eight outputs in a word, in the order 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits up; `scales` [groups, out]. Layout of
AutoAWQ's `utils/packing_utils.py`.
"""

from __future__ import annotations

import numpy as np

from eutectic.errors import FormatError, SourceError
from eutectic.weights.dtypes import DType
from eutectic.weights.quantized.bits import unpack
from eutectic.weights.quantized.gptq import group_size_of
from eutectic.weights.quantized.tensor import FLOATS, DequantisedTensor, Parts, Strips, place
from eutectic.weights.quantized.turned import Strip, TurnedTensor, columns
from eutectic.weights.tensor_ref import TensorRef

__all__ = ["dequantised"]

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
PLACE = np.argsort(ORDER)  # where in its word each of eight outputs lies


def dequantised(parts: Parts) -> dict[str, DequantisedTensor]:
    """The dense tensor for each tensor of codes."""
    settings = parts.scheme.settings
    bits = settings.get("bits", settings.get("w_bit"))
    layout = str(settings.get("version") or settings.get("format") or "gemm").lower()
    if layout != "gemm" or bits != 4:
        raise SourceError(
            f"{parts.tensors.path}: AWQ in the layout {layout!r:.40} with bits {bits!r:.40} is not known here (gemm "
            "with 4 bits is); use the checkpoint from before quantisation, or dequantise it with AutoAWQ"
        )
    found: dict[str, DequantisedTensor] = {}
    for name, code in parts.tensors.items():
        if not name.endswith(".qweight"):
            continue
        stem = name.removesuffix("qweight")
        if code.dtype.name != "I32" or len(code.shape) != 2:
            raise FormatError(f"{place(code)} is {code.dtype} {list(code.shape)}; AWQ packs 8 outputs in an int32 word")
        inputs, outputs = code.shape[0], code.shape[1] * 8
        group = group_size_of(settings.get("group_size", settings.get("q_group_size")), inputs, code)
        groups = -(-inputs // group)
        zeros = parts.need(code, f"{stem}qzeros", ("I32",), (groups, code.shape[1]))
        scales = parts.need(code, f"{stem}scales", FLOATS, (groups, outputs))
        refs = (code, zeros, scales)
        found[name] = _AWQ(f"{stem}weight", (outputs, inputs), refs, parts.native, parts.strips, group)
    return found


class _AWQ(TurnedTensor):
    """A strip keeps the codes of each output, one to a byte."""

    def __init__(
        self, name: str, shape: tuple[int, int], refs: tuple[TensorRef, TensorRef, TensorRef], native: DType,
        strips: Strips, group: int,
    ) -> None:  # fmt: skip
        each = shape[1] + 8 * -(-shape[1] // group)
        super().__init__(name, shape, refs[0], native, strips, group=group, bytes_each=each)
        self.refs = refs

    def read_strip(self, first: int, last: int) -> Strip:
        codes, zeros, scales = self.refs
        return Strip(
            np.ascontiguousarray(_outputs(codes, first, last).T),
            np.ascontiguousarray(_outputs(zeros, first, last).T.astype(np.float32)),
            np.ascontiguousarray(columns(scales, first, last).T.astype(np.float32)),
            None,
        )

    def widen(self, codes: np.ndarray) -> np.ndarray:
        return codes.astype(np.float32)


def _outputs(packed: TensorRef, first: int, last: int) -> np.ndarray:
    """Codes uint8 [rows, outputs] of outputs first .. last, in order."""
    words = np.ascontiguousarray(columns(packed, first // 8, last // 8))
    codes = unpack(words.view(np.uint8).reshape(len(words), -1), 4, last - first)
    return codes.reshape(len(words), -1, 8)[:, :, PLACE].reshape(len(words), -1)
