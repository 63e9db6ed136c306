"""Localize-and-Stitch without data against numpy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import eutectic
from eutectic.methods import localize_and_stitch

Family = Callable[..., tuple[torch.Tensor, list[torch.Tensor], list[np.ndarray]]]
WEIGHT = [1.0, -0.5, 2.0]


def test_localize_and_stitch(family: Family) -> None:
    base, tensors, deltas = family(3, (50, 41))
    density = [0.1, 0.3, 0.5]
    ranked = [np.sort(np.abs(delta).ravel())[-int(d * delta.size)] for d, delta in zip(density, deltas, strict=True)]
    masks = np.stack([np.abs(delta) >= least for delta, least in zip(deltas, ranked, strict=True)])
    total = (masks * np.stack([w * delta for w, delta in zip(WEIGHT, deltas, strict=True)])).sum(0)
    expected = base.double().numpy() + 0.7 * total / np.maximum(masks.sum(0), 1)
    merged = localize_and_stitch(tensors, base=base, weight=WEIGHT, density=density, lambda_=0.7).numpy()
    np.testing.assert_allclose(merged, expected, rtol=1e-6, atol=1e-6)


def test_no_density_gives_the_base(family: Family) -> None:
    base, tensors, _ = family(2, (6, 9))
    assert torch.equal(localize_and_stitch(tensors, base=base, density=0.0), base)


def test_entries_without_change_are_not_marked() -> None:
    base, a = torch.zeros(4), torch.tensor([4.0, 2.0, 0.0, 0.0])
    assert torch.equal(localize_and_stitch([a, base], base=base, density=0.5), a)


def test_the_scope_of_the_paper_is_the_whole_model(sources: Callable, tmp_path: Path) -> None:
    models: dict[str, dict[str, torch.Tensor]] = {name: {} for name in ("base", "x", "y")}
    for factor, (tensor, shape) in enumerate({"a": (70_000,), "b": (3, 5), "c": ()}.items(), start=1):
        for model, values in zip(models.values(), sources(3, shape=shape), strict=True):
            model[tensor] = factor * values
    for name, model in models.items():
        save_file(model, tmp_path / f"{name}.safetensors")
    listed = [{"model": str(tmp_path / f"{name}.safetensors")} for name in ("x", "y")]
    recipe = {"merge_method": "localize_and_stitch", "semantics": "paper", "models": listed}
    planned = eutectic.plan(recipe | {"base_model": str(tmp_path / "base.safetensors")})
    base, *flat = (torch.cat([model[name].reshape(-1) for name in planned]) for model in models.values())
    merged = torch.cat([planned[name].to_torch().reshape(-1) for name in planned])
    assert torch.equal(merged, localize_and_stitch(flat, base=base))
