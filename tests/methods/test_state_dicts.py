"""Merging in memory gives the same numbers as a recipe on files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import eutectic
from eutectic.errors import MethodError, SourceError
from eutectic.methods.state_dicts import merge_state_dicts

SHAPES = {"a.weight": (40, 33), "b.bias": (7,), "scale": ()}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("linear", {"weight": [0.2, 0.5, 0.4]}),
    ("task_arithmetic", {"weight": [0.2, 0.5, 0.4], "lambda": 0.7}),
    ("ties", {"weight": 1.0, "density": [0.2, 0.5, 1.0]}),
    ("ties", {"weight": 1.0, "density": 0.3, "scope": "model"}),
    ("dare_linear", {"weight": 0.4, "density": 0.5}),
    ("dare_ties", {"weight": 0.4, "density": 0.5, "rescale": "inverse_density"}),
]


@pytest.fixture
def models() -> list[dict[str, torch.Tensor]]:
    """A base and three fine-tunes of it, with a counter that is no float."""
    random = torch.Generator().manual_seed(1)
    base = {name: torch.randn(shape, generator=random) for name, shape in SHAPES.items()}
    tuned = [{n: t + 0.1 * torch.randn(t.shape, generator=random) for n, t in base.items()} for _ in range(3)]
    return [
        {**{n: t.to(torch.bfloat16) for n, t in model.items()}, "steps": torch.tensor(at)}
        for at, model in enumerate([base, *tuned])
    ]


@pytest.mark.parametrize(("method", "parameters"), CASES, ids=str)
def test_it_equals_the_recipe_on_files(
    tmp_path: Path, models: list[dict[str, torch.Tensor]], method: str, parameters: dict[str, Any]
) -> None:
    for at, model in enumerate(models):
        save_file(model, tmp_path / f"{at}.safetensors")
    per_source = {name: value for name, value in parameters.items() if isinstance(value, list)}
    shared = {name: value for name, value in parameters.items() if name not in per_source}
    sources = [
        {"model": str(tmp_path / f"{at}.safetensors"), "parameters": {n: v[at - 1] for n, v in per_source.items()}}
        for at in (1, 2, 3)
    ]
    recipe: dict[str, Any] = {"merge_method": method, "models": sources, "parameters": shared}
    base = None if method == "linear" else models[0]
    if base is not None:
        recipe["base_model"] = str(tmp_path / "0.safetensors")
    on_files = eutectic.plan(recipe, seed=3).state_dict()
    in_memory = merge_state_dicts(models[1:], method, base=base, parameters=parameters, seed=3)
    assert in_memory.keys() == on_files.keys()
    for name, tensor in on_files.items():
        assert torch.equal(tensor, in_memory[name]), name


def test_names_may_key_the_sources_and_their_parameters(models: list[dict[str, torch.Tensor]]) -> None:
    named = {"x": models[1], "y": models[2]}
    by_name = merge_state_dicts(named, "linear", parameters={"weight": {"y": 3, "x": 1}})
    in_order = merge_state_dicts(models[1:3], "linear", parameters={"weight": [1, 3]})
    assert all(torch.equal(by_name[name], in_order[name]) for name in in_order)


def test_gradients_reach_the_sources() -> None:
    a, b = (torch.tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    merge_state_dicts([{"w": a}, {"w": b}], "linear", parameters={"weight": [1, 3]})["w"].sum().backward()
    assert a.grad is not None and torch.allclose(a.grad, torch.full((2,), 0.25))


def test_what_does_not_fit_is_refused(models: list[dict[str, torch.Tensor]]) -> None:
    with pytest.raises(SourceError, match="'extra' is only in model 1"):
        merge_state_dicts([models[1], {**models[2], "extra": torch.ones(1)}], "linear", parameters={"weight": 1})
    with pytest.raises(SourceError, match=r"shape \[1\] in model 1"):
        merge_state_dicts([models[1], {**models[2], "b.bias": torch.ones(1)}], "linear", parameters={"weight": 1})
    with pytest.raises(MethodError, match="did you mean 'weight'"):
        merge_state_dicts(models[1:], "linear", parameters={"wieght": 1})
    with pytest.raises(MethodError, match="needs a base"):
        merge_state_dicts(models[1:], "ties", parameters={"weight": 1})
    with pytest.raises(MethodError, match="exactly 2 sources"):
        merge_state_dicts(models[1:], "slerp", parameters={"t": 0.5})
