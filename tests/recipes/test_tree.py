"""From recipe to tree: bindings of the base, parameters per source, nesting, seeds, absolute paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from eutectic.errors import EutecticError, RecipeError, SourceError
from eutectic.recipes.schema import load_recipe
from eutectic.recipes.tree import Leaf, Merge, Tree, build_tree, check_parameters, expand


def tree_of(recipe: Any, **options: Any) -> Tree:
    return build_tree(load_recipe(recipe, check=check_parameters), **options)


def sources(*models: Any, **each: Any) -> list[dict[str, Any]]:
    return [{"model": str(m) if isinstance(m, Path) else m, **({"parameters": each} if each else {})} for m in models]


def names_of(merge: Merge) -> list[str]:
    return [Path(node.label).name if isinstance(node, Leaf) else "merge" for node in merge.inputs]


def test_a_required_base_comes_first_and_adds_no_delta(family: dict[str, Path]) -> None:
    base, a, b = (family[name] for name in ("base", "a", "b"))
    recipe = {"merge_method": "ties", "base_model": str(base), "parameters": {"weight": 1}}
    for models in ([a, b], [base, a, b], [a, base, b]):
        tree = tree_of(recipe | {"models": sources(*models)})
        assert names_of(tree.root) == ["base", "a", "b"]
        assert tree.reference.label == str(base)


def test_a_base_that_counts_as_the_first_source(family: dict[str, Path]) -> None:
    base, a = family["base"], family["a"]
    recipe = {"merge_method": "slerp", "base_model": str(base), "parameters": {"t": 0.5}}
    for models in ([a], [a, base], [base, a]):
        tree = tree_of(recipe | {"models": sources(*models)})
        assert names_of(tree.root) == ["base", "a"]
    assert names_of(tree_of({"merge_method": "slerp", "models": sources(a, base), "parameters": {"t": 0}}).root) == [
        "a", "base"
    ]  # fmt: skip


def test_parameters_of_a_source_win_over_those_of_the_top(family: dict[str, Path]) -> None:
    models = [{"model": str(family["a"]), "parameters": {"weight": 3}}, {"model": str(family["b"])}]
    tree = tree_of({"merge_method": "linear", "models": models, "parameters": {"weight": 2}})
    assert tree.root.parameters == {"weight": [3, 2], "normalize": True}


def test_weights_stay_with_their_sources_when_the_base_is_listed(family: dict[str, Path]) -> None:
    models = [{"model": str(family[n]), "parameters": {"weight": w}} for n, w in (("a", 1), ("base", 5), ("b", 2))]
    tree = tree_of({"merge_method": "ties", "models": models, "base_model": str(family["base"])})
    assert tree.root.parameters["weight"] == [1, 2]


def test_the_papers_meaning_changes_defaults_only(family: dict[str, Path]) -> None:
    recipe = {"merge_method": "ties", "models": sources(family["a"]), "base_model": str(family["base"])}
    recipe["parameters"] = {"weight": 1, "density": 0.5}
    assert tree_of(recipe).root.parameters["scope"] == "tensor"
    assert tree_of(recipe | {"semantics": "paper"}).root.parameters["scope"] == "model"
    recipe["parameters"] = {"weight": 1, "density": 0.5, "scope": "tensor"}
    assert tree_of(recipe | {"semantics": "paper"}).root.parameters["scope"] == "tensor"


def test_one_checkpoint_is_opened_once(family: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(family["a"])
    models = sources(family["a"], f"{family['a']}/", tmp_path / "link", family["b"])
    tree = tree_of({"merge_method": "linear", "models": models, "parameters": {"weight": 1}})
    assert len(tree.leaves) == 2 and len(tree.root.inputs) == 4


def test_nesting_in_place_and_by_file(family: dict[str, Path], tmp_path: Path) -> None:
    inner = {"merge_method": "linear", "models": sources("a", "b", weight=1), "seed": 3}
    (tmp_path / "inner.yaml").write_text(yaml.safe_dump(inner))
    outer = {"merge_method": "ties", "base_model": "base", "models": sources("inner.yaml", "a", weight=1), "seed": 8}
    (tmp_path / "outer.yaml").write_text(yaml.safe_dump(outer))
    tree = tree_of(tmp_path / "outer.yaml")
    assert [merge.method.name for merge in tree.merges] == ["linear", "ties"]
    assert names_of(tree.root) == ["base", "merge", "a"] and len(tree.leaves) == 3
    assert [merge.seed for merge in tree.merges] == [3, 8]
    assert [merge.seed for merge in tree_of(tmp_path / "outer.yaml", seed=5).merges] == [3, 5]
    whole = expand(load_recipe(tmp_path / "outer.yaml"))
    assert whole["base_model"] == str(family["base"])
    assert whole["models"][0]["model"]["models"][1]["model"] == str(family["b"])
    again = tree_of(whole)
    assert [m.method.name for m in again.merges] == ["linear", "ties"] and names_of(again.root) == names_of(tree.root)


def test_a_seed_is_inherited(family: dict[str, Path]) -> None:
    inner = {"merge_method": "linear", "models": sources(family["a"], weight=1)}
    outer = {"merge_method": "linear", "models": sources(inner, family["b"], weight=1)}
    assert [merge.seed for merge in tree_of(outer).merges] == [0, 0]
    assert [merge.seed for merge in tree_of({**outer, "seed": 7}).merges] == [7, 7]
    assert [merge.seed for merge in tree_of({**outer, "seed": 7}, seed=2).merges] == [2, 2]


def test_a_recipe_that_contains_itself(tmp_path: Path) -> None:
    path = tmp_path / "self.yaml"
    path.write_text(yaml.safe_dump({"merge_method": "linear", "models": sources(path, weight=1)}))
    with pytest.raises(RecipeError, match="nested more than 16 deep; does one of them contain itself"):
        tree_of(path)


def test_faults_of_a_nested_file_carry_its_name(family: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "inner.yaml").write_text(yaml.safe_dump({"merge_method": "liner", "models": sources("a")}))
    outer = {"merge_method": "linear", "models": sources(tmp_path / "inner.yaml", weight=1)}
    with pytest.raises(RecipeError, match=r"inner\.yaml:1:1: no merge method is called 'liner'; did you mean 'linear'"):
        tree_of(outer)


@pytest.mark.parametrize(
    ("recipe", "place", "words"),
    [
        ({"merge_method": "tise", "models": sources("a")}, "merge_method", "did you mean 'ties'"),
        ({"merge_method": "ties", "models": sources("a", weight=1)}, "merge_method", "ties needs a base_model"),
        ({"merge_method": "linear", "models": sources("a")}, "merge_method", "weight"),
        ({"merge_method": "slerp", "models": sources("a")}, "models", "exactly 2 sources"),
        ({"merge_method": "slerp", "models": sources("a", "b", t=1)}, "models[0].parameters.t", "one value for the"),
        ({"merge_method": "linear", "models": sources("a", wieght=1)}, "models[0].parameters.wieght", "'weight'"),
        ({"merge_method": "linear", "models": sources("a", weight="x")}, "models[0].parameters.weight", "a number"),
        (
            {"merge_method": "linear", "models": sources("a", weight=1), "parameters": {"normalise": True}},
            "parameters.normalise", "did you mean 'normalize'",
        ),
        (
            {"merge_method": "linear", "models": sources("a", weight=1), "base_model": "b"},
            "base_model", "linear has no base",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_faults_have_places(recipe: dict[str, Any], place: str, words: str) -> None:
    with pytest.raises(EutecticError) as caught:
        load_recipe(recipe, check=check_parameters)
    assert f"recipe: {place}: " in str(caught.value) and words in str(caught.value)


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    """A name may be meant for a hub, or for another folder; an absolute path is neither."""
    for absent, words in (
        (str(tmp_path / "gone"), r"/gone: no such folder or file$"),
        ("org/model", r"^org/model: no such folder or file here, nor in the cache \(.*\), and HF_HUB_OFFLINE forbids"),
    ):
        with pytest.raises(SourceError, match=words):
            tree_of({"merge_method": "linear", "models": sources(absent), "parameters": {"weight": 1}})
