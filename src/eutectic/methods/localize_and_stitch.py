"""Localize-and-Stitch without data: keep each task's largest changes, average where they overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from eutectic.methods.method import PerSource, Range, Setting, each, merge_method
from eutectic.ops.program import Program
from eutectic.ops.quantile import largest
from eutectic.ops.sparse_sum import StitchedMean

if TYPE_CHECKING:
    import torch

__all__ = ["localize_and_stitch"]


def _lower(setting: Setting) -> Program:
    p = setting.parameters
    return StitchedMean(p["weight"], p["density"], p["lambda"])


def _work_bytes(setting: Setting) -> int:
    return 18 * 8 * math.prod(setting.shape)


@merge_method(
    summary="each task's largest changes, averaged where they overlap",
    reference="He et al., Localize-and-Stitch, TMLR 2025 (arXiv 2408.13656), dataless variant",
    space="delta",
    scope="tensor",
    base="required",
    sparsifies=True,
    idempotent=False,
    paper={"scope": "model"},
    departures=("the paper selects over the whole model's vector, the default here is per tensor (scope)",),
    lower=_lower,
    work_bytes=_work_bytes,
)
def localize_and_stitch(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Annotated[PerSource[float], "weight of each task vector"] = each(1.0),
    density: Annotated[PerSource[float], Range(0, 1), "share of entries kept per source"] = each(0.1),
    lambda_: Annotated[float, "scale of the stitched task vector"] = 1.0,
    scope: Annotated[Literal["tensor", "model"], "select per tensor, or over the whole vector"] = "tensor",
) -> torch.Tensor:
    """Localize-and-Stitch, dataless: θ = θ0 + λ Σ m_k w_k δ_k / Σ m_k; m_k marks the largest |δ_k|.

    Exactly k = max(1, floor(density · n)) entries are marked per source (none at density 0), ties to the lowest flat
    index, but for those without any change. Entries that no source marks are the base's. Given plain tensors, each
    call is one tensor (or one flattened model); `scope: model` in a recipe selects over all tensors together.

    Args:
        tensors: the sources θ_k; base: θ0.
        weight: w_k, one number or one per source.
        density: kept share, 0 to 1, one number or one per source.
        lambda_: λ (``lambda`` in a recipe).
        scope: "tensor" or "model" (paper).

    >>> import torch
    >>> a, b = torch.tensor([4.0, 1.0, 0.0]), torch.tensor([2.0, 0.0, -3.0])
    >>> localize_and_stitch([a, b], base=torch.zeros(3), density=0.7)
    tensor([ 3.,  1., -3.])
    """
    import torch

    origin = base.double()
    total, count = torch.zeros_like(origin), torch.zeros_like(origin)
    for tensor, w, d in zip(tensors, weight, density, strict=True):
        delta, change = tensor.double() - origin, tensor - base
        marked = largest(change, d) & (change != 0)
        total, count = total + (delta * w).where(marked, 0.0), count + marked
    return origin + lambda_ * total / count.clamp(min=1)
