"""Adapters merged without their base: what comes of their changes, against float64 and against merges over a base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eutectic.methods import BUILT_IN
from eutectic.recipes.adapter_plan import AdapterPlan
from eutectic.recipes.adapter_sums import coefficients, stacked
from eutectic.recipes.factorise import factorise
from eutectic.recipes.merge import plan

Make = Callable[..., Path]
SHAPES = {"h.0.q": (24, 20), "h.1.q": (24, 20), "h.1.up": (16, 24)}
RANKS = {"a": 3, "b": 4, "c": 2}
ALPHAS = {"a": 3, "b": 1, "c": 6}


@pytest.fixture
def changes(make_adapter: Make) -> dict[str, dict[str, np.ndarray]]:
    """Three adapters on disk, of other ranks and alphas, c without h.1.up; their changes in float64."""
    random = np.random.default_rng(0)
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, rank in RANKS.items():
        pairs = {
            module: (random.normal(size=(m, rank)).astype("f4"), random.normal(size=(rank, n)).astype("f4"))
            for module, (m, n) in SHAPES.items()
            if not (name == "c" and module == "h.1.up")
        }
        make_adapter(name, pairs, lora_alpha=ALPHAS[name])
        found[name] = {m: ALPHAS[name] / rank * b.astype("f8") @ a.astype("f8") for m, (b, a) in pairs.items()}
        found[name] = {module: found[name].get(module, np.zeros(shape)) for module, shape in SHAPES.items()}
    return found


def recipe(folder: Path, method: str, weights: dict[str, float], **parameters: Any) -> dict[str, Any]:
    models = [{"model": str(folder / name), "parameters": {"weight": weight}} for name, weight in weights.items()]
    return {"merge_method": method, "models": models, **({"parameters": parameters} if parameters else {})}


def planned(*arguments: Any, **changes: Any) -> AdapterPlan:
    made = plan(*arguments, **changes)
    assert isinstance(made, AdapterPlan)
    return made


def close(found: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-6) -> None:
    assert np.abs(found - wanted).max() <= tolerance * max(1.0, np.abs(wanted).max())


@pytest.mark.parametrize(
    ("method", "parameters", "expected"),
    [
        ("task_arithmetic", {"lambda": 2.0}, {"a": 1.2, "b": 0.8, "c": -1.0}),
        ("task_arithmetic", {"normalize": True}, {"a": 1.2, "b": 0.8, "c": -1.0}),
        ("linear", {"normalize": False}, {"a": 0.6, "b": 0.4, "c": -0.5}),
        ("linear", {}, {"a": 1.2, "b": 0.8, "c": -1.0}),
    ],
)
def test_weighted_sums_of_changes(
    method: str, parameters: dict[str, Any], expected: dict[str, float], changes: Any, tmp_path: Path
) -> None:
    made = planned(recipe(tmp_path, method, {"a": 0.6, "b": 0.4, "c": -0.5}, **parameters))
    for step in made.changes:
        module = step.name.removesuffix(".weight")
        wanted = sum(weight * changes[name][module] for name, weight in expected.items())
        assert coefficients(step) == pytest.approx(by_leaf(made, expected))
        left, right = stacked(step)
        close((left @ right).numpy(), wanted, 1e-12)
        close(made[step.name].to_numpy(), wanted, 2e-6)  # the plan is the checkpoint of the merged changes
        found, b, a = factorise(made, step)
        close((b @ a).numpy(), wanted, 1e-12)
        assert found.rank == np.linalg.matrix_rank(wanted) and found.error == 0
        assert found.change == pytest.approx(np.linalg.norm(wanted))


def by_leaf(made: AdapterPlan, weights: dict[str, float]) -> dict[int, float]:
    return {leaf.index: weights[Path(leaf.label).name] for leaf in made.tree.sources}


ALONE = {name: facts for name, facts in BUILT_IN.items() if facts.needs is None}
"""The methods that need nothing besides the tensors: there are no statistics of adapters."""


@pytest.mark.parametrize("method", sorted(ALONE))
def test_every_method_gives_what_the_plan_of_the_changes_reads(method: str, changes: Any, tmp_path: Path) -> None:
    """Stacked factors, Gram matrices of factors included, make the change that the engine makes entry by entry."""
    facts = BUILT_IN[method]
    names = ["a"] if facts.sources[1] == 1 else ["a", "b"]
    parameters = {p.name: 0.5 for p in facts.parameters.values() if p.required and float in p.types}
    made = planned({
        "merge_method": method, "models": [{"model": str(tmp_path / name)} for name in names],
        "parameters": parameters, "adapter": {"rank": 24},
    })  # fmt: skip
    for step in made.changes:
        wanted = made[step.name].to_numpy().astype("f8")
        found, b, a = factorise(made, step)
        close((b.double() @ a.double()).numpy(), wanted, 3e-6)
        assert found.error < 1e-5


EXACT = {
    "linear", "task_arithmetic", "soup", "ema", "expo", "passthrough", "slerp", "nuslerp", "multislerp", "karcher",
    "model_stock",
}  # fmt: skip


def test_which_methods_are_sums(changes: Any, tmp_path: Path) -> None:
    for method, facts in ALONE.items():
        names = ["a"] if facts.sources[1] == 1 else ["a", "b"]
        parameters = {p.name: 0.5 for p in facts.parameters.values() if p.required and float in p.types}
        models = [{"model": str(tmp_path / name)} for name in names]
        made = planned({"merge_method": method, "models": models, "parameters": parameters})
        assert made.exact == (method in EXACT), method


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties", "breadcrumbs", "model_stock", "linear"])
def test_it_is_the_merge_over_a_base_without_the_base(
    method: str, changes: Any, make_model: Make, tmp_path: Path
) -> None:
    """The base is small numbers of few bits, so that adding and subtracting it rounds almost nothing."""
    random = np.random.default_rng(1)
    tensors = {f"{m}.weight": random.integers(-4, 5, shape).astype("f4") / 64 for m, shape in SHAPES.items()}
    base = make_model("base", tensors)
    parameters = {} if method == "model_stock" else {"weight": 0.5}
    parameters |= {"density": 0.5} if method in ("ties", "dare_ties", "breadcrumbs") else {}
    document = {"merge_method": method, "parameters": parameters, "dtype": "float64"}
    alone = planned({**document, "models": [{"model": str(tmp_path / name)} for name in "ab"]})
    over = {**document, "models": [{"model": f"{base}+{tmp_path / name}"} for name in "ab"]}
    whole = plan(over if method == "linear" else {**over, "base_model": str(base)})
    for name, before in tensors.items():
        wanted = whole[name].to_numpy() - before.astype("f8")
        found = alone[name].to_numpy()
        differs = np.abs(found - wanted) > 1e-5
        assert differs.mean() < 0.02, name  # entries at a threshold may be chosen differently
        if method in ("task_arithmetic", "linear", "model_stock"):
            assert not differs.any()


def test_a_recipe_inside_another(changes: Any, tmp_path: Path) -> None:
    inner = recipe(tmp_path, "linear", {"a": 1, "b": 3})
    models = [
        {"model": inner, "parameters": {"weight": 2.0}},
        {"model": str(tmp_path / "c"), "parameters": {"weight": -1}},
    ]
    made = planned({"merge_method": "task_arithmetic", "models": models})
    for step in made.changes:
        module = step.name.removesuffix(".weight")
        wanted = 0.5 * changes["a"][module] + 1.5 * changes["b"][module] - changes["c"][module]
        _, b, a = factorise(made, step)
        close((b @ a).numpy(), wanted, 1e-12)


def test_an_adapter_as_the_base_of_changes(changes: Any, tmp_path: Path) -> None:
    """Changes may also be counted from an adapter's: θ0 + Σ w (θ_k - θ0)."""
    document = {**recipe(tmp_path, "task_arithmetic", {"b": 0.5, "c": 0.25}), "base_model": str(tmp_path / "a")}
    made = planned(document)
    for step in made.changes:
        module = step.name.removesuffix(".weight")
        a, b, c = (changes[name][module] for name in "abc")
        _, left, right = factorise(made, step)
        close((left @ right).numpy(), a + 0.5 * (b - a) + 0.25 * (c - a), 1e-12)


