"""Slices, modules, gradients and filters: which tensors make which, with which parameters; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from eutectic.errors import EutecticError, MethodError, RecipeError, SourceError
from eutectic.recipes.merge import merge, plan
from eutectic.recipes.schema import load_recipe
from eutectic.recipes.tree import check_parameters

LAYERS = 4


def tensors_of(seed: int, layers: int = LAYERS) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    names = ["embed.weight", *(f"h.{i}.{w}" for i in range(layers) for w in ("attn", "mlp")), "ln_f.weight", "lm_head"]
    return {name: random.standard_normal((3, 5), dtype=np.float32) for name in names}


@pytest.fixture
def models(make_model: Callable[..., Path]) -> dict[str, Path]:
    config = {"n_layer": LAYERS, "layer_types": ["p", "q", "r", "s"], "mlp_only_layers": [1, 3]}
    return {name: make_model(name, tensors_of(seed), config) for seed, name in enumerate(("base", "a", "b"))}


def source(path: Path, first: int, stop: int, **parameters: Any) -> dict[str, Any]:
    given = {"parameters": parameters} if parameters else {}
    return {"model": str(path), "layer_range": [first, stop], **given}


def merged(recipe: dict[str, Any], out: Path, **options: Any) -> dict[str, np.ndarray]:
    merge({"dtype": "float32", **recipe}, out, fsync=False, **options)
    return load_file(out / "model.safetensors")


def test_slices_stack_layers_with_the_edges_of_first_and_last(models: dict[str, Path], tmp_path: Path) -> None:
    slices = [{"sources": [source(models["a"], 0, 3)]}, {"sources": [source(models["b"], 1, 4)]}]
    found = merged({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")
    a, b = tensors_of(1), tensors_of(2)
    expected = {"embed.weight": a["embed.weight"], "ln_f.weight": b["ln_f.weight"], "lm_head": b["lm_head"]}
    for new, (origin, old) in enumerate([(a, 0), (a, 1), (a, 2), (b, 1), (b, 2), (b, 3)]):
        expected |= {f"h.{new}.{w}": origin[f"h.{old}.{w}"] for w in ("attn", "mlp")}
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_config_json_follows_the_layers(models: dict[str, Path], tmp_path: Path) -> None:
    slices = [{"sources": [source(models["a"], 0, 3)]}, {"sources": [source(models["b"], 1, 4)]}]
    merged({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["n_layer"] == 6
    assert config["layer_types"] == ["p", "q", "r", "q", "r", "s"]
    assert config["mlp_only_layers"] == [1, 3, 5]


def test_the_whole_model_as_slices_is_the_model(models: dict[str, Path], tmp_path: Path) -> None:
    slices = [{"sources": [source(models["a"], 0, 2)]}, {"sources": [source(models["a"], 2, 4)]}]
    found = merged({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")
    assert all(np.array_equal(found[name], value) for name, value in tensors_of(1).items())
    assert json.loads((tmp_path / "out/config.json").read_text())["n_layer"] == LAYERS


def test_other_layers_of_the_same_model_in_one_slice(models: dict[str, Path], tmp_path: Path) -> None:
    slices = [{"sources": [source(models["a"], 0, 3, weight=1), source(models["a"], 1, 4, weight=3)]}]
    found = merged({"merge_method": "linear", "slices": slices}, tmp_path / "out")
    a = tensors_of(1)
    for i in range(3):
        np.testing.assert_allclose(found[f"h.{i}.mlp"], 0.25 * a[f"h.{i}.mlp"] + 0.75 * a[f"h.{i + 1}.mlp"], rtol=1e-6)
    np.testing.assert_allclose(found["embed.weight"], a["embed.weight"], rtol=1e-6)


def weights_used(recipe: dict[str, Any]) -> dict[str, Any]:
    made = plan({"merge_method": "linear", "dtype": "float32", **recipe})
    return {step.name: step.root.parameters["weight"] for step in made.steps}


def test_gradients_run_over_the_layers(models: dict[str, Path]) -> None:
    sources = [{"model": str(models[n])} for n in ("a", "b")]
    used = weights_used({"models": sources, "parameters": {"weight": [1.0, 1.5, 3.0]}})
    assert [used[f"h.{i}.attn"][0] for i in range(LAYERS)] == pytest.approx([1, 4 / 3, 2, 3])
    assert used["embed.weight"] == used["lm_head"] == [1.0, 1.0]
    halves = [{"sources": [source(models["a"], *r), source(models["b"], *r)]} for r in ((0, 3), (3, 4))]
    used = weights_used({"slices": halves, "parameters": {"weight": [1.0, 2.0]}})
    assert [used[f"h.{i}.mlp"][0] for i in range(LAYERS)] == [1, 1.5, 2, 2]  # a slice of one layer stands at its end


def test_a_gradient_of_truth_values_is_not_interpolated(models: dict[str, Path]) -> None:
    sources = [{"model": str(models[n]), "parameters": {"weight": 1}} for n in ("a", "b")]
    made = plan({"merge_method": "linear", "models": sources, "parameters": {"normalize": [True, False]}})
    used = {step.name: step.root.parameters["normalize"] for step in made.steps}
    assert [used[f"h.{i}.attn"] for i in range(LAYERS)] == [True, True, True, False]


def test_the_first_filter_counts_and_without_one_the_next_level(models: dict[str, Path]) -> None:
    first = {"model": str(models["a"]), "parameters": {"weight": [{"filter": "attn", "value": 7}]}}
    top = [{"filter": "re:h[.][01][.]", "value": [1, 2]}, {"filter": "h.1.mlp", "value": 9}, {"value": 5}]
    used = weights_used({"models": [first, {"model": str(models["b"])}], "parameters": {"weight": top}})
    assert used["h.0.attn"] == [7, 1] and used["h.0.mlp"] == [1, 1]
    assert used["h.1.mlp"] == pytest.approx([4 / 3, 4 / 3]) and used["h.3.attn"] == [7, 5]
    assert used["embed.weight"] == [5, 5]


def test_source_before_slice_before_recipe(models: dict[str, Path]) -> None:
    slices = [
        {"sources": [source(models["a"], 0, 1, weight=1), source(models["b"], 0, 1)], "parameters": {"weight": 2}},
        {"sources": [source(models["a"], 1, 2), source(models["b"], 1, 2)]},
    ]
    used = weights_used({"slices": slices, "parameters": {"weight": 3}})
    assert used["h.0.mlp"] == [1, 2] and used["h.1.mlp"] == [3, 3]


def test_kernels_and_semantics_agree_where_parameters_vary(models: dict[str, Path], tmp_path: Path) -> None:
    recipe = {
        "merge_method": "dare_ties",
        "base_model": str(models["base"]),
        "models": [{"model": str(models[n])} for n in ("a", "b")],
        "parameters": {"weight": [0.2, 1.0], "density": [{"filter": "mlp", "value": [0.3, 1.0]}, {"value": 0.6}]},
    }
    fast = merged(recipe, tmp_path / "fast")
    slow = merged(recipe, tmp_path / "slow", torch_only=True)
    for name in fast:
        np.testing.assert_allclose(fast[name], slow[name], rtol=1e-6, atol=1e-7)


def test_a_base_without_a_range_of_its_own_takes_the_sources(models: dict[str, Path], tmp_path: Path) -> None:
    recipe = {"merge_method": "task_arithmetic", "base_model": str(models["base"]), "parameters": {"weight": 1}}
    ranges = [(2, 4), (0, 2)]
    implied = [{"sources": [source(models["a"], *r)]} for r in ranges]
    listed = [{"sources": [source(models["base"], *r), source(models["a"], *r)]} for r in ranges]
    one = merged({**recipe, "slices": implied}, tmp_path / "one")
    two = merged({**recipe, "slices": listed}, tmp_path / "two")
    assert all(np.array_equal(one[name], two[name]) for name in two)
    apart = [{"sources": [source(models["a"], 0, 2), source(models["b"], 2, 4)]}]
    with pytest.raises(RecipeError, match="list it under sources with its layer_range"):
        plan({**recipe, "slices": apart})


def test_a_recipe_inside_a_slice_counts_its_own_layers(models: dict[str, Path], tmp_path: Path) -> None:
    inner = {
        "merge_method": "linear",
        "models": [{"model": str(models["a"])}, {"model": str(models["b"])}],
        "parameters": {"weight": [{"filter": "h.3.", "value": 3}, {"value": 1}], "normalize": False},
    }
    slices = [{"sources": [{"model": inner, "layer_range": [2, 4]}]}]
    found = merged({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")
    a, b = tensors_of(1), tensors_of(2)
    np.testing.assert_allclose(found["h.0.mlp"], a["h.2.mlp"] + b["h.2.mlp"], rtol=1e-6)
    np.testing.assert_allclose(found["h.1.mlp"], 3 * (a["h.3.mlp"] + b["h.3.mlp"]), rtol=1e-6)


def test_slices_inside_a_recipe_are_a_model(models: dict[str, Path], tmp_path: Path) -> None:
    order = [{"sources": [source(models["a"], i, i + 1)]} for i in reversed(range(LAYERS))]
    turned = {"merge_method": "passthrough", "slices": order, "dtype": "float32"}
    recipe = {"merge_method": "linear", "models": [{"model": turned}, {"model": str(models["a"])}]}
    found = merged({**recipe, "parameters": {"weight": 1}}, tmp_path / "out")
    a = tensors_of(1)
    for i in range(LAYERS):
        both = a[f"h.{LAYERS - 1 - i}.attn"] + a[f"h.{i}.attn"]
        np.testing.assert_allclose(found[f"h.{i}.attn"], both / 2, rtol=1e-6)


def test_modules_are_merged_apart(make_model: Callable[..., Path], tmp_path: Path) -> None:
    def tensors(seed: int) -> dict[str, np.ndarray]:
        parts = {"vision_tower": "vision_tower.blocks", "text": "language_model.layers"}
        own = {f"{name}.{i}.w": v for name in parts.values() for i, v in enumerate(tensors_of(seed, 0).values())}
        return own | {"multi_modal_projector.w": np.full((2,), seed, np.float32), "language_model.norm.w": own[
            "vision_tower.blocks.0.w"
        ]}  # fmt: skip

    config = {"text_config": {"num_hidden_layers": 3}, "vision_config": {"depth": 3}}
    a, b = (str(make_model(name, tensors(seed), config)) for seed, name in ((1, "va"), (2, "vb")))
    modules = {
        "text_decoder": {"slices": [{"sources": [{"model": a, "layer_range": [1, 3]}]}]},
        "vision_tower": {"models": [{"model": b}]},
        "multi_modal_projector": {"models": [{"model": a, "parameters": {"scale": 4}}]},
    }
    found = merged({"merge_method": "passthrough", "modules": modules}, tmp_path / "out")
    one, two = tensors(1), tensors(2)
    assert np.array_equal(found["language_model.layers.0.w"], one["language_model.layers.1.w"])
    assert np.array_equal(found["vision_tower.blocks.2.w"], two["vision_tower.blocks.2.w"])
    assert found["multi_modal_projector.w"].tolist() == [4, 4]
    assert "language_model.layers.2.w" not in found and len(found) == 3 + 2 + 1 + 1
    made = json.loads((tmp_path / "out/config.json").read_text())
    assert made["text_config"]["num_hidden_layers"] == 2 and made["vision_config"]["depth"] == 3
    with pytest.raises(RecipeError, match=r"belongs to no module(.|\n)*belongs to no module"):
        plan({"merge_method": "passthrough", "modules": {"vision_tower": modules["vision_tower"]}})
    with pytest.raises(RecipeError, match="audio_tower: no tensor belongs to it"):
        plan({"merge_method": "passthrough", "modules": {**modules, "audio_tower": {"models": [{"model": a}]}}})


def test_a_lock_file_of_slices_rebuilds_them(models: dict[str, Path], tmp_path: Path) -> None:
    slices = [{"sources": [source(models["a"], 1, 3, scale=[1.0, {"a": 1}][:1])]}]
    recipe = {"merge_method": "passthrough", "slices": slices}
    first = merged(recipe, tmp_path / "first")
    again = merge(tmp_path / "first/recipe.lock.json", tmp_path / "again", fsync=False)
    assert isinstance(again, Path)
    second = load_file(again / "model.safetensors")
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"slices": [["a", 2, 5]]}, RecipeError, r"slices\[0\]: layer_range \[2, 5\] goes beyond .*are \[0, 4\]"),
        ({"parameters": {"scale": [{"filter": "mpl", "value": 1}, {"value": 2}]}}, RecipeError, "scale: filter 'mpl'"),
        ({"parameters": {"scale": [{"filter": "re:(", "value": 1}]}}, RecipeError, "no regular expression"),
        ({"parameters": {"scale": []}}, RecipeError, "is an empty list"),
        ({"parameters": {"scale": [1, "x"]}}, RecipeError, "must be a number, not 'x'"),
        ({"parameters": {"scale": [{"filtre": "a", "value": 1}]}}, RecipeError, "unknown key 'filtre'"),
        ({"parameters": {"scale": [1, {"value": 1}]}}, RecipeError, "mixes filters and values"),
        ({"slices": [["a", 3, 2]]}, RecipeError, r"'layer_range' must go upward"),
        ({"models": [{"model": "a"}]}, RecipeError, "'models' and 'slices' stand side by side"),
        ({"slices": []}, RecipeError, "'slices' is empty"),
        (
            {"merge_method": "linear", "parameters": {"weight": [0.0, 1.0]}},
            MethodError,
            r"slices\[0\].sources: linear: the weights \[0.0\] sum to 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    models: dict[str, Path], change: dict[str, Any], error: type[EutecticError], words: str
) -> None:
    recipe: dict[str, Any] = {"merge_method": "passthrough", "slices": [["a", 0, 4]], **change}
    recipe["slices"] = [{"sources": [source(models[name], *r)]} for name, *r in recipe["slices"]]
    with pytest.raises(error, match=words):
        plan(recipe)


def test_slices_of_different_lengths_and_places(models: dict[str, Path]) -> None:
    text = f"""\
