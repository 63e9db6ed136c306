"""BitDelta: the sign of every delta in one bit, and one size for a row or a tensor.

theta_t ~ theta_0 + s sign(tau_t), s = mean |tau_t|: of all numbers s the one with the least squared error. A delta of
zero counts as positive. The paper trains s further on data; nothing is trained here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eutectic.pools.scheme import Parameter, Part, Parts, Scheme, Span
from eutectic.weights.dtypes import BY_NAME, DType

__all__ = ["BITDELTA"]


def _rows(shape: tuple[int, ...], settings: Mapping[str, Any]) -> int:
    """How many sizes a tensor has."""
    return shape[0] if settings["scale"] == "row" and len(shape) > 1 else 1


def _parts(shape: tuple[int, ...], dtype: DType, count: int, settings: Mapping[str, Any]) -> tuple[Parts, Parts]:
    kind = BY_NAME["F64" if dtype.name == "F64" else "F32"]
    return {}, {"sign": Part.bits(shape), "scale": Part(kind, (_rows(shape, settings),), "whole")}


def _total(span: Span, core: np.ndarray, expert: np.ndarray, settings: Mapping[str, Any]) -> np.ndarray:
    """Sum of |tau| of each row (or of the tensor), of this stretch."""
    from eutectic.pools.mask_kernels import add_sizes

    sums = np.zeros(_rows(span.shape, settings))
    if len(sums) == 1:
        add_sizes(core, expert, max(1, len(core)), sums)
    else:
        first = span.start // span.row
        add_sizes(core, expert, span.row, sums[first : first + len(core) // span.row])
    return sums


def _extend(
    span: Span, core: np.ndarray, shared: Any, expert: np.ndarray, settings: Mapping[str, Any], total: np.ndarray
) -> dict[str, np.ndarray]:
    from eutectic.pools.mask_kernels import negative

    bits = np.empty(-(-span.numel // 8), dtype=np.uint8)
    negative(core, expert, bits)
    each = int(np.prod(span.shape, dtype=np.int64)) // len(total)
    return {"sign": bits, "scale": total / max(1, each)}


def _encode(
    span: Span,
    core: np.ndarray,
    experts: Sequence[np.ndarray],
    settings: Sequence[Mapping[str, Any]],
    totals: Sequence[np.ndarray],
) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    return {}, [
        _extend(span, core, {}, expert, own, total)
        for expert, own, total in zip(experts, settings, totals, strict=True)
    ]


def _decode(
    span: Span,
    core: np.ndarray,
    shared: Mapping[str, np.ndarray],
    own: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
) -> np.ndarray:
    from eutectic.pools.mask_kernels import add_signed

    values, rows = np.empty_like(core), _rows(span.shape, settings)
    first = span.start // span.row if rows > 1 else 0
    wide = span.row if rows > 1 else max(1, int(np.prod(span.shape, dtype=np.int64)))
    scale = own["scale"][first:].astype(core.dtype)
    skipped = span.start - first * span.row if rows > 1 else 0
    add_signed(core, scale, wide, skipped, own["sign"], values)
    return values


BITDELTA = Scheme(
    name="bitdelta",
    summary="The sign of every delta, and one size for each row; experts do not depend on one another.",
    reference="Liu et al. 2024, BitDelta: Your Fine-Tune May Only Be Worth One Bit, arXiv 2402.10193",
    parameters={
        "scale": Parameter("row", "What has a size of its own.", choices=("row", "tensor")),
    },
    parts=_parts,
    encode=_encode,
    decode=_decode,
    encodes="row",
    total=_total,
    extend=_extend,
)
