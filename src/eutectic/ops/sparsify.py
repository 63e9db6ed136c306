"""Links that make a delta sparse, and the rescaling that may follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eutectic.ops.quantile import kept_count, largest, largest_of, outlier_count
from eutectic.ops.random import Draws

if TYPE_CHECKING:
    import torch

__all__ = ["drop", "rescale_kind", "restore", "trim", "trim_both"]


def trim(deltas: Sequence[torch.Tensor], density: Sequence[float]) -> list[torch.Tensor]:
    """Keep exactly the `kept_count(density, n)` entries of largest magnitude of each delta."""
    return [delta if d >= 1 else delta.where(largest(delta, d), 0.0) for delta, d in zip(deltas, density, strict=True)]


def trim_both(
    deltas: Sequence[torch.Tensor], density: Sequence[float], outliers: Sequence[float]
) -> list[torch.Tensor]:
    """Pass over the `outlier_count` largest entries of each delta and keep the next `kept_count(density, n)`."""
    trimmed = []
    for delta, d, share in zip(deltas, density, outliers, strict=True):
        keep = kept_count(d, delta.numel())
        top = outlier_count(share, keep, delta.numel())
        middle = largest_of(delta, keep + top) & ~largest_of(delta, top)
        trimmed.append(delta if d >= 1 else delta.where(middle, 0.0))
    return trimmed


def drop(deltas: Sequence[torch.Tensor], density: Sequence[float], draws: Draws) -> list[torch.Tensor]:
    """Keep each entry with probability `density`, independently per source and entry."""
    pairs = zip(deltas, density, strict=True)
    return [delta.where(draws.keep(source, delta, d), 0.0) for source, (delta, d) in enumerate(pairs)]


def rescale_kind(rescale: bool | str) -> str:
    """mergekit's booleans in our words: true is "l1", false is "none"."""
    return {True: "l1", False: "none"}[rescale] if isinstance(rescale, bool) else rescale


def restore(
    kept: Sequence[torch.Tensor],
    deltas: Sequence[torch.Tensor],
    density: Sequence[float],
    rescale: bool | str,
) -> list[torch.Tensor]:
    """Scale what was kept: "l1" to the delta's L1 norm before (mergekit), "inverse_density" by 1/p (DARE)."""
    kind = rescale_kind(rescale)
    if kind == "none":
        return list(kept)
    if kind == "inverse_density":
        return [k * (1.0 / d) if d else k for k, d in zip(kept, density, strict=True)]
    restored = []
    for sparse, delta in zip(kept, deltas, strict=True):
        before, after = delta.double().abs().sum(), sparse.double().abs().sum()
        one = before.new_ones(())
        factor = (before / after.where(after > 0, one)).where(after > 0, one)  # no 0 / 0, not even in the gradient
        restored.append(sparse * factor.to(sparse.dtype))
    return restored
