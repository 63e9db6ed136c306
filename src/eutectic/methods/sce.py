"""SCE: select what varies, calculate weights from energies, erase the minority sign."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from eutectic.methods.method import Range, Setting, merge_method
from eutectic.ops.program import Program
from eutectic.ops.quantile import largest_of
from eutectic.ops.select_erase import SelectErase, energy_weights
from eutectic.ops.signs import agree

if TYPE_CHECKING:
    import torch

__all__ = ["sce"]


def _lower(setting: Setting) -> Program:
    return SelectErase(setting.sources, setting.parameters["select_topk"])


@merge_method(
    summary="select by variance, weigh by energy, erase the minority sign",
    reference="Wan et al., FuseChat, 2024 (arXiv 2408.07990), sec. 3.3",
    space="delta",
    scope="tensor",
    base="required",
    sparsifies=True,
    ignored=("int8_mask",),
    lower=_lower,
)
def sce(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    select_topk: Annotated[float, Range(0, 1), "share of the varying entries that is kept"] = 1.0,
) -> torch.Tensor:
    """SCE: θ = θ0 + Σ w_k m_k δ_k / Σ w_k m_k, w_k = mean δ_k² / Σ mean δ_j², m_k = [sign δ_k = sign Σ δ_j].

    Below a `select_topk` of 1 only the floor(select_topk · v) entries of largest variance over the sources take part,
    v being how many have any; ties go by the lowest flat index.

    Args:
        tensors: the sources θ_k; base: θ0.
        select_topk: share of the varying entries that is kept; 1 keeps all entries.

    >>> import torch
    >>> sce([torch.tensor([2.0, 1.0]), torch.tensor([-1.0, 1.0])], base=torch.zeros(2))
    tensor([2., 1.])
    """
    import torch

    deltas = [tensor - base for tensor in tensors]
    if select_topk < 1:
        mean = _sum(deltas) / len(deltas)
        variance = (_sum([(d - mean) * (d - mean) for d in deltas]) / len(deltas)).detach()
        chosen = largest_of(variance, int(int(variance.count_nonzero()) * select_topk))
        deltas = [delta.where(chosen, 0.0) for delta in deltas]
    energies = [(delta.double() ** 2).sum() / max(1, delta.numel()) for delta in deltas]
    weights = [torch.as_tensor(w, device=base.device).to(base.dtype) for w in energy_weights(energies)]
    masks = agree(deltas, [1.0] * len(deltas), "paper")
    total, share = torch.zeros_like(base), torch.zeros_like(base)
    for delta, weight, mask in zip(deltas, weights, masks, strict=True):
        total = total + (delta * weight).where(mask, 0.0)
        share = share + weight.where(mask, 0.0)
    return base + total / share.clamp(min=1e-6)


def _sum(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum in the order given, from zero."""
    total = tensors[0] * 0.0
    for tensor in tensors:
        total = total + tensor
    return total
