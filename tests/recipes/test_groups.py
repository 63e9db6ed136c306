"""Groups: what is merged with what, which base, which parameters; faults with their places."""

from __future__ import annotations

from typing import Any

import pytest

from eutectic.errors import RecipeError
from eutectic.methods import get_method
from eutectic.recipes.groups import bind, faults_of, groups_of, place_of, settings_of
from eutectic.recipes.schema import load_recipe


def layers(model: str, first: int, stop: int) -> dict[str, Any]:
    return {"model": model, "layer_range": [first, stop]}


def test_a_recipe_of_models_is_one_group() -> None:
    (group,) = groups_of(load_recipe({"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}]}))
    assert (group.key, group.location, group.module, group.sliced) == ("models", (), None, False)
    assert [source.model for source in group.sources] == ["a", "b"]


def test_slices_and_modules_have_groups_with_the_nearest_parameters_first() -> None:
    recipe = load_recipe({
        "merge_method": "linear", "base_model": "base", "parameters": {"weight": 1},
        "modules": {
            "text_decoder": {"slices": [{"sources": [layers("a", 0, 1)], "base_model": "other",
                                         "parameters": {"weight": 3}}],
                             "parameters": {"weight": 2}},
            "vision_tower": {"models": [{"model": "b"}]},
        },
    })  # fmt: skip
    sliced, whole = groups_of(recipe)
    assert (sliced.sliced, sliced.module, sliced.base) == (True, "text_decoder", "other")
    assert [dict(values) for _, values in sliced.levels] == [{"weight": 3}, {"weight": 2}, {"weight": 1}]
    assert place_of(sliced.location) == "modules.text_decoder.slices[0]"
    assert (whole.sliced, whole.module, whole.base) == (False, "vision_tower", "base")


def test_the_base_is_no_source_of_its_own() -> None:
    (group,) = groups_of(load_recipe({
        "merge_method": "ties", "base_model": "base", "models": [{"model": "base"}, {"model": "a"}],
    }))  # fmt: skip
    base, sources = bind(group, get_method("ties"))
    assert base is not None and base.model == "base" and [source.model for source in sources] == ["a"]
    base, sources = bind(group, get_method("linear"))
    assert base is None and [source.model for source in sources] == ["base", "a"]


def test_a_base_that_is_not_listed_takes_the_range_of_the_sources() -> None:
    def group(*ranges: tuple[int, int]) -> Any:
        sources = [layers(name, *at) for name, at in zip("ab", ranges, strict=False)]
        return next(
            groups_of(load_recipe({"merge_method": "ties", "base_model": "x", "slices": [{"sources": sources}]}))
        )

    base, _ = bind(group((1, 3), (1, 3)), get_method("ties"))
    assert base is not None and tuple(base.layer_range) == (1, 3)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(RecipeError, match=r"slices\[0\]: the sources' layer ranges differ"):
        bind(group((1, 3), (2, 4)), get_method("ties"))


@pytest.mark.parametrize(
    ("recipe", "location", "words"),
    [
        ({"merge_method": "ties", "models": [{"model": "a"}]}, ("merge_method",), "ties needs a base_model"),
        ({"merge_method": "slerp", "base_model": "a", "models": [{"model": "a"}]}, ("models",), "slerp merges"),
        ({"merge_method": "linear", "models": [{"model": "a", "parameters": {"normalize": True}}]},
         ("models", 0, "parameters", "normalize"), "one value for the whole merge"),
        ({"merge_method": "linear", "models": [{"model": "a"}], "parameters": {"wieght": 1}},
         ("parameters", "wieght"), "weight"),
        ({"merge_method": "linear", "slices": [{"sources": [layers("a", 0, 2), layers("b", 0, 3)]}]},
         ("slices", 0, "sources"), "need as many layers each"),
    ],
)  # fmt: skip
def test_faults_have_places(recipe: dict[str, Any], location: tuple[Any, ...], words: str) -> None:
    (group,) = groups_of(load_recipe(recipe))
    problems = faults_of(group, get_method(recipe["merge_method"]))
    assert any(where == location and words in sentence for where, sentence in problems), problems


def test_settings_prefer_the_source_to_the_levels() -> None:
    (group,) = groups_of(load_recipe({
        "merge_method": "linear", "parameters": {"weight": 2},
        "models": [{"model": "a", "parameters": {"weight": 1}}, {"model": "b"}],
    }))  # fmt: skip
    method = get_method("linear")
    assert settings_of(group, method, bind(group, method)[1]).at("any", 0.0)["weight"] == [1, 2]
