"""One rounding from float64 to a narrow type, in torch (which would go through float32 and round twice)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["round_once"]

E4M3_OVERFLOW = 464.0  # halfway between 448, the largest number, and what would come next


def round_once(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`values` in `dtype`, rounded to nearest even once.

    float64 goes to 16 and 8 bits through float32 rounded to odd, which makes the second rounding exact
    (Boldo and Melquiond 2005). Where a gradient is wanted, torch's own conversion is used.
    """
    import torch

    if values.dtype != torch.float64 or dtype in (torch.float32, torch.float64) or values.requires_grad:
        return _overflow(values, values.to(dtype))
    single = values.to(torch.float32)
    bits = single.view(torch.int32)
    away = single.double().abs() > values.abs()
    odd = (bits - away.to(torch.int32)) | 1
    inexact = (single.double() != values) & ~values.isnan()
    return _overflow(values, torch.where(inexact, odd, bits).view(torch.float32).to(dtype))


def _overflow(values: torch.Tensor, narrow: torch.Tensor) -> torch.Tensor:
    """NaN where e4m3 overflows, in every version of torch: from 2.13 on it clips to 448, which hides the loss."""
    import torch

    if narrow.dtype != torch.float8_e4m3fn:
        return narrow
    nan = torch.full_like(narrow, torch.nan)
    return torch.where(values.abs() > E4M3_OVERFLOW, nan.view(torch.uint8), narrow.view(torch.uint8)).view(narrow.dtype)
