"""TALL-masks: one bit for each element and expert says where the sum of all deltas is the expert's own.

tau_MT = sum_t tau_t, m_t = |tau_t| > lambda_t |tau_MT - tau_t|, theta_t ~ theta_0 + m_t tau_MT. The masks are made
from the exact sum; what is stored of it is rounded, to the core's type or to float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eutectic.pools.scheme import Parameter, Part, Parts, Scheme, Span
from eutectic.weights.dtypes import BY_NAME, DType

__all__ = ["TALL"]


def _parts(shape: tuple[int, ...], dtype: DType, count: int, settings: Mapping[str, Any]) -> tuple[Parts, Parts]:
    kind = BY_NAME["F32"] if settings["sum"] == "float32" and dtype.name != "F64" else dtype
    return {"sum": Part(kind, shape)}, {"mask": Part.bits(shape)}


def _encode(
    span: Span, core: np.ndarray, experts: Sequence[np.ndarray], settings: Sequence[Mapping[str, Any]], totals: Any
) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    from eutectic.pools.mask_kernels import add_delta, dominant

    total = np.zeros(span.numel, dtype=np.float64)
    for expert in experts:
        add_delta(total, core, expert)
    masks = []
    for expert, own in zip(experts, settings, strict=True):
        bits = np.empty(-(-span.numel // 8), dtype=np.uint8)
        dominant(total, core, expert, float(own["mask_lambda"]), bits)
        masks.append({"mask": bits})
    return {"sum": total.astype(core.dtype)}, masks


def _decode(
    span: Span,
    core: np.ndarray,
    shared: Mapping[str, np.ndarray],
    own: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
) -> np.ndarray:
    from eutectic.pools.mask_kernels import add_masked

    values = np.empty_like(core)
    add_masked(core, shared["sum"], own["mask"], values)
    return values


TALL = Scheme(
    name="tall",
    summary="One bit for each element and expert selects from the sum of all deltas.",
    reference="Wang et al. 2024, Localizing Task Information for Improved Model Merging and Compression, "
    "arXiv 2405.07813",
    parameters={
        "mask_lambda": Parameter(
            0.4, "How much of the others' deltas the expert's own must exceed; less keeps more.", least=0.0, most=100.0,
            of_expert=True,
        ),
        "sum": Parameter(
            "core", "Type of the stored sum: that of the core, or float32.", choices=("core", "float32")
        ),
    },
    parts=_parts,
    encode=_encode,
    decode=_decode,
)  # fmt: skip