merge_method: linear
slices:
  - sources:
      - {{model: {models["a"]}, layer_range: [0, 2], parameters: {{weight: 1}}}}
      - {{model: {models["b"]}, layer_range: [0, 3], parameters: {{weight: 1}}}}
"""
    with pytest.raises(RecipeError, match=r"r.yaml:3:5: the sources of a slice need as many layers each"):
        load_recipe(text, name="r.yaml", check=check_parameters)


def test_models_without_numbered_layers_have_no_slices(make_model: Callable[..., Path]) -> None:
    flat = make_model("flat", {"w": np.ones(3, np.float32)})
    with pytest.raises(RecipeError, match=r"which layers of .* are meant"):
        plan({"merge_method": "passthrough", "slices": [{"sources": [source(flat, 0, 1)]}]})


def test_a_config_without_a_depth_is_refused_where_it_would_be_wrong(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = make_model("odd", tensors_of(3), {"depths": [4]})
    slices = [{"sources": [source(model, 0, 2)]}]
    with pytest.raises(SourceError, match="states nowhere that h"):
        merge({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_methods_over_the_whole_model_refuse_varying_parameters(models: dict[str, Path]) -> None:
    recipe = {"merge_method": "ties", "base_model": str(models["base"]), "parameters": {"weight": 1, "scope": "model"}}
    sources = [{"model": str(models["a"]), "parameters": {"density": [0.1, 0.9]}}]
    with pytest.raises(MethodError, match="the same parameters for every tensor"):
        plan({**recipe, "models": sources})
    slices = [{"sources": [source(models["a"], 0, 2, density=0.5)]}, {"sources": [source(models["a"], 2, 4)]}]
    with pytest.raises(MethodError, match="needs whole models"):
        plan({**recipe, "slices": slices})
