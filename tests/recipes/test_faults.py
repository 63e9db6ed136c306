"""Every sentence that a user may meet for a faulty recipe, its place, and that all come at once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eutectic.errors import RecipeError
from eutectic.recipes.document import Location, load_document
from eutectic.recipes.faults import sentence_of
from eutectic.recipes.schema import Module, Recipe, Slice, SliceSource, Source, load_recipe, parse_recipe
from eutectic.recipes.tree import check_parameters

fuzz = settings(deadline=None, max_examples=150)
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


def test_five_faults_give_five_lines_in_order() -> None:
    text = """\
# five faults
merge_method: ties
dtpye: bfloat16
models:
  - model: ./a
    parameters:
      weight: .nan
  - modle: ./b
  - model: ./c
    parameters: {densty: 0.5}
seed: -1
"""

    def check(recipe: Recipe, loc: Location) -> list[tuple[Location, str]]:
        return [
            ((*loc, "models", at, "parameters", name), f"ties has no parameter {name!r}")
            for at, source in enumerate(recipe.models)
            for name in source.parameters
            if name == "densty"
        ]

    assert problems_of(text, name="recipe.yaml", check=check) == [
        "recipe.yaml:3:1: unknown key 'dtpye'; did you mean 'dtype'?",
        "recipe.yaml:7:7: 'weight' must be a finite number; found .nan",
        "recipe.yaml:8:5: unknown key 'modle'; did you mean 'model'?",
        "recipe.yaml:10:18: ties has no parameter 'densty'",
        "recipe.yaml:11:1: 'seed' must be a whole number from 0 to 2**64 - 1; found -1",
    ]
    with pytest.raises(RecipeError, match=r"^recipe.yaml has 5 problems:\n  - recipe.yaml:3:1: "):
        load_recipe(text, name="recipe.yaml", check=check)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"models": [{"model": "a"}]}, "recipe: key 'merge_method' is missing; add for example 'merge_method: linear'"),
        ({"merge_method": "x"}, "recipe: key 'models' is missing; add a list of models"),
        (with_(models=[]), "recipe: models: 'models' is empty; add a list of models"),
        (with_(models=None), "recipe: models: 'models' must be a list; found nothing"),
        (with_(models={"model": "a"}), "recipe: models: 'models' must be a list; found a mapping"),
        (
            with_(models=["./a"]),
            "recipe: models[0]: entry 1 of 'models' must be a mapping; found './a'; write '- model",
        ),
        (with_(models=[{}]), "recipe: models[0]: key 'model' is missing; each entry of 'models'"),
        (with_(models=[{"model": ""}]), "recipe: models[0].model: 'model' must not be empty"),
        (with_(models=[{"model": " "}]), "recipe: models[0].model: 'model' must not be empty"),
        (with_(models=[{"model": 3}]), "recipe: models[0].model: 'model' must be a path or a nested recipe; found 3"),
        (
            with_(models=[{"model": None}]),
            "recipe: models[0].model: 'model' must be a path or a nested recipe; found n",
        ),
        (
            with_(models=[{"model": "a\0b"}]),
            "recipe: models[0].model: 'model' must be a path without control characters",
        ),
        (with_(models=[{"model": {}}]), "recipe: models[0].model: key 'merge_method' is missing"),
        (with_(models=[{"model": {"model": 3}}]), "recipe: models[0].model.model: 'model' must be a path or"),
        (with_(models=[{"model": {"model": {"path": 3}}}]), "recipe: models[0].model.model.path: 'path' must be text"),
        (
            with_(models=[{"model": {"path": "a", "x": 1}}]),
            "recipe: models[0].model.x: unknown key 'x'; known here: path",
        ),
        (
            with_(models=[{"model": "a", "weight": 1}]),
            "recipe: models[0].weight: unknown key 'weight' here; a method's",
        ),
        (
            with_(models=[{"model": "a", "parameters": 3}]),
            "recipe: models[0].parameters: 'parameters' must be a mapping",
        ),
        (with_(base_model=[1]), "recipe: base_model: 'base_model' must be a path or a nested recipe; found a list"),
        (with_(merge_method=None), "recipe: merge_method: 'merge_method' must be text; found nothing"),
        (with_(merge_method=3), "recipe: merge_method: 'merge_method' must be text; found 3; put it in quotes"),
        (with_(t=0.5), "recipe: t: unknown key 't' here; a method's options belong under 'parameters:'"),
        (with_(zzz=1), "recipe: zzz: unknown key 'zzz'; known here: merge_method, models, "),
        (with_(parameter={}), "recipe: parameter: unknown key 'parameter'; did you mean 'parameters'?"),
        (with_(parameters={"t": None}), "recipe: parameters.t: 't' has no value; give it one, or remove the key"),
        (with_(parameters={"t": float("-inf")}), "recipe: parameters.t: 't' must be a finite number; found -.inf"),
        (
            with_(parameters={"t": {"a": 1}}),
            "recipe: parameters.t: 't' must be a number, true, false or text; found a map",
        ),
        (with_(dtype="bflot16"), "recipe: dtype: 'dtype' must be one of bfloat16, "),
        (with_(dtype="bflot16"), "found 'bflot16'; did you mean 'bfloat16'?"),
        (with_(dtype="int8"), "float8_e5m2; found 'int8'"),
        (with_(out_dtype=16), "recipe: out_dtype: 'out_dtype' must be one of bfloat16, "),
        (with_(slices=[]), "'models' and 'slices' stand side by side; exactly one of models, slices, modules"),
        (with_(modules={}), "'models' and 'modules' stand side by side"),
        ({"merge_method": "x", "modules": {"m": {}}}, "recipe: modules.m: key 'models' is missing"),
        ({"merge_method": "x", "modules": {"m": {"models": [{"model": "a"}], "slices": []}}}, "side by side"),
        ({"merge_method": "x", "slices": [{"sources": [{"model": "a"}]}]}, "key 'layer_range' is missing; add for ex"),
        ({"merge_method": "x", "slices": [{"source": []}]}, "unknown key 'source'; did you mean 'sources'?"),
        (with_(models=[{"model": "a", "layer_range": [0, 1]}]), "layers are chosen under 'slices:'"),
        (with_(semantics="papr"), "'semantics' must be 'mergekit' or 'paper'; found 'papr'; did you mean 'paper'?"),
        (with_(semantics=None), "'semantics' must be 'mergekit' or 'paper'; found nothing"),
        (with_(seed="1"), "recipe: seed: 'seed' must be a whole number from 0 to 2**64 - 1; found '1'"),
        (with_(seed=True), "recipe: seed: 'seed' must be a whole number from 0 to 2**64 - 1; found true"),
        (with_(seed=1.0), "recipe: seed: 'seed' must be a whole number"),
        (with_(seed=-1), "recipe: seed: 'seed' must be a whole number"),
        (with_(name=7), "recipe: name: 'name' must be text; found 7; put it in quotes"),
        (with_(name=""), "recipe: name: 'name' must not be empty"),
        (with_(name=["x" * 999]), "recipe: name: 'name' must be text; found a list"),
        (with_(tokenizer_source=5), "recipe: tokenizer_source: 'tokenizer_source' must be text; found 5"),
        (with_(tokenizer_source="base", tokenizer={}), "'tokenizer' and 'tokenizer_source' stand side by side"),
        (with_(tokenizer={"sorce": "base"}), "recipe: tokenizer.sorce: unknown key 'sorce'; did you mean 'source'?"),
        (with_(tokenizer={"tokens": {"x": {"from": 1}}}), "unknown key 'from'; known here: source, force"),
        (with_(tokenizer={"tokens": {"x": {"force": 1}}}), "'force' must be true or false; found 1"),
        (with_(tokenizer={"tokens": {"x": {"source": 3}}}), "'source' must be text; found 3"),
        (with_(tokenizer={"tokens": {"x": {"source": {"kind": "one"}}}}), "'source' must be a model, {kind: zero} or"),
        (
            with_(tokenizer={"tokens": {"x": {"source": {"kind": "model_token", "model": "a"}}}}),
            "'source' needs either a token or a token_id",
        ),
        (
            with_(tokenizer={"tokens": {"x": {"source": {"kind": "model_token", "model": "a", "tokn": "y"}}}}),
            "unknown key 'tokn'; did you mean 'token'?",
        ),
        (
            with_(tokenizer={"pad_to_multiple_of": 0}),
            "'pad_to_multiple_of' must be a whole number, at least 1; found 0",
        ),
        (with_(tokenizer={"pad_to_multiple_of": 2.5}), "'pad_to_multiple_of' must be a whole number, at least 1"),
        (with_(chat_template="chatlm"), "'chat_template' must be auto, chatml, "),
        (with_(chat_template="chatlm"), "found 'chatlm'; did you mean 'chatml'?"),
        (with_(chat_template=["x"]), "'chat_template' must be text; found a list"),
    ],
)
def test_each_fault_has_its_sentence(data: dict[str, Any], expected: str) -> None:
    found = problems_of(data)
    assert any(expected in problem for problem in found), found


@pytest.mark.parametrize(
    ("data", "key"),
    [
        (with_(base_model={"model": {"path": "a"}, "override_architecture": "X"}), "'override_architecture'"),
    ],
)
def test_what_mergekit_has_and_eutectic_has_not_yet_is_named(data: dict[str, Any], key: str) -> None:
    (problem,) = problems_of(data)
    assert "mergekit's " in problem
    assert key in problem
    assert "not support" in problem
    assert "; " in problem  # what to do instead


def test_faults_of_inner_recipes_have_their_places() -> None:
    text = "merge_method: linear\nmodels:\n  - model:\n      merge_method: ties\n      models: []\n      sed: 1\n"
    assert problems_of(text, name="r.yaml") == [
        "r.yaml:5:7: 'models' is empty; add a list of models, each '- model: ./path'",
        "r.yaml:6:7: unknown key 'sed'; did you mean 'seed'?",
    ]


def test_an_aliased_fault_is_told_once() -> None:
    text = "merge_method: x\nmodels:\n  - &m {model: a, parameters: {weight: []}}\n  - *m\n  - *m\n"
    assert len(problems_of(text)) == 1


def test_the_hook_sees_every_recipe_and_its_problems_are_placed() -> None:
    calls: list[tuple[Location, str]] = []

    def check(recipe: Recipe, loc: Location) -> list[tuple[Location, str]]:
        calls.append((loc, recipe.merge_method))
        return [((*loc, "merge_method"), f"no method {recipe.merge_method!r}")]

    text = (
        "models:\n  - model: {merge_method: b, models: [model: x]}\nbase_model: {merge_method: c, models: [model: y]}\n"
    )
    assert problems_of(text + "merge_method: a\n", name="r.yaml", check=check) == [
        "r.yaml:2:13: no method 'b'",
        "r.yaml:3:14: no method 'c'",
        "r.yaml:4:1: no method 'a'",
    ]
    assert calls == [((), "a"), (("base_model",), "c"), (("models", 0, "model"), "b")]
    assert parse_recipe(load_document(small), check=lambda recipe, loc: []) == load_recipe(small)


def test_the_hook_does_not_repeat_what_is_already_wrong() -> None:
    def check(recipe: Recipe, loc: Location) -> list[tuple[Location, str]]:
        found: list[tuple[Location, str]] = []
        if recipe.merge_method not in ("linear", "slerp"):
            found.append(((*loc, "merge_method"), "unknown method"))
        for at, source in enumerate(recipe.models):
            if "weight" not in source.parameters:
                found.append(((*loc, "models", at), "linear needs weight: the share of each source"))
        if "t" not in recipe.parameters:
            found.append(((*loc, "merge_method"), "slerp needs t: the position"))
        return found

    bad = with_(
        merge_method=3,
        parameters={"t": []},
        models=[{"model": "a", "parameters": {"weight": None}}, "b", {"model": "c"}],
    )
    assert [problem.split(": ", 2)[1] for problem in problems_of(bad, check=check)] == [
        "merge_method",
        "models[0].parameters.weight",
        "models[1]",
        "models[2]",
        "parameters.t",
    ]
    assert len(problems_of({"merge_method": "x", "models": 3}, check=check)) == 3  # the hook's two are of other keys


def test_whatever_pydantic_invents_there_is_a_sentence() -> None:
    error = {"type": "brand_new", "loc": ("models", 0, "parameters", "weight"), "input": [1], "msg": "Input should"}
    assert sentence_of(error, {}) == "'weight' does not take a list"
    assert sentence_of({"type": "recursion_loop", "loc": (), "input": {}}, {}) == "the recipe does not take a mapping"


@pytest.mark.parametrize("source", ["[1, 2]\n", "just text\n", "3\n"])
def test_a_recipe_is_a_mapping(source: str) -> None:
    (problem,) = problems_of(source)
    assert "the recipe must be a mapping of keys to values; found " in problem


parts = (Recipe, Source, SliceSource, Slice, Module)
names = {name for part in parts for name in part.model_fields}
keys = st.sampled_from([*sorted(names), "path", "lora", "filter", "value", "x", ""])
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@fuzz
@given(st.dictionaries(keys, anything, max_size=6))
def test_any_mapping_gives_a_recipe_or_problems_with_places(data: dict[str, Any]) -> None:
    try:
        recipe = load_recipe(data, check=lambda recipe, loc: [])
    except RecipeError as error:
        assert error.problems
        assert all(problem.startswith("recipe: ") and "Input should" not in problem for problem in error.problems)
    else:
        assert load_recipe(recipe.canonical()) == recipe


ranges = st.tuples(st.integers(-1, 4), st.integers(-1, 4)).map(list)
values = st.recursive(
    st.one_of(st.integers(-1, 2), st.floats(), st.booleans(), st.sampled_from(["x", "re:(", "*"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.fixed_dictionaries(
            {"value": inner}, optional={"filter": st.sampled_from(["mlp", "re:a", "re:(", 3, None])}
        )
    ),
    max_leaves=6,
)
parameters = st.dictionaries(st.sampled_from(["weight", "density", "t", "normalize", "x"]), values, max_size=3)
sliced = st.fixed_dictionaries(
    {"model": st.sampled_from(["a", "b", "a+c"])}, optional={"layer_range": ranges, "parameters": parameters}
)
slices = st.fixed_dictionaries(
    {"sources": st.lists(sliced, max_size=3)}, optional={"parameters": parameters, "base_model": st.just("b")}
)
whole = st.fixed_dictionaries({"model": st.sampled_from(["a", "b"])}, optional={"parameters": parameters})
forms = {"models": st.lists(whole, max_size=3), "slices": st.lists(slices, max_size=3)}
modules = st.dictionaries(
    st.sampled_from(["m", "", "vision_tower"]), st.fixed_dictionaries({}, optional={**forms, "parameters": parameters})
)
methods = st.sampled_from(["linear", "ties", "slerp", "passthrough", "karcher", "x"])


@fuzz
@given(
    st.fixed_dictionaries(
        {"merge_method": methods},
        optional={**forms, "modules": modules, "parameters": parameters, "base_model": st.sampled_from(["a", "c"])},
    )
)
def test_any_recipe_of_parts_is_read_or_refused_with_places(data: dict[str, Any]) -> None:
    """Slices, modules, gradients and filters of any shape, with the check that a merge makes."""
    try:
        recipe = load_recipe(data, check=check_parameters)
    except RecipeError as error:
        assert error.problems
        assert all(problem.startswith("recipe: ") and "Input should" not in problem for problem in error.problems)
    else:
        assert load_recipe(recipe.canonical(), check=check_parameters) == recipe
