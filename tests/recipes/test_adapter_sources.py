"""Recipes of adapters that cannot be merged without their base, or not at all: refused before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import Result
from safetensors.numpy import load_file

from eutectic.errors import EutecticError, NonFiniteError, RecipeError, SourceError
from eutectic.recipes.merge import merge, plan

Make = Callable[..., Path]
HEAD = {"head.weight": np.ones((3, 5), "f4")}


def factors(rank: int = 2, rows: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.normal(size=(rows, rank)).astype("f4"), random.normal(size=(rank, 5)).astype("f4")


def recipe(method: str, *folders: Path, weight: float | None = 0.5, **top: Any) -> dict[str, Any]:
    parameters = {} if weight is None else {"parameters": {"weight": weight}}
    return {"merge_method": method, "models": [{"model": str(folder)} for folder in folders], **parameters, **top}


def refused(document: dict[str, Any], words: str, kind: type[EutecticError] = SourceError, **options: Any) -> None:
    with pytest.raises(kind, match=words):
        plan(document, **options)


@pytest.fixture
def two(make_adapter: Make) -> tuple[Path, Path]:
    return make_adapter("a", {"q": factors()}), make_adapter("b", {"q": factors(seed=1)})


def test_models_and_adapters_are_not_mixed(two: tuple[Path, Path], make_model: Make) -> None:
    model = make_model("model", {"q.weight": np.ones((6, 5), "f4")})
    words = r"a is an adapter, not a model: .*Write the model in front of it: \./model\+"
    refused(recipe("linear", two[0], model), words)
    refused(recipe("task_arithmetic", *two, base_model=str(model)), words)
    refused(recipe("ties", two[0], model), "ties needs a base_model", RecipeError)
    refused(recipe("linear", model, model, adapter={}), "adapter: says how merged adapters are written", RecipeError)


def test_a_folder_with_an_adapter_and_a_configuration_is_an_adapter(two: tuple[Path, Path]) -> None:
    """Else its factors would be averaged as if they were a model's weights."""
    (two[0] / "config.json").write_text("{}")
    assert list(plan(recipe("linear", *two))) == ["q.weight"]


@pytest.mark.parametrize(
    ("top", "words"),
    [
        ({"tokenizer_source": "base"}, "tokenizer_source: adapters are merged whole"),
        ({"chat_template": "chatml"}, "chat_template: adapters are merged whole"),
    ],
)
def test_words_that_mean_nothing_for_adapters(top: dict[str, Any], words: str, two: tuple[Path, Path]) -> None:
    refused(recipe("linear", *two, **top), words, RecipeError)


def test_parts_of_adapters(two: tuple[Path, Path]) -> None:
    sources = [{"model": str(folder), "layer_range": [0, 1]} for folder in two]
    document = {"merge_method": "linear", "slices": [{"sources": sources}], "parameters": {"weight": 1}}
    refused(document, "slices: adapters are merged whole", RecipeError)


def test_the_outermost_recipe_says_how_they_are_written(two: tuple[Path, Path], tmp_path: Path) -> None:
    for key, value in (("adapter", {"rank": 1}), ("dtype", "float16")):
        inner = recipe("linear", *two, **{key: value})
        outer = {"merge_method": "passthrough", "models": [{"model": inner}]}
        refused(outer, f"{key}: .*say it in the outermost", RecipeError)
        (tmp_path / "inner.yaml").write_text(yaml.safe_dump(inner))
        refused(recipe("passthrough", tmp_path / "inner.yaml", weight=None), "say it in the outermost", RecipeError)


def test_adapters_of_other_bases(make_adapter: Make) -> None:
    a = make_adapter("a", {"q": factors()})
    b = make_adapter("b", {"q": factors()}, base_model_name_or_path="org/other")
    c = make_adapter("c", {"q": factors()}, base_model_name_or_path=None)
    words = r"models\[1\]: .*b is an adapter of org/other, models\[0\]: .*a of org/base .*--allow-mismatch"
    refused(recipe("linear", a, b), words)
    assert plan(recipe("linear", a, b), allow_mismatch=True) and plan(recipe("linear", a, c))


