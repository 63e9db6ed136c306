"""`merge_state_dicts` on models of mixed types: the bits of a recipe, slerp and model scope included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import eutectic

StateDict = dict[str, torch.Tensor]
WEIGHT = [0.3, 0.7]


@pytest.fixture
def models() -> dict[str, StateDict]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: {
            "w": torch.randn(30, 40, generator=generator).to(dtype),
            "b": torch.randn(7, generator=generator).to(dtype),
            "steps": torch.tensor([at]),
        }
        for at, (name, dtype) in enumerate(
            {"base": torch.bfloat16, "a": torch.float32, "b": torch.float16}.items(), start=1
        )
    }


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("linear", {"weight": WEIGHT}),
        ("slerp", {"t": 0.3}),
        ("task_arithmetic", {"weight": WEIGHT, "lambda": 0.8}),
        ("ties", {"weight": WEIGHT, "density": 0.3, "rescale": True}),
        ("ties", {"weight": WEIGHT, "density": 0.3, "scope": "model"}),
        ("dare_linear", {"weight": WEIGHT, "density": 0.5}),
        ("dare_ties", {"weight": WEIGHT, "density": 0.5}),
    ],
)
def test_the_bits_of_a_recipe(
    method: str, parameters: dict[str, Any], models: dict[str, StateDict], tmp_path: Path
) -> None:
    for name, model in models.items():
        save_file(model, tmp_path / f"{name}.safetensors")
    entries: list[dict[str, Any]] = [{"model": str(tmp_path / f"{name}.safetensors")} for name in ("a", "b")]
    if "weight" in parameters:
        for entry, weight in zip(entries, WEIGHT, strict=True):
            entry["parameters"] = {"weight": weight}
    recipe: dict[str, Any] = {
        "merge_method": method,
        "models": entries,
        "parameters": {name: value for name, value in parameters.items() if name != "weight"},
        "seed": 5,
    }
    delta = method not in ("linear", "slerp")
    if delta:
        recipe["base_model"] = str(tmp_path / "base.safetensors")
    planned = eutectic.plan(recipe)
    ordered = {name: {tensor: model[tensor] for tensor in planned} for name, model in models.items()}
    merged = eutectic.merge_state_dicts(
        [ordered["a"], ordered["b"]],
        method,
        base=ordered["base"] if delta else None,
        parameters=parameters,
        seed=5,
    )
    assert list(merged) == list(planned)
    for name, tensor in merged.items():
        assert tensor.dtype == planned[name].to_torch().dtype
        assert torch.equal(tensor, planned[name].to_torch())
