"""What users of other tools complained about: each gives an early, clear message here, or the right result.

Numbers are those of the list of complaints (PEERS, section 4). The right-hand side says where each is tested; the
tests below hold what no other file does.

| no. | complaint | tested in |
|---|---|---|
| 4 | an architecture waits for somebody to write it down | `test_match.py::test_an_unknown_architecture_is_merged_with_one_warning`, `test_architectures.py` |
| 5 | tensors of towers lost in silence; a VLM merged with a language model | here, `test_architectures.py::test_a_language_model_merges_into_one_with_towers` |
| 6 | vocabularies differ: cut, or garbage | `test_vocabulary.py::test_different_vocabularies_without_a_word_are_refused_with_the_cure`, `test_vocabulary.py::test_the_union_keeps_every_token_of_every_model` |
| 7 | tied weights: a head too many, or none | `test_match.py::test_a_head_that_the_reference_ties_is_left_out`, here |
| 8 | MoE: one shared expert only, unclear errors | here, `test_architectures.py` |
| 9 | dtype ignored; float16 and bfloat16 mixed | here |
| 10 | errors after 20 minutes of downloading, a typo told last | `test_sources.py::test_errors_come_before_weights`, here |
| 11 | adapters without a base | `../weights/test_adapter.py::test_what_is_no_adapter_of_this_base_is_refused`, `test_adapter_sources.py::test_adapters_of_other_bases`, `test_adapters.py::test_one_adapter_at_weight_1_returns_itself` |
| 12 | rsLoRA and DoRA merged wrong | `../weights/test_adapter.py::test_one_adapter_is_what_peft_merges`, `test_adapters.py::test_peft_merges_the_result_as_the_plan_over_the_base` |
| 13, 14 | quantised inputs averaged as numbers, adapters on them | `test_quantised_sources.py::test_a_merge_of_codes_is_the_merge_of_their_dense_forms`, `test_quantised_sources.py::test_an_adapter_on_a_quantised_base`, `../weights/quantized/test_refused.py` |
| 19 | extract-lora fails after hours on a vocabulary; norms lost | `test_extract_lora.py::test_a_change_of_low_rank_comes_back_whole`, here |
| 22 | gradients, filters, negative weights, weights without effect | `test_slices.py::test_what_does_not_fit_is_refused`, `test_binding.py::test_a_filter_that_takes_nothing_is_refused`, here |
"""  # fmt: skip  # noqa: E501

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import eutectic
from eutectic.errors import EutecticError, MethodError, RecipeError, SourceError
from eutectic.recipes.extract_lora import extract_lora
from eutectic.recipes.merge import merge, plan

Make = Callable[..., Path]
RANDOM = np.random.default_rng(3)
TOWERS = {
    "vision_tower.encoder.layers.0.mlp.fc1.weight": (4, 4),
    "multi_modal_projector.linear_1.weight": (4, 4),
    "language_model.model.embed_tokens.weight": (8, 4),
    "language_model.model.layers.0.linear_attn.in_proj.weight": (4, 4),
    "language_model.model.layers.0.mlp.up_proj.weight": (6, 4),
    "language_model.lm_head.weight": (8, 4),
}
EXPERTS = {"model.layers.0.mlp.gate.weight": (4, 4), "model.embed_tokens.weight": (8, 4)} | {
    f"model.layers.0.mlp.experts.{expert}.{part}_proj.weight": (4, 4) for expert in range(4) for part in ("up", "down")
}


