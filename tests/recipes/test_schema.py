"""Recipes: what is read, what equality and the fingerprint mean, ready recipes, and the JSON schema."""

from __future__ import annotations

import copy
import doctest
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eutectic.errors import RecipeError
from eutectic.recipes import faults, schema, values
from eutectic.recipes.schema import Recipe, Source, load_recipe, schema_json, walk
from eutectic.recipes.values import DTYPES
from eutectic.recipes.yaml_text import dump_yaml

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "recipe.schema.json"
READY = sorted((ROOT / "recipes").glob("*.yaml"))
fuzz = settings(deadline=None, max_examples=150)

text = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=8)
finite = st.floats(allow_nan=False, allow_infinity=False)
parameters = st.dictionaries(text, st.one_of(st.booleans(), st.integers(-(2**63), 2**63), finite, text), max_size=3)


def recipes(reference: Any) -> Any:
    source = st.fixed_dictionaries({"model": reference}, optional={"parameters": parameters})
    return st.fixed_dictionaries(
        {"merge_method": text, "models": st.lists(source, min_size=1, max_size=3)},
        optional={
            "base_model": reference,
            "parameters": parameters,
            "dtype": st.sampled_from([*DTYPES, "torch.bfloat16", "bf16", "auto", None]),
            "out_dtype": st.sampled_from(DTYPES),
            "semantics": st.sampled_from(["mergekit", "paper"]),
            "seed": st.integers(0, 2**64 - 1),
            "name": text,
            "tokenizer_source": st.one_of(st.sampled_from(["base", "union"]), text),
            "adapter": st.fixed_dictionaries(
                {}, optional={"space": st.just("product"), "rank": st.integers(1, 99), "max_error": st.just(0.1)}
            ),
            "chat_template": st.one_of(st.sampled_from(["auto", "llama3"]), text.map("{{{}}}".format)),
        },
    )


any_recipe = st.recursive(text, recipes, max_leaves=5).filter(lambda value: isinstance(value, dict))
small = {"merge_method": "linear", "models": [{"model": "./a", "parameters": {"weight": 1}}]}


def with_(**changes: Any) -> dict[str, Any]:
    return {**small, **changes}