def test_layouts_and_shapes_that_differ(make_adapter: Make) -> None:
    a = make_adapter("a", {"q": factors(rows=5)})
    refused(
        recipe("linear", a, make_adapter("b", {"q": factors(rows=5)}, fan_in_fan_out=True)), "fan_in_fan_out differs"
    )
    refused(recipe("linear", a, make_adapter("c", {"q": factors(rows=4)})), r"q\.weight: .*a \[5, 5\], .*c \[4, 5\]")


def test_dora_and_other_kinds(two: tuple[Path, Path], make_adapter: Make) -> None:
    dora = make_adapter("dora", {"q": factors()}, {"q.lora_magnitude_vector": np.ones(6, "f4")})
    refused(recipe("linear", two[0], dora), r"a DoRA adapter.* as \./base\+\./adapter.*extract-lora")
    refused(recipe("linear", two[0], make_adapter("ia3", {"q": factors()}, peft_type="IA3")), "of the kind 'IA3'")


def test_tensors_saved_whole(make_adapter: Make, tmp_path: Path) -> None:
    a, b = (make_adapter(n, {"q": factors()}, HEAD, modules_to_save=["head"]) for n in "ab")
    plain = make_adapter("plain", {"q": factors()})
    refused(recipe("linear", a, plain), r"plain: has no head\.weight, which .*a saved whole")
    made = plan(recipe("linear", a, plain), allow_mismatch=True)
    assert "copied from the first adapter that has it: 1 (head.weight)" in made.account.lines
    for order in ((a, plain), (plain, a)):  # whichever comes first, and whatever the method
        target = tmp_path / f"{order[0].name}-first"
        merge(recipe("task_arithmetic", *order), target, allow_mismatch=True, fsync=False)
        found = load_file(target / "adapter_model.safetensors")["base_model.model.head.weight"]
        np.testing.assert_array_equal(found, HEAD["head.weight"])
    refused(recipe("task_arithmetic", a, b, weight=0.3), r"head\.weight is saved whole .*its weights sum to 0\.6")
    refused(recipe("ties", a, b), r"head\.weight is saved whole .*it works on changes")
    refused(recipe("linear", a, b, weight=2, parameters={"normalize": False, "weight": 2}), "its weights sum to 4")
    assert plan(recipe("task_arithmetic", a, b)) and plan(recipe("karcher", a, b, weight=None))


def test_copies_of_the_base_must_agree(make_adapter: Make, tmp_path: Path) -> None:
    """PEFT stores an adapted embedding beside its factors; two that differ are of two bases."""
    table = np.ones((5, 6), "f4")
    one, two, other = (
        make_adapter(name, {"embed": factors()}, {"embed.base_layer.weight": factor * table})
        for name, factor in (("one", 1), ("two", 1), ("other", 2))
    )
    merge(recipe("linear", one, two), tmp_path / "out", fsync=False)
    with pytest.raises(SourceError, match=r"other: its copy of the base's embed\.weight is not that of"):
        merge(recipe("linear", one, other), tmp_path / "bad", fsync=False)
    assert not list(tmp_path.glob("bad*"))


def test_factors_that_cannot_be_averaged_apart(two: tuple[Path, Path], make_adapter: Make) -> None:
    form = {"adapter": {"space": "factors"}}
    refused(recipe("ties", *two, **form), "ties with these weights is no average", RecipeError)
    refused(recipe("task_arithmetic", *two, **{**form, "weight": 0.4}), "is no average", RecipeError)
    words = r"factors that are averaged apart need one rank and one scale\. Even then mean\(B\) mean\(A\) is not"
    refused(recipe("linear", two[0], make_adapter("c", {"q": factors(3)}), **form), words)
    refused(recipe("linear", two[0], make_adapter("d", {"q": factors()}, lora_alpha=5), **form), words)
    refused(recipe("linear", two[0], make_adapter("e", {"q": factors(), "k": factors()}), **form), words)
    both = {"adapter": {"space": "factors", "rank": 2}}
    refused(recipe("linear", *two, **both), "takes no rank and no max_error with 'space: factors'", RecipeError)


