"""NearSwap: take the other model's value where it is near."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from eutectic.methods.method import Range, Setting, merge_method
from eutectic.ops.entry_programs import NearSwap
from eutectic.ops.program import Program

if TYPE_CHECKING:
    import torch

__all__ = ["nearswap"]


def _lower(setting: Setting) -> Program:
    return NearSwap(setting.parameters["t"])


@merge_method(
    summary="move towards the other model where the two are near",
    reference="alchemonaut, QuartetAnemoi-70B model card (2024), as in mergekit 0.1.5",
    base="required",
    sources=(1, 1),
    idempotent=False,  # the base is left by at most t
    lower=_lower,
)
def nearswap(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    t: Annotated[float, Range(0), "distance up to which the other model is taken whole"],
) -> torch.Tensor:
    """NearSwap: θ = w θ_1 + (1 - w) θ0 with w = clip(t / max(abs(θ0 - θ_1), 1e-6), 0, 1), entry by entry.

    Args:
        tensors: exactly one, θ_1; base: θ0.
        t: distance up to which θ_1 is taken whole; farther entries move by t; required.

    >>> import torch
    >>> nearswap([torch.tensor([1.0, 5.0])], base=torch.tensor([0.5, 1.0]), t=1.0)
    tensor([1., 2.])
    """
    import torch

    # the kernel's parameter is float32, too
    step = torch.tensor(t, dtype=torch.float32, device=base.device).to(base.dtype)
    w = (step / (base - tensors[0]).abs().clamp(min=1e-6)).clamp(max=1.0)
    return w * tensors[0] + (1.0 - w) * base
