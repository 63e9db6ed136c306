"""Passthrough: the copy, and the scaled copy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import eutectic
from eutectic.methods import passthrough


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.5, -1.1, 0.0])
def test_every_element_is_the_float64_product_rounded_once(
    dtype: torch.dtype, scale: float, sources: Callable, round_exactly: Callable
) -> None:
    tensor = sources(1, dtype)[0]
    expected = round_exactly(scale * tensor.double().numpy(), dtype)
    assert (passthrough([tensor], scale=scale).double().numpy() == expected).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("torch_only", [True, False])
def test_a_copy_keeps_every_bit(dtype: torch.dtype, torch_only: bool, tmp_path: Path) -> None:
    patterns = torch.arange(1 << 16).to(torch.int16).view(dtype)
    patterns = patterns[patterns.isfinite()]
    save_file({"w": patterns}, tmp_path / "model.safetensors")
    recipe = {"merge_method": "passthrough", "models": [{"model": str(tmp_path)}]}
    merged = eutectic.plan(recipe, torch_only=torch_only)["w"].to_torch()
    changed = merged.view(torch.int16) != patterns.view(torch.int16)
    assert not changed.any(), f"{patterns[changed].tolist()} became {merged[changed].tolist()}"