def random(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    return {name: RANDOM.standard_normal(shape, dtype="f4") for name, shape in shapes.items()}


def linear(*models: Path, weights: list[Any] | None = None, **top: Any) -> dict[str, Any]:
    given = weights or [1.0] * len(models)
    sources = [{"model": str(m), "parameters": {"weight": w}} for m, w in zip(models, given, strict=True)]
    return {"merge_method": "linear", "models": sources, **top}


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def test_the_table_names_tests_that_exist() -> None:
    for file, test in re.findall(r"`([\w./]+\.py)(?:::(\w+))?`", str(__doc__)):
        text = (Path(__file__).parent / file).read_text()
        assert not test or f"def {test}(" in text, f"{file}::{test}"


# ---------------------------------------------------------------- 5: towers


def test_no_tensor_of_a_tower_is_lost(make_model: Make, tmp_path: Path) -> None:
    a, b = (make_model(name, random(TOWERS), {"model_type": "llava"}) for name in ("m1", "m2"))
    merge(linear(a, b), tmp_path / "out", fsync=False)
    found = weights_of(tmp_path / "out")
    assert set(found) == set(TOWERS)
    for name, value in found.items():
        np.testing.assert_allclose(value, (weights_of(a)[name] + weights_of(b)[name]) / 2, rtol=1e-6, atol=1e-7)


def test_what_only_a_model_with_towers_has_is_told(make_model: Make) -> None:
    vlm = make_model("m1", random(TOWERS))
    llm = make_model("m2", random({"language_model.model.embed_tokens.weight": (8, 4)}))
    with pytest.raises(SourceError, match="5 tensors are not in every source") as caught:
        plan(linear(vlm, llm))
    assert f"vision_tower.encoder.layers.0.mlp.fc1.weight: in {vlm}; not in {llm}" in str(caught.value)


# ---------------------------------------------------------------- 7: tied heads


def test_tied_models_that_store_their_head_get_none(make_model: Make, tmp_path: Path) -> None:
    table = RANDOM.standard_normal((8, 4), dtype="f4")
    models = []
    for name, scale in (("m1", 1), ("m2", 2)):
        tensors = {"model.embed_tokens.weight": table * scale, "lm_head.weight": table * scale}
        models.append(make_model(name, tensors, {"tie_word_embeddings": True, "vocab_size": 8}))
    merge(linear(*models), tmp_path / "out", fsync=False)
    assert set(weights_of(tmp_path / "out")) == {"model.embed_tokens.weight"}
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"]
    assert "left out: the reference model ties it" in (tmp_path / "out/README.md").read_text()


# ---------------------------------------------------------------- 8: experts


@pytest.mark.parametrize("shared", [0, 1, 3])
def test_any_number_of_shared_experts(shared: int, make_model: Make) -> None:
    more = {f"model.layers.0.mlp.shared_experts.{at}.up_proj.weight": (4, 4) for at in range(shared)}
    a, b = (make_model(name, random(EXPERTS | more), {"model_type": "qwen3_moe"}) for name in ("m1", "m2"))
    made = plan(linear(a, b))
    assert made.account.lines == (f"merged: {len(EXPERTS) + shared} tensors, {made.numel} parameters",)


def test_models_of_other_numbers_of_experts_are_told_apart(make_model: Make) -> None:
    fewer = {name: shape for name, shape in EXPERTS.items() if ".3." not in name}
    a = make_model("m1", random(EXPERTS))
    b = make_model("m2", random({**fewer, "model.layers.0.mlp.gate.weight": (3, 4)}))
    with pytest.raises(SourceError, match=r"mlp\.gate\.weight: .*\[4, 4\].*\[3, 4\]"):
        plan(linear(a, b))
    c = make_model("m3", random(fewer))
    with pytest.raises(SourceError, match=r"mlp\.experts\.3\.up_proj\.weight: in .*m1; not in .*m3"):
        plan(linear(a, c))


# ---------------------------------------------------------------- 9: types


def test_types_are_what_the_recipe_says(make_model: Make, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file

    values = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    models = []
    for name, dtype in (("m1", torch.float16), ("m2", torch.bfloat16)):
        models.append(make_model(name, {}, {"torch_dtype": str(dtype).removeprefix("torch.")}))
        save_file({"w.weight": values.to(dtype)}, models[-1] / "model.safetensors")
    exact = sum(load_torch(model / "model.safetensors")["w.weight"].double() for model in models) / 2
    for key, dtype in (("dtype", "float16"), ("out_dtype", "bfloat16"), ("dtype", "float32")):
        out = tmp_path / f"{key}-{dtype}"
        merge(linear(*models, **{key: dtype}), out, fsync=False)
        found = load_torch(out / "model.safetensors")["w.weight"]
        assert found.dtype == getattr(torch, dtype) and torch.equal(found, exact.to(found.dtype))
        assert json.loads((out / "config.json").read_text())["torch_dtype"] == dtype
        assert (out / "model.safetensors").stat().st_size < 64 * 64 * found.element_size() + 1024


# ---------------------------------------------------------------- 10: early


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"merge_method": "linaer"}, "did you mean 'linear'"),
        ({"paramters": {"weight": 1}}, "unknown key 'paramters'; did you mean 'parameters'"),
        ({"dtype": "bfloat"}, "bfloat"),
        ({"parameters": {"wieght": 1}}, "no parameter 'wieght'; did you mean 'weight'"),
    ],
)
def test_a_typo_is_told_before_any_source_is_looked_for(change: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        plan(linear(Path("org/absent"), Path("org/gone")) | change)


# ---------------------------------------------------------------- 19: extraction


def test_another_vocabulary_does_not_stop_an_extraction(make_model: Make, tmp_path: Path) -> None:
    layer, table = "model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"
    base = make_model("base", random({table: (8, 4), layer: (6, 4), "model.norm.weight": (4,)}), {})
    grown = {**weights_of(base), table: RANDOM.standard_normal((10, 4), dtype="f4")}
    grown[layer] = grown[layer] + RANDOM.standard_normal((6, 1)) @ RANDOM.standard_normal((1, 4))
    grown[layer], grown["model.norm.weight"] = grown[layer].astype("f4"), grown["model.norm.weight"] + 1
    tuned = make_model("tuned", grown, {})
    found = extract_lora(eutectic.open(tuned), eutectic.open(base), tmp_path / "adapter", rank=1)
    assert [name for name, _ in found.lost] == [table, "model.norm.weight"]  # told, not lost in silence
    assert found.modules[0].error < 1e-3


# ---------------------------------------------------------------- 22: parameters


def test_weights_that_sum_to_zero_are_refused_with_their_place(make_model: Make) -> None:
    a, b = (make_model(name, random(TOWERS)) for name in ("m1", "m2"))
    with pytest.raises(MethodError, match=r"^models: linear: the weights \[1\.0, -1\.0\] sum to 0 .*normalize: false"):
        plan(linear(a, b, weights=[1.0, -1.0]))
    kept = plan(linear(a, b, weights=[1.0, -1.0], parameters={"normalize": False}))
    name = "language_model.lm_head.weight"
    np.testing.assert_allclose(kept[name].to_numpy(), weights_of(a)[name] - weights_of(b)[name], rtol=1e-6)
    inner = {"merge_method": "linear", "models": [{"model": linear(a, b, weights=[1.0, -1.0])}]}
    with pytest.raises(EutecticError, match="sum to 0 and cannot be normalised"):
        plan(inner | {"parameters": {"weight": 1.0}})


def test_a_weight_without_effect_is_told(make_model: Make) -> None:
    a, b = (make_model(name, random(TOWERS)) for name in ("m1", "m2"))
    notes = plan(linear(a, weights=[0.1])).notes
    assert any("weight 0.1 of the only source has no effect" in note and "normalize: false" in note for note in notes)
    assert not any("no effect" in note for note in plan(linear(a, weights=[1.0])).notes)
    assert not any("no effect" in note for note in plan(linear(a, b, weights=[0.1, 0.3])).notes)
    halved = plan(linear(a, weights=[0.5], parameters={"normalize": False}))
    assert not any("no effect" in note for note in halved.notes)


def test_a_range_beyond_the_model_and_an_idle_filter_are_refused_with_their_place(make_model: Make) -> None:
    a = make_model("m1", random({f"model.layers.{at}.mlp.up_proj.weight": (4, 4) for at in range(3)}))
    slices = [{"sources": [{"model": str(a), "layer_range": [0, 4]}]}]
    with pytest.raises(RecipeError, match=r"slices\[0\]: layer_range \[0, 4\] goes beyond .*are \[0, 3\]"):
        plan({"merge_method": "passthrough", "slices": slices})
    with pytest.raises(RecipeError, match="weight: filter 'attn'") as caught:
        plan(linear(a, weights=[[{"filter": "attn", "value": 0.5}, {"value": 1.0}]]))
    assert "names look like model.layers.0.mlp.up_proj.weight" in str(caught.value)
