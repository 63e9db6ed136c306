"""TIES against numpy: trim, elect, disjoint mean; per tensor and over the whole model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import eutectic
from eutectic.methods import ties


def trim(delta: np.ndarray, density: float) -> np.ndarray:
    """The k largest magnitudes, ties to the lowest flat index."""
    count = delta.size
    k = min(count, max(1, int(density * count))) if density > 0 and count else 0
    order = np.lexsort((np.arange(count), -np.abs(delta.ravel())))
    kept = np.zeros(count)
    kept[order[:k]] = delta.ravel()[order[:k]]
    return kept.reshape(delta.shape)


def reference(
    tensors: list[torch.Tensor], base: torch.Tensor, weight: list[float], density: list[float], *, lambda_: float = 1.0,
    normalize: bool = True, rescale: bool | str = False, sign_vote: str = "weighted",
) -> np.ndarray:  # fmt: skip
    deltas = [(tensor - base).double().numpy() for tensor in tensors]  # the difference is taken in float32
    kept = [trim(delta, d) for delta, d in zip(deltas, density, strict=True)]
    for s, (delta, d) in enumerate(zip(deltas, density, strict=True)):
        if rescale in (True, "l1") and np.abs(kept[s]).sum() > 0:
            kept[s] *= np.abs(delta).sum() / np.abs(kept[s]).sum()
        if rescale == "inverse_density" and d:
            kept[s] /= d
    votes = kept if sign_vote == "paper" else [w * k for w, k in zip(weight, kept, strict=True)]
    elected = np.where(sum(votes) >= 0, 1, -1)
    agree = [np.sign(w * k) == elected for w, k in zip(weight, kept, strict=True)]
    total = sum(w * k * a for w, k, a in zip(weight, kept, agree, strict=True))
    share = sum(w * a for w, a in zip(weight, agree, strict=True))
    merged = total / np.where(share != 0, share, 1) if normalize else total
    return base.double().numpy() + lambda_ * merged


def assert_close(found: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-6, atol=2e-6 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("rescale", [False, True, "l1", "inverse_density"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("sign_vote", ["weighted", "paper"])
@pytest.mark.parametrize("weight", [[1.0, 1.0, 1.0], [0.3, -0.5, 1.1]])
@pytest.mark.parametrize("density", [[0.2, 0.2, 0.2], [0.0, 0.5, 1.0], [1.0, 1.0, 1.0]])
def test_every_option(
    rescale: bool | str, normalize: bool, sign_vote: str, weight: list[float], density: list[float], sources: Callable
) -> None:
    base, *tensors = sources(4)
    options: dict[str, Any] = {"normalize": normalize, "rescale": rescale, "sign_vote": sign_vote, "lambda_": 0.7}
    merged = ties(tensors, base=base, weight=weight, density=density, **options)
    assert_close(merged, reference(tensors, base, weight, density, **options))


@pytest.mark.parametrize("shape", [(), (1,), (2,), (3, 1), (7,)])
@pytest.mark.parametrize("density", [0.0, 1e-6, 0.34, 0.99, 1.0])
def test_tiny_tensors(shape: tuple[int, ...], density: float, sources: Callable) -> None:
    base, *tensors = sources(3, shape=shape)
    assert_close(ties(tensors, base=base, weight=1.0, density=density), reference(tensors, base, [1, 1], [density] * 2))


@pytest.mark.parametrize("density", [0.1, 0.35, 0.5, 0.8])
def test_ties_at_the_threshold_go_to_the_lowest_index(density: float) -> None:
    generator = torch.Generator().manual_seed(4)
    base = torch.randint(-8, 9, (30, 11), generator=generator) / 4
    source = base + torch.randint(-2, 3, (30, 11), generator=generator) / 4
    merged = ties([source], base=base, weight=1.0, density=density)
    kept = trim((source - base).double().numpy(), density)
    assert ((merged - base).double().numpy() == kept).all()
    k = int(density * base.numel())
    assert (merged != base).sum() == min(k, (source != base).sum())


def test_zero_votes_elect_plus() -> None:
    a, b = torch.tensor([2.0, -3.0]), torch.tensor([-2.0, 3.0])
    assert ties([a, b], base=torch.zeros(2), weight=1.0).tolist() == [2.0, 3.0]


def test_the_votes_differ_where_weights_decide() -> None:
    a, b = torch.tensor([1.0]), torch.tensor([-2.0])
    weights = {"weight": [3.0, 1.0], "base": torch.zeros(1)}
    assert ties([a, b], sign_vote="weighted", **weights).item() == 1.0
    assert ties([a, b], sign_vote="paper", **weights).item() == -2.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_types_round_the_float32_result(dtype: torch.dtype, sources: Callable) -> None:
    base, *tensors = sources(4, dtype)
    options: dict[str, Any] = {"weight": [0.3, 0.5, 1.1], "density": 0.3}
    wide = ties([tensor.float() for tensor in tensors], base=base.float(), **options)
    assert torch.equal(ties(tensors, base=base, **options), wide.to(dtype))


@pytest.mark.parametrize("rescale", [False, "l1"])
@pytest.mark.parametrize("sign_vote", ["weighted", "paper"])
def test_the_scope_of_the_paper_is_the_whole_model(
    rescale: bool | str, sign_vote: str, sources: Callable, tmp_path: Path
) -> None:
    """Tensors of different sizes and scales, trimmed as one vector: by a recipe, and in memory."""
    shapes = {"a": (70_000,), "b": (3, 5), "c": (), "d": (0, 2), "e": (40, 30)}
    models = {name: {} for name in ("base", "x", "y")}
    for scale, (tensor, shape) in enumerate(shapes.items(), start=1):
        for model, values in zip(models.values(), sources(3, shape=shape), strict=True):
            model[tensor] = scale * values
    for name, model in models.items():
        save_file(model, tmp_path / f"{name}.safetensors")
    options: dict[str, Any] = {"scope": "model", "rescale": rescale, "sign_vote": sign_vote}
    recipe = {
        "merge_method": "ties",
        "base_model": str(tmp_path / "base.safetensors"),
        "models": [
            {"model": str(tmp_path / f"{name}.safetensors"), "parameters": {"weight": w, "density": d}}
            for name, w, d in (("x", 0.7, 0.1), ("y", 1.0, 0.4))
        ],
        "parameters": options,
    }
    planned = eutectic.plan(recipe)
    base, x, y = (torch.cat([model[name].reshape(-1) for name in planned]) for model in models.values())
    expected = reference([x, y], base, [0.7, 1.0], [0.1, 0.4], rescale=rescale, sign_vote=sign_vote)
    assert_close(torch.cat([planned[name].to_torch().reshape(-1) for name in planned]), expected)
    in_memory = eutectic.merge_state_dicts(
        [{name: models[m][name] for name in planned} for m in ("x", "y")],
        "ties",
        base={name: models["base"][name] for name in planned},
        parameters={"weight": [0.7, 1.0], "density": [0.1, 0.4], **options},
    )
    for name in planned:
        assert torch.equal(in_memory[name], planned[name].to_torch())