def problems_of(source: Any, **options: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(source, **options)
    for problem in caught.value.problems:
        assert not any(leak in problem for leak in ("Input should", "valid ", "pydantic", "<path>", "<recipe>"))
        assert "\n" not in problem
    return list(caught.value.problems)


@pytest.mark.parametrize("module", [schema, faults, values])
def test_the_examples_run(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


def test_what_a_recipe_holds() -> None:
    recipe = load_recipe(ROOT / "recipes" / "ties.yaml")
    assert recipe.merge_method == "ties"
    assert recipe.base_model == "./models/base"
    assert [source.model for source in recipe.models] == ["./models/math", "./models/code"]
    assert recipe.models[1].parameters["density"] == 0.3
    assert dict(recipe.parameters) == {"normalize": True}
    assert (recipe.dtype, recipe.out_dtype, recipe.semantics, recipe.seed) == ("bfloat16", None, "mergekit", None)
    assert recipe.folder == ROOT / "recipes"


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_every_ready_recipe_loads_and_its_method_takes_it(path: Path) -> None:
    from eutectic.recipes.tree import check_parameters

    recipe = load_recipe(path, check=check_parameters)
    assert load_recipe(recipe.canonical()) == recipe
    assert path.read_text().startswith("# ")


def test_there_is_a_ready_recipe_for_each_method() -> None:
    named = {recipe.merge_method for path in READY for _, recipe in walk(load_recipe(path))}
    methods = {"linear", "slerp", "task_arithmetic", "ties", "dare_ties", "dare_linear", "passthrough"}
    assert methods <= named


@fuzz
@given(any_recipe)
def test_a_recipe_survives_every_way_of_writing_it(data: dict[str, Any]) -> None:
    recipe = load_recipe(data)
    canonical = recipe.canonical()
    for other in (
        load_recipe(canonical),
        load_recipe(json.dumps(canonical), name="r.json"),
        load_recipe(json.dumps(canonical, ensure_ascii=False)),
        load_recipe(dump_yaml(canonical) + "\n"),
        pickle.loads(pickle.dumps(recipe)),
        copy.deepcopy(recipe),
    ):
        assert other == recipe
        assert hash(other) == hash(recipe)
        assert other.fingerprint() == recipe.fingerprint()
        assert other.canonical() == canonical


def test_equality_is_that_of_the_canonical_form() -> None:
    one = load_recipe(with_(parameters={"normalize": True, "a": 1, "big": 2**60}, dtype="torch.bfloat16"))
    same = load_recipe(
        with_(parameters={"big": 2.0**60, "a": 1.0, "normalize": True}, dtype="bf16", semantics="mergekit")
    )
    assert one == same
    assert len({one, same}) == 1
    assert one.fingerprint() == same.fingerprint()
    assert len(one.fingerprint()) == 64
    assert int(one.fingerprint(), 16) > 0
    for changed in ({"a": 1.5}, {"a": True}, {"a": "1"}, {}):
        assert load_recipe(with_(parameters={"normalize": True, "big": 2**60, **changed}, dtype="bf16")) != one
    assert load_recipe(with_(seed=0)) != load_recipe(small)
    assert load_recipe(small).models[0] == Source(model="./a", parameters={"weight": 1.0})
    assert load_recipe(small) != "something else"


def test_the_fingerprint_is_frozen() -> None:
    # A change here breaks `--resume` and every lock file: raise the lock's version with it.
    expected = "118f066776d65c341b4f2ab80640512b"
    assert load_recipe(with_(seed=1, dtype="bf16")).fingerprint()[:32] == expected


def test_order_of_keys_is_fixed_and_defaults_are_dropped() -> None:
    data = {"seed": 1, "models": [{"parameters": {"b": 1, "a": 2.0}, "model": "x"}], "merge_method": "m", "name": "n"}
    canonical = load_recipe(data).canonical()
    assert json.dumps(canonical) == (
        '{"name": "n", "merge_method": "m", "models": [{"model": "x", "parameters": {"a": 2, "b": 1}}], "seed": 1}'
    )


def test_recipes_are_immutable() -> None:
    recipe = load_recipe(small)
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        recipe.models[0].parameters["weight"] = 2  # type: ignore[index]
    with pytest.raises(TypeError):
        recipe.models[0] = recipe.models[0]  # type: ignore[index]


def test_mergekit_habits_are_read() -> None:
    for model in ("a", {"path": "a"}, {"model": "a"}, {"model": {"path": "a", "revision": None}, "lora": None}):
        recipe = load_recipe(with_(models=[{"model": model, "parameters": None}], base_model=model, parameters=None))
        assert recipe.models[0].model == recipe.base_model == "a"
        assert recipe.models[0].parameters == {}
    dtypes = [("torch.float32", "float32"), ("fp16", "float16"), ("BF16", "bfloat16"), ("auto", None), (None, None)]
    for written, stored in dtypes:
        assert load_recipe(with_(dtype=written, out_dtype=written)).dtype == stored
    assert load_recipe(with_(models=[{"model": "org/base+lora@rev"}])).models[0].model == "org/base+lora@rev"
    assert load_recipe(with_(parameters={"int8_mask": True, "rescale": "yes"})).parameters["int8_mask"] is True


def nested(levels: int) -> Any:
    data: Any = "leaf"
    for _ in range(levels):
        data = {"merge_method": "linear", "models": [{"model": data}]}
    return data


def test_nesting_is_walked_and_bounded() -> None:
    recipe = load_recipe({**nested(17), "base_model": nested(1)})
    inner = dict(walk(recipe))
    assert len(inner) == 18
    assert inner[("base_model",)] == load_recipe(nested(1))
    assert inner[("models", 0, "model", "models", 0, "model")].merge_method == "linear"
    (problem,) = problems_of(dump_yaml(nested(18)))
    assert "recipes are nested more than 16 deep" in problem
    assert problem.startswith("recipe:51:67: ")


def test_text_paths_and_mappings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.json").write_text(json.dumps(small))
    Path("r.yaml").write_text(dump_yaml(small))
    sources: list[Any] = ["r.json", "r.yaml", Path("r.yaml"), json.dumps(small), dump_yaml(small), small]
    assert len({load_recipe(source) for source in sources}) == 1
    with pytest.raises(RecipeError, match="is an empty recipe"):
        load_recipe("")
    with pytest.raises(RecipeError, match=r"^r.yml does not exist; did you mean 'r.yaml'"):
        load_recipe("r.yml")
    Path("r.json").write_text('{"merge_method": "x", "models": [{"model": "a"}, {"model": "b", "weigth": 1}]}')
    assert problems_of("r.json")[0].startswith("r.json: models[1].weigth: unknown key 'weigth'")


def test_the_json_schema_is_the_reviewed_one() -> None:
    """After a wanted change run `EUTECTIC_UPDATE_GOLDEN=1 pytest tests/recipes/test_schema.py`; review the diff."""
    if os.environ.get("EUTECTIC_UPDATE_GOLDEN") == "1":
        GOLDEN.write_text(schema_json())
    assert GOLDEN.read_text() == schema_json()


def test_the_json_schema_has_every_key_of_mergekits_models_form() -> None:
    properties = json.loads(schema_json())["$defs"]["Recipe"]["properties"]
    assert list(properties) == list(Recipe.model_fields)
    assert all("description" in prop for prop in properties.values())


def test_reading_a_recipe_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, eutectic.recipes.schema; print([m for m in ('torch', 'numpy', 'numba') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
