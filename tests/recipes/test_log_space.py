"""Log-space tensors are never sparsified: whatever leaves entries out merges them densely, and says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from eutectic.methods import list_methods
from eutectic.recipes.merge import merge, plan

LOG = "model.layers.0.linear_attn.A_log"
BIAS = "model.layers.0.linear_attn.dt_bias"
MATRIX = "model.layers.0.linear_attn.q_proj.weight"
SPARSE = [method.name for method in list_methods().values() if method.sparsifies]
PARAMETERS: dict[str, dict[str, Any]] = {
    "sce": {"select_topk": 0.1},
    "breadcrumbs": {"density": 0.2, "gamma": 0.1},
    "breadcrumbs_ties": {"density": 0.2, "gamma": 0.1},
    **{key: {"density": 0.3, "epsilon": 0.1} for key in ("della", "della_linear")},
    **{key: {"density": 0.1} for key in ("ties", "dare_linear", "dare_ties")},
}


@pytest.fixture
def models(make_model: Callable[..., Path]) -> dict[str, Path]:
    random = np.random.default_rng(0)
    shapes = {LOG: (64,), BIAS: (64,), MATRIX: (16, 16)}
    return {
        name: make_model(name, {key: random.standard_normal(shape, dtype="f4") for key, shape in shapes.items()})
        for name in ("base", "a", "b")
    }


def recipe(models: dict[str, Path], method: str, **parameters: Any) -> dict[str, Any]:
    sources = [{"model": str(models[name])} for name in ("a", "b")][: list_methods()[method].sources[1] or 2]
    return {
        "merge_method": method, "base_model": str(models["base"]), "models": sources,
        "parameters": {**PARAMETERS.get(method, {}), **parameters},
    }  # fmt: skip


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return {name: value.astype(np.float64) for name, value in load_file(folder / "model.safetensors").items()}


def test_methods_that_leave_entries_out_say_so() -> None:
    assert {"ties", "dare_linear", "dare_ties", "della", "breadcrumbs", "sce", "arcee_fusion"} <= set(SPARSE)
    assert not {"linear", "task_arithmetic", "slerp", "model_stock", "nearswap"} & set(SPARSE)


@pytest.mark.parametrize("method", SPARSE)
def test_every_change_of_a_log_space_tensor_counts(method: str, models: dict[str, Path], tmp_path: Path) -> None:
    weighted = "weight" in list_methods()[method].parameters
    given: dict[str, Any] = {"weight": 0.5} if weighted else {}
    if "lambda" in list_methods()[method].parameters:
        given["lambda"] = 0.75
    written = recipe(models, method, **given)
    out = merge(written, tmp_path / "out", fsync=False)
    assert isinstance(out, Path)
    base, found = tensors(models["base"]), tensors(out)
    deltas = [tensors(models[source["model"].rsplit("/", 1)[1]])[LOG] - base[LOG] for source in written["models"]]
    default = list_methods()[method].parameters.get("normalize")
    normalised = not weighted or bool(default and default.default)
    scale = given.get("lambda", 1.0) / (len(deltas) if normalised else 1 / 0.5)
    np.testing.assert_allclose(found[LOG], base[LOG] + scale * sum(deltas), rtol=1e-6)
    assert (found[BIAS] != base[BIAS]).all()
    line = next(line for line in plan(written).account.lines if "not sparsified (log-space)" in line)
    assert line.endswith(f"2 ({LOG}, {BIAS})")


def test_the_matrix_beside_it_is_sparse(models: dict[str, Path], tmp_path: Path) -> None:
    merge(recipe(models, "ties", weight=1.0), tmp_path / "out", fsync=False)
    changed = tensors(tmp_path / "out")[MATRIX] != tensors(models["base"])[MATRIX]
    assert 0.1 <= changed.mean() < 0.2


def test_other_methods_are_left_alone(models: dict[str, Path]) -> None:
    made = plan(recipe(models, "task_arithmetic", weight=1.0))
    assert not any("log-space" in line for line in made.account.lines)


@pytest.mark.parametrize("torch_only", [False, True])
def test_trimming_over_the_model_leaves_them_out(models: dict[str, Path], torch_only: bool, tmp_path: Path) -> None:
    import torch

    from eutectic.methods.state_dicts import merge_state_dicts

    options = {} if torch_only else {"scope": "model"}
    written = recipe(models, "ties", weight=[1.0, 0.5], **options) | {"dtype": "float32"}
    written["models"][0]["parameters"], written["models"][1]["parameters"] = {"weight": 1.0}, {"weight": 0.5}
    del written["parameters"]["weight"]
    merge(written, tmp_path / "out", fsync=False, torch_only=torch_only)
    states = {
        name: {key: torch.from_numpy(value.astype("f4")) for key, value in tensors(folder).items()}
        for name, folder in models.items()
    }
    expected = merge_state_dicts(
        [states["a"], states["b"]], "ties", base=states["base"],
        parameters={"weight": [1.0, 0.5], "density": 0.1, **options},
    )  # fmt: skip
    for name, value in tensors(tmp_path / "out").items():
        np.testing.assert_allclose(value, expected[name].double(), rtol=1e-6, atol=1e-7, err_msg=name)


def test_inside_other_recipes_and_with_filters(models: dict[str, Path]) -> None:
    inner = recipe(models, "dare_linear", weight=[{"filter": "A_log", "value": 0.25}, {"value": 1.0}])
    outer = {"merge_method": "linear", "models": [{"model": inner}], "parameters": {"weight": 1.0}}
    base, a, b = (tensors(models[name])[LOG] for name in ("base", "a", "b"))
    found = plan(outer)[LOG].to_numpy()
    np.testing.assert_allclose(found, base + 0.25 * (a - base) + 0.25 * (b - base), rtol=1e-5, atol=1e-6)
