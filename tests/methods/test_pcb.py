"""PCB-Merging against numpy, in the three forms that its authors published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import eutectic
from eutectic.errors import NonFiniteError
from eutectic.methods import pcb
from eutectic.ops.program import BLOCK
from eutectic.recipes import cutting

Family = Callable[..., tuple[torch.Tensor, list[torch.Tensor], list[np.ndarray]]]


def spread(values: np.ndarray) -> np.ndarray:
    low, high = values.min(-1, keepdims=True), values.max(-1, keepdims=True)
    return (values - low) / (high - low)


def reference(deltas: np.ndarray, weight: list[float], density: float, variant: str) -> np.ndarray:
    count, d = deltas.shape
    cut = int({"main": 1e-4}.get(variant, 1e-2) * d)
    ranked = np.sort(np.abs(deltas), 1)
    sizes = np.clip(np.abs(deltas), ranked[:, [cut]], ranked[:, [d - 1 - cut]])
    units = np.sign(deltas) * spread(sizes)
    inter = {
        "main": np.tanh(deltas * deltas.sum(0)),
        "vision": np.tanh(deltas * units.sum(0)),
        "paper": np.tanh(units[:, None] * units).sum(1),
    }[variant]
    score = np.exp(count * units**2) * inter
    least = np.sort(score, 1)[:, [min(int(d * (1 - density)), d - 1)]]
    share = spread(np.maximum(score, least))
    return (np.reshape(weight, (-1, 1)) * np.sign(deltas) * sizes * share).sum(0) / np.maximum(share.sum(0), 1e-12)


@pytest.mark.parametrize("variant", ["paper", "main", "vision"])
@pytest.mark.parametrize("density", [0.1, 0.5])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_against_numpy(variant: str, density: float, count: int, family: Family) -> None:
    base, tensors, _ = family(count, (50, 41))
    deltas = [(tensor - base).double().numpy() for tensor in tensors]  # the difference is taken in float32
    weight = [1.0, -0.5, 2.0, 0.25][:count]
    expected = reference(np.stack([d.ravel() for d in deltas]), weight, density, variant).reshape(base.shape)
    merged = pcb(tensors, base=base, weight=weight, density=density, lambda_=0.7, variant=variant).numpy()
    np.testing.assert_allclose(merged, base.double().numpy() + 0.7 * expected, rtol=1e-6, atol=1e-6)


def test_a_source_without_change_takes_no_part(family: Family) -> None:
    base, (a,), _ = family(1, (20, 30))
    merged = pcb([a, base], base=base, density=0.3)
    kept = merged != base
    assert 0 < kept.sum() < 0.3 * kept.numel()
    assert torch.isclose(merged[kept], a[kept]).sum() > 0.9 * kept.sum()  # all but those that are clipped
    assert torch.equal(pcb([base, base], base=base), base)


def test_one_entry_and_equal_entries_are_kept(family: Family) -> None:
    assert pcb([torch.tensor(3.0)], base=torch.tensor(1.0)) == 3.0
    merged = pcb([torch.full((4,), 3.0)], base=torch.ones(4))
    assert torch.equal(merged, torch.full((4,), 3.0))


SHAPES = {"a": (70_000,), "b": (3, 5), "c": (), "d": (0, 2), "e": (40, 30)}


@pytest.mark.parametrize("variant", ["paper", "main", "vision"])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_scope_of_the_paper_is_the_whole_model(
    variant: str, threads: int, sources: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "MOST_TILE", BLOCK)
    recipe, models = write_models(tmp_path, "pcb", sources, density=0.2, variant=variant)
    eutectic.merge(recipe | {"semantics": "paper"}, tmp_path / "out", fsync=False, threads=threads)
    planned = eutectic.plan(recipe | {"semantics": "paper"})
    base, *flat = (torch.cat([model[name].reshape(-1) for name in planned]) for model in models.values())
    deltas = np.stack([(tensor - base).double().numpy() for tensor in flat])
    expected = base.double().numpy() + reference(deltas, [1.0, 1.0, 1.0], 0.2, variant)
    written = load_file(tmp_path / "out" / "model.safetensors")
    merged = torch.cat([written[name].reshape(-1) for name in planned])
    np.testing.assert_allclose(merged.numpy(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(merged, pcb(flat, base=base, density=0.2, variant=variant), rtol=1e-6, atol=1e-6)
    for name in planned:
        assert torch.equal(planned[name].to_torch(), written[name])


def test_no_density_gives_the_base(family: Family) -> None:
    base, tensors, _ = family(2, (20, 30))
    assert torch.equal(pcb(tensors, base=base, density=0), base)


def test_changes_large_enough_to_saturate_tanh(tmp_path: Path, sources: Callable) -> None:
    recipe, models = write_models(tmp_path, "pcb", sources, scale=30.0, density=0.3, variant="vision")
    planned = eutectic.plan(recipe)
    base, *flat = (model["a"] for model in models.values())
    expected = pcb(flat, base=base, density=0.3, variant="vision")
    torch.testing.assert_close(planned["a"].to_torch(), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("variant", ["paper", "main", "vision"])
@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_tiles_and_threads_do_not_change_a_bit(
    variant: str, scope: str, dtype: torch.dtype, sources: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, models = write_models(tmp_path, "pcb", sources, dtype=dtype, variant=variant, scope=scope, density=0.3)
    planned = eutectic.plan(recipe)
    expected = {name: planned[name].to_torch() for name in planned}
    if scope == "tensor":  # torch's tanh and exp may differ in the last bit, which decides where a result is halfway
        for name, tensor in expected.items():
            base, *rest = (model[name] for model in models.values())
            alone = pcb(rest, base=base, variant=variant, density=0.3)
            torch.testing.assert_close(tensor, alone, rtol=torch.finfo(dtype).eps, atol=1e-6)
    for tile, threads in ((cutting.MOST_TILE, 1), (BLOCK, 1), (BLOCK, 3)):
        monkeypatch.setattr(cutting, "MOST_TILE", tile)
        eutectic.merge(recipe, tmp_path / "out", fsync=False, threads=threads, force=True)
        written = load_file(tmp_path / "out" / "model.safetensors")
        assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("variant", ["paper", "main", "vision"])
def test_what_is_not_finite_is_merged_alike_where_allowed(variant: str, sources: Callable, tmp_path: Path) -> None:
    recipe, models = write_models(tmp_path, "pcb", sources, variant=variant, density=0.3)
    for at, (name, model) in enumerate(models.items()):
        model["e"].view(-1)[9 * at : 9 * at + 3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
        save_file(model, tmp_path / f"{name}.safetensors")
    with pytest.raises(NonFiniteError):
        eutectic.plan(recipe)["e"].to_torch()
    found, expected = (
        eutectic.plan(recipe, allow_nonfinite=True, torch_only=only)["e"].to_torch() for only in (False, True)
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("variant", ["paper", "main", "vision"])
@pytest.mark.parametrize("count", [1, 3])
def test_equal_entries_at_the_thresholds(variant: str, count: int, sources: Callable, tmp_path: Path) -> None:
    """Few different changes and many zeros, in one block and in two."""
    recipe, models = write_models(tmp_path, "pcb", sources, variant=variant, density=0.3)
    for model in models.values():
        for name, tensor in model.items():
            model[name] = (tensor * 0.7).round()
    for name, model in models.items():
        save_file(model, tmp_path / f"{name}.safetensors")
    recipe["models"] = recipe["models"][:count]
    planned = eutectic.plan(recipe)
    for name in planned:
        base, *rest = (model[name] for model in models.values())
        expected = pcb(rest[:count], base=base, variant=variant, density=0.3)
        torch.testing.assert_close(planned[name].to_torch(), expected, rtol=1e-6, atol=1e-6)


def write_models(
    folder: Path,
    method: str,
    sources: Callable,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
    **parameters: Any,
) -> tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]]:
    """A recipe of a base and three models whose tensors differ in size and scale, and those models."""
    models: dict[str, dict[str, torch.Tensor]] = {name: {} for name in ("base", "x", "y", "z")}
    for factor, (tensor, shape) in enumerate(SHAPES.items(), start=1):
        for model, values in zip(models.values(), sources(4, shape=shape), strict=True):
            model[tensor] = (scale * factor * values).to(dtype)
    for name, model in models.items():
        save_file(model, folder / f"{name}.safetensors")
    recipe = {"merge_method": method, "base_model": str(folder / "base.safetensors"), "parameters": parameters}
    return recipe | {"models": [{"model": str(folder / f"{name}.safetensors")} for name in "xyz"]}, models