def test_other_machines_and_numbers(two: tuple[Path, Path], make_adapter: Make, tmp_path: Path) -> None:
    refused(recipe("linear", *two), "adapters are small and merged in this process", EutecticError, device="cuda")
    refused(recipe("linear", *two), "adapters are small and merged in this process", EutecticError, executor="ray")
    b, a = factors()
    b[1, 1] = np.nan
    broken = make_adapter("broken", {"q": (b, a)})
    for method in ("linear", "ties"):
        with pytest.raises(NonFiniteError, match="broken"):
            merge(recipe(method, two[0], broken), tmp_path / "out", fsync=False)
        assert not list(tmp_path.glob("out*"))


def test_a_misspelt_form(two: tuple[Path, Path]) -> None:
    for form, words in (
        ({"rnak": 2}, r"adapter\.rnak: unknown key 'rnak'; did you mean 'rank'"),
        ({"rank": 0}, r"adapter\.rank: 'rank' must be a whole number, at least 1; found 0"),
        ({"max_error": 1}, r"'max_error' must be a number between 0 and 1; found 1"),
        ({"space": "products"}, "'space' must be 'product' or 'factors'"),
        (3, "'adapter' must be a mapping"),
    ):
        refused(recipe("linear", *two, adapter=form), words, RecipeError)


def test_the_commands(
    two: tuple[Path, Path], tmp_path: Path, cli: Callable[..., Result], write_recipe: Callable[..., Path]
) -> None:
    path = write_recipe("ties", list(two), weight=0.5, density=0.5)
    planned = cli("plan", path)
    assert planned.exit_code == 0, planned.output
    assert "entry by entry, then the nearest factors of rank 2 or less" in planned.output
    merged = cli("merge", path, tmp_path / "out")
    assert "out: an adapter of 1 module, rank 2" in merged.output and "largest errors" in merged.output
    assert "this merge already" in cli("merge", path, tmp_path / "out", "--resume").output
    assert "is sound" in cli("verify", tmp_path / "out").output
    events = cli("merge", path, tmp_path / "json", "--json").stdout.splitlines()
    assert '"modules": [{"module": "q", "shape": [6, 5], "rank": 2, "error": 0.' in events[-1]
    path = write_recipe("linear", list(two), weight=0.5)
    merged = cli("merge", path, tmp_path / "exact")
    assert "an adapter of 1 module, rank 4" in merged.output and "errors" not in merged.output


def test_adapters_of_the_hub(
    two: tuple[Path, Path], serve_hub: Callable[..., Any], tmp_path: Path, contents: Callable[..., dict[str, bytes]]
) -> None:
    """Whether they are adapters is not asked while the recipe is read: it says so itself."""
    hub = serve_hub({"org/a": two[0], "org/b": two[1]})
    remote = {"merge_method": "ties", "models": [{"model": "org/a"}, {"model": "org/b"}], "parameters": {"weight": 1}}
    refused(remote, r"ties needs a base_model; if these are adapters, .* 'adapter: \{\}'", RecipeError)
    assert not hub.log
    out = merge({**remote, "adapter": {}}, tmp_path / "out", fsync=False)
    here = merge(recipe("ties", *two, weight=1), tmp_path / "here", fsync=False)
    name = "adapter_model.safetensors"
    assert contents(Path(str(out)))[name] == contents(Path(str(here)))[name]
    again = merge(tmp_path / "out" / "recipe.lock.json", tmp_path / "again", fsync=False)
    assert contents(Path(str(again)))[name] == contents(Path(str(here)))[name]
    assert "org/a" in (tmp_path / "out" / "README.md").read_text()
