"""Consensus: keep the entries of the summed change that several tasks need, drop what one alone or none does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from eutectic.errors import MethodError
from eutectic.methods.method import PerSource, Range, Setting, each, merge_method
from eutectic.ops.entry_programs import AgreedSum
from eutectic.ops.program import Program
from eutectic.ops.weighted_sum import sum_weighted

if TYPE_CHECKING:
    import torch

__all__ = ["consensus"]


def _lower(setting: Setting) -> Program:
    p = setting.parameters
    _check_agreement(p["agreement"], setting.sources)
    return AgreedSum(p["weight"], p["mask_lambda"], p["agreement"], p["lambda"])


def _check_agreement(agreement: int, sources: int) -> None:
    if agreement > sources:
        raise MethodError(
            f"consensus: agreement is {agreement}, and there are {sources} sources, so that nothing could be kept; "
            "set it to that number at most"
        )


@merge_method(
    summary="sum of task vectors where enough tasks need it",
    reference="Wang et al., Localizing Task Information, Consensus Merging, ICML 2024 (arXiv 2405.07813)",
    space="delta",
    base="required",
    sparsifies=True,
    sources=(2, None),
    idempotent=False,
    lower=_lower,
)
def consensus(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Annotated[PerSource[float], "weight of each task vector"] = each(1.0),
    lambda_: Annotated[float, "scale of the merged task vector"] = 1.0,
    mask_lambda: Annotated[PerSource[float], Range(0, 100), "how selective each task's mask is"] = each(0.4),
    agreement: Annotated[int, Range(0), "fewest masks that must hold an entry"] = 2,
) -> torch.Tensor:
    """Consensus: θ = θ0 + λ τ [#{k : |w_k δ_k| > l_k |τ - w_k δ_k|} ≥ agreement], entry by entry, τ = Σ w_k δ_k.

    An entry is in the mask of task k where the task's own change outweighs l_k (`mask_lambda`) times that of all
    others together. `agreement: 2` drops what only one task needs (selfish) and what none needs (catastrophic).

    Args:
        tensors: the sources θ_k, at least two; base: θ0.
        weight: w_k, one number or one per source.
        lambda_: λ (``lambda`` in a recipe).
        mask_lambda: l_k, one number or one per source.
        agreement: fewest masks.

    >>> import torch
    >>> a, b = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, -2.0])
    >>> consensus([a, b], base=torch.zeros(3))
    tensor([2., 0., 0.])
    """
    import torch

    _check_agreement(agreement, len(tensors))
    origin = base.double()
    deltas = [tensor.double() - origin for tensor in tensors]
    total, votes = sum_weighted(deltas, weight), torch.zeros_like(base, dtype=torch.int64)
    for delta, w, selective in zip(deltas, weight, mask_lambda, strict=True):
        own = delta * w
        votes = votes + (own.abs() > selective * (total - own).abs())
    return origin + (lambda_ * total).where(votes >= agreement, 0.0)
