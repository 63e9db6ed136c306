"""RAM: changes that only one model makes are kept whole, shared ones are averaged; RAM+ makes up for the averaging."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from eutectic.methods.method import Range, Setting, merge_method
from eutectic.ops.entry_programs import TouchedSum, touched_factors
from eutectic.ops.program import Program

if TYPE_CHECKING:
    import torch

__all__ = ["ram", "ramplus_tl"]

_FACTS: dict[str, Any] = {
    "reference": "Reinforced Agent Merging, 2026 (arXiv 2601.13572)",
    "space": "delta",
    "base": "required",
    "sparsifies": True,
}


def _lower(setting: Setting) -> Program:
    return TouchedSum(setting.sources, setting.parameters["epsilon"])


@merge_method(
    summary="keep changes that one model makes, average shared ones", lower=_lower, idempotent=False, **_FACTS
)
def ram(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    epsilon: Annotated[float, Range(0), "a change is larger than this"] = 1e-5,
) -> torch.Tensor:
    """RAM: θ = θ0 + the mean of the changes abs(δ_k) > ε of an entry (so an only one is kept whole).

    Args:
        tensors: the sources θ_k; base: θ0.
        epsilon: ε, in units of the weights.

    >>> import torch
    >>> ram([torch.tensor([2.0, 1.0]), torch.tensor([0.0, 3.0])], base=torch.zeros(2))
    tensor([2., 2.])
    """
    return _merge(tensors, base, epsilon, None)


def _lower_plus(setting: Setting) -> Program:
    p = setting.parameters
    return TouchedSum(setting.sources, p["epsilon"], (p["r"], p["alpha"]))


@merge_method(
    summary="RAM, with each model's own changes scaled up for what was averaged",
    scope="tensor",
    idempotent=False,
    departures=("the paper counts shared and own entries over the whole model, mergekit and Eutectic per tensor",),
    lower=_lower_plus,
    **_FACTS,
)
def ramplus_tl(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    r: Annotated[float, "how strongly averaged entries are made up for"] = 0.1,
    alpha: Annotated[float, Range(0), "most of the ratio that counts"] = 0.2,
    epsilon: Annotated[float, Range(0), "a change is larger than this"] = 1e-5,
) -> torch.Tensor:
    """RAM+, tensor-local: as `ram`, an only change times 1 + r clip(ρ_k, 0, α), ρ_k = shared / own entries of k.

    Args:
        tensors: the sources θ_k; base: θ0.
        r: strength of the correction.
        alpha: α, the largest ratio that counts (it is used where a source has no entries of its own).
        epsilon: ε, in units of the weights.

    >>> import torch
    >>> ramplus_tl([torch.tensor([2.0, 1.0]), torch.tensor([0.0, 3.0])], base=torch.zeros(2), r=0.5, alpha=0.2)
    tensor([2.2000, 2.0000])
    """
    return _merge(tensors, base, epsilon, (r, alpha))


def _merge(
    tensors: Sequence[torch.Tensor], base: torch.Tensor, epsilon: float, gain: tuple[float, float] | None
) -> torch.Tensor:
    import torch

    # the kernel's parameter is float32, too
    limit = torch.tensor(epsilon, dtype=torch.float32, device=base.device).to(base.dtype)
    deltas = [tensor - base for tensor in tensors]
    active = [delta.abs() > limit for delta in deltas]
    count = torch.zeros_like(base)
    total = torch.zeros_like(base)
    for delta, mask in zip(deltas, active, strict=True):
        count = count + mask.to(base.dtype)
        total = total + delta.where(mask, 0.0)
    mean = total / count.clamp(min=1.0)
    if gain is None:
        return base + mean
    alone = torch.ones_like(base)
    for mask in active:
        shared, own = int((mask & (count > 1)).sum()), int((mask & (count == 1)).sum())
        factor = torch.tensor(touched_factors(shared, own, *gain), dtype=torch.float32, device=base.device)
        alone = torch.where(mask, factor.to(base.dtype), alone)
    return base + torch.where(count == 1, mean * alone, mean)