def test_weights_by_layer_and_by_name(changes: Any, tmp_path: Path) -> None:
    document = recipe(tmp_path, "task_arithmetic", {})
    weights = [{"filter": "up", "value": 0.0}, {"value": [1.0, 3.0]}]
    document["models"] = [{"model": str(tmp_path / name), "parameters": {"weight": weights}} for name in "ab"]
    made = planned(document)
    for step in made.changes:
        module = step.name.removesuffix(".weight")
        factor = {"h.0.q": 1.0, "h.1.q": 3.0, "h.1.up": 0.0}[module]
        found, b, a = factorise(made, step)
        close((b @ a).numpy(), factor * (changes["a"][module] + changes["b"][module]), 1e-12)
        if not factor:
            assert (found.rank, found.error, found.change) == (1, 0, 0)  # PEFT has no rank 0


def test_the_order_of_sources_does_not_matter(changes: Any, tmp_path: Path) -> None:
    for method in ("task_arithmetic", "ties"):
        one, two = (
            planned({**recipe(tmp_path, method, dict.fromkeys(names, 0.3)), "adapter": {"rank": 24}})
            for names in ("abc", "cba")
        )
        for step in one.changes:
            (_, b, a), (_, d, c) = (factorise(made, step) for made in (one, two))
            close((b @ a).double().numpy(), (d @ c).double().numpy(), 3e-6)
