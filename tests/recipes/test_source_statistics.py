"""Statistics beside a recipe's sources: bound to the same tensors, known to be the model's own, or refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import eutectic
from eutectic.errors import NonFiniteError, OutputError, RecipeError, SourceError, VerificationError
from eutectic.methods import fisher, regmean
from eutectic.recipes.executors import gpu
from eutectic.weights.checkpoint import open_checkpoint
from eutectic.weights.statistics_folder import identity_of, write_facts, write_kind

SHAPES = {"h.0.w": (4, 6), "h.1.w": (4, 6), "b": (4,)}
Make = Callable[..., Path]


def tensors(seed: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def grams(seed: int) -> dict[str, np.ndarray]:
    rows = tensors(seed, dict.fromkeys(("h.0.w", "h.1.w"), (20, 6)))
    return {name: (x.T @ x / 20).astype(np.float32) for name, x in rows.items()}


def write_stats(folder: Path, model: Path, **kinds: Mapping[str, np.ndarray]) -> Path:
    folder.mkdir()
    for kind, found in kinds.items():
        write_kind(folder, kind, {n: a.shape for n, a in found.items()}, iter([found]))
    identity = {"name": str(model), "fingerprint": identity_of(open_checkpoint(model))}
    write_facts(folder, {"model": identity, "data": {"fingerprint": "d"}, "kinds": list(kinds)})
    return folder


@pytest.fixture
def pair(make_model: Make, tmp_path: Path) -> list[dict[str, Any]]:
    """Two sources with the statistics of each."""
    found = []
    for at, name in enumerate("ab"):
        model = make_model(name, tensors(at))
        squares = {key: array**2 for key, array in tensors(at + 10).items()}
        stats = write_stats(tmp_path / f"{name}-stats", model, gram=grams(at + 20), fisher=squares)
        found.append({"model": str(model), "statistics": str(stats)})
    return found


def values(path: Path) -> dict[str, torch.Tensor]:
    return {name: ref.to_torch() for name, ref in open_checkpoint(path).items()}


def wanted(method: Any, kind: str, pair: list[dict[str, Any]], names: tuple[str, str]) -> torch.Tensor:
    models = [values(Path(source["model"])) for source in pair]
    stats = [values(Path(source["statistics"]) / f"{kind}.safetensors") for source in pair]
    found = [one.get(name) for one, name in zip(stats, names, strict=True)]
    return method([one[name] for one, name in zip(models, names, strict=True)], statistics=found)


@pytest.mark.parametrize(("method", "kind"), [(fisher, "fisher"), (regmean, "gram")])
def test_the_same_numbers_whatever_the_threads_the_device_and_the_form(
    method: Any, kind: str, pair: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"merge_method": method.name, "models": pair}
    one = values(eutectic.merge(recipe, tmp_path / "one", threads=1))  # type: ignore[arg-type]
    two = values(eutectic.merge(recipe, tmp_path / "two", threads=2))  # type: ignore[arg-type]
    monkeypatch.setattr(gpu, "check_device", lambda plan: torch.device("cpu"))
    far = values(eutectic.merge(recipe, tmp_path / "far", device="cuda"))  # type: ignore[arg-type]
    plan = eutectic.plan(recipe)
    for name in SHAPES:
        assert torch.equal(one[name], wanted(method, kind, pair, (name, name)))
        assert torch.equal(one[name], two[name]) and torch.equal(one[name], far[name])
        assert torch.equal(one[name], plan[name].to_torch())
    assert [line for line in plan.account.lines if "statistics" in line][-1] == f"statistics: {kind} of " + str(
        pair[1]["statistics"]
    )
    eutectic.verify(tmp_path / "one")


def test_slices_take_the_statistics_of_their_layers(pair: list[dict[str, Any]], tmp_path: Path) -> None:
    ranges = [[[0, 1], [1, 2]], [[1, 2], [0, 1]]]
    slices = [
        {"sources": [{**source, "layer_range": r} for source, r in zip(pair, two, strict=True)]} for two in ranges
    ]
    merged = values(eutectic.merge({"merge_method": "regmean", "slices": slices}, tmp_path / "out"))  # type: ignore[arg-type]
    assert torch.equal(merged["h.0.w"], wanted(regmean, "gram", pair, ("h.0.w", "h.1.w")))
    assert torch.equal(merged["h.1.w"], wanted(regmean, "gram", pair, ("h.1.w", "h.0.w")))


def test_inside_another_recipe(pair: list[dict[str, Any]], make_model: Make, tmp_path: Path) -> None:
    inner = {"merge_method": "regmean", "models": pair}
    third = {"model": str(make_model("c", tensors(5))), "parameters": {"weight": 1}}
    recipe = {"merge_method": "linear", "models": [{"model": inner, "parameters": {"weight": 1}}, third]}
    merged = values(eutectic.merge(recipe, tmp_path / "out"))  # type: ignore[arg-type]
    mean = (wanted(regmean, "gram", pair, ("h.0.w", "h.0.w")) + values(Path(third["model"]))["h.0.w"]) / 2
    assert torch.allclose(merged["h.0.w"], mean, atol=1e-6)
    outer = {"merge_method": "fisher", "models": [{**pair[0], "model": inner}, pair[1]]}
    with pytest.raises(RecipeError, match="statistics are of a stored model, not of a recipe"):
        eutectic.plan(outer)


def test_paths_are_found_from_the_recipe_and_written_out(pair: list[dict[str, Any]], tmp_path: Path) -> None:
    lines = [f"  - {{model: ./{n}, statistics: ./{n}-stats}}" for n in "ab"]
    (tmp_path / "r.yaml").write_text("\n".join(["merge_method: regmean", "models:", *lines]))
    plan = eutectic.plan(tmp_path / "r.yaml")
    assert [source["statistics"] for source in plan.expanded["models"]] == [s["statistics"] for s in pair]
    assert plan.recipe.canonical()["models"][0] == {"model": "./a", "statistics": "./a-stats"}


def test_a_recipe_without_them_is_told_the_command(pair: list[dict[str, Any]]) -> None:
    bare = [{"model": source["model"]} for source in pair]
    with pytest.raises(RecipeError) as caught:
        eutectic.plan({"merge_method": "regmean", "models": [pair[0], bare[1]]})
    (problem,) = caught.value.problems
    assert problem.startswith("recipe: models[1]: regmean needs the gram of this model") or "models[1]" in problem
    assert f"`eutectic stats collect {bare[1]['model']} --kinds gram --data SUITE --task TASK --out FOLDER`" in problem
    models = [{**source, "parameters": {"weight": 1}} for source in pair]
    with pytest.raises(RecipeError, match="linear needs no statistics; leave this key out"):
        eutectic.plan({"merge_method": "linear", "models": models})


def test_statistics_of_another_model(pair: list[dict[str, Any]]) -> None:
    swapped = [pair[0], {**pair[1], "statistics": pair[0]["statistics"]}]
    with pytest.raises(RecipeError, match=r"a-stats holds statistics of another model than \S+b \(they were collected"):
        eutectic.plan({"merge_method": "fisher", "models": swapped})


def test_what_does_not_fit(pair: list[dict[str, Any]], tmp_path: Path) -> None:
    def plan(kind: str, found: Mapping[str, np.ndarray], method: str = "regmean") -> None:
        folder = write_stats(tmp_path / f"odd-{len(list(tmp_path.iterdir()))}", Path(pair[1]["model"]), **{kind: found})
        recipe = {"merge_method": method, "models": [pair[0], {**pair[1], "statistics": str(folder)}]}
        eutectic.merge(recipe, tmp_path / "out")

    with pytest.raises(RecipeError, match=r"holds gram, not fisher; .* --kinds fisher .* adds it"):
        plan("gram", grams(0), "fisher")
    with pytest.raises(SourceError, match=r"h\.1\.w: \S+ has no gram of it, the other sources have"):
        plan("gram", {"h.0.w": grams(0)["h.0.w"]})
    with pytest.raises(SourceError, match=r"h\.0\.w \[4, 6\]: \S+ has a gram of \[4, 4\], not \[6, 6\]"):
        plan("gram", {**grams(0), "h.0.w": np.eye(4)})
    with pytest.raises(NonFiniteError, match=r"the gram of 'h\.0\.w' holds NaN"):
        plan("gram", {**grams(0), "h.0.w": np.full((6, 6), np.nan)})
    with pytest.raises(SourceError, match="holds no statistics"):
        eutectic.plan({"merge_method": "regmean", "models": [{**s, "statistics": str(tmp_path)} for s in pair]})
    assert not (tmp_path / "out").exists()


def test_a_result_never_replaces_its_statistics(pair: list[dict[str, Any]]) -> None:
    with pytest.raises(OutputError, match="a-stats is, holds or lies inside the source"):
        eutectic.merge({"merge_method": "regmean", "models": pair}, pair[0]["statistics"], force=True)


def test_a_lock_file_knows_its_statistics(pair: list[dict[str, Any]], tmp_path: Path) -> None:
    done = eutectic.merge({"merge_method": "regmean", "models": pair}, tmp_path / "out")
    eutectic.merge(done / "recipe.lock.json", tmp_path / "again")  # type: ignore[operator]
    file = Path(pair[0]["statistics"]) / "gram.safetensors"
    write_kind(file.parent, "gram", {n: a.shape for n, a in grams(7).items()}, iter([grams(7)]))
    with pytest.raises((SourceError, VerificationError)):
        eutectic.merge(done / "recipe.lock.json", tmp_path / "changed")  # type: ignore[operator]
