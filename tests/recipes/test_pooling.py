"""Pools from references: as sources of recipes, changed, damaged, and what is refused before anything is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eutectic
from eutectic.errors import EutecticError, FormatError, NonFiniteError, OutputError, RecipeError, SourceError
from eutectic.pools.pool import Pool, open_pool
from eutectic.recipes.pool_changes import add, remove
from eutectic.recipes.pooling import named
from eutectic.recipes.verify_pool import verify_pool
from eutectic.weights.checkpoint import open_checkpoint

SCHEMES = ("tall", "bitdelta", "twin", "rmm")


@pytest.fixture
def pool(family: dict[str, Path], tmp_path: Path) -> Pool:
    """``a`` and ``b``, by TALL masks."""
    return eutectic.pack(family["base"], [str(family["a"]), str(family["b"])], tmp_path / "pool")


def values(checkpoint: Any) -> dict[str, bytes]:
    return {name: bytes(tensor.read()) for name, tensor in checkpoint.items()}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_member_is_a_source_like_any_other(family: dict[str, Path], tmp_path: Path, scheme: str) -> None:
    eutectic.pack(family["base"], {"x": family["a"], "y": family["b"]}, tmp_path / "pool", scheme=scheme)
    member = eutectic.open(f"{tmp_path / 'pool'}#x")
    document = {
        "merge_method": "linear",
        "models": [{"model": f"{tmp_path / 'pool'}#x", "parameters": {"weight": 0.5}},
                   {"model": str(family["b"]), "parameters": {"weight": 0.5}}],
    }  # fmt: skip
    eutectic.merge(document, tmp_path / "merged")
    merged, other = eutectic.open(tmp_path / "merged"), eutectic.open(family["b"])
    for name, tensor in member.items():
        if tensor.dtype.floating:
            half = (tensor.to_numpy().astype("f8") + other[name].to_numpy()) / 2
            np.testing.assert_allclose(merged[name].to_numpy(), half, rtol=1e-6, atol=1e-7)
    lock = json.loads((tmp_path / "merged" / "recipe.lock.json").read_text())
    assert lock["sources"][0]["path"] == f"{tmp_path / 'pool'}#x" and lock["sources"][0]["name"] == "pool#x"
    assert "pool#x" in (tmp_path / "merged" / "README.md").read_text()
    eutectic.merge(tmp_path / "merged" / "recipe.lock.json", tmp_path / "again")
    assert values(eutectic.open(tmp_path / "again")) == values(merged)


def test_a_member_is_found_beside_the_recipe(pool: Pool, tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    recipe = write_recipe("passthrough", ["./pool#a"])
    assert values(eutectic.merge(recipe)) == values(pool["a"])
    assert (tmp_path / "pool" / "core" / "config.json").is_file() and pool["a"].config == {"model_type": "tiny"}


def test_members_keep_their_licence(family: dict[str, Path], tmp_path: Path) -> None:
    (family["a"] / "README.md").write_text("---\nlicense: mit\n---\n")
    (family["base"] / "README.md").write_text("---\nlicense: other\n---\n")
    eutectic.pack(family["base"], {"x": family["a"]}, tmp_path / "pool")
    eutectic.merge({"merge_method": "passthrough", "models": [{"model": f"{tmp_path / 'pool'}#x"}]}, tmp_path / "out")
    assert (
        "license: mit" in (tmp_path / "out" / "README.md").read_text()
        or "mit" in (tmp_path / "out" / "README.md").read_text()
    )


def test_the_base_may_stay_where_it_is(family: dict[str, Path], tmp_path: Path) -> None:
    inside = eutectic.pack(family["base"], {"x": family["a"]}, tmp_path / "inside")
    beside = eutectic.pack(family["base"], {"x": family["a"]}, tmp_path / "beside", store_base=False)
    assert not (tmp_path / "beside" / "core").exists() and values(inside["x"]) == values(beside["x"])
    family["base"].rename(tmp_path / "moved")
    with pytest.raises(SourceError, match=r"its base .* is not there"):
        eutectic.open(f"{tmp_path / 'beside'}#x")
    assert any("is not there" in problem for problem in verify_pool(tmp_path / "beside").problems)
    family["a"].rename(family["base"])
    with pytest.raises(SourceError, match="has changed since the pool was made"):
        eutectic.open(f"{tmp_path / 'beside'}#x")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_removing_gives_the_pool_that_never_had_the_expert(
    family: dict[str, Path], make_model: Callable[..., Path], tmp_path: Path, scheme: str
) -> None:
    third = make_model("c", {n: t.to_numpy() for n, t in eutectic.open(family["a"]).items()} | {
        "embed.weight": np.ones((40, 8), np.float32)}, {"model_type": "tiny"})  # fmt: skip
    both = {"a": family["a"], "b": family["b"]}
    eutectic.pack(family["base"], {**both, "c": third}, tmp_path / "three", scheme=scheme)
    never = eutectic.pack(family["base"], both, tmp_path / "two", scheme=scheme)
    found = remove(tmp_path / "three", ["c"])
    assert list(found) == ["a", "b"] and verify_pool(tmp_path / "three").sound
    if scheme != "rmm":  # whose basis was made of three
        assert {name: values(found[name]) for name in found} == {name: values(never[name]) for name in never}
    log = found.manifest.log
    assert [(entry.action, entry.experts) for entry in log] == [("pack", ["a", "b", "c"]), ("remove", ["c"])]


@pytest.mark.parametrize("scheme", ["tall", "bitdelta", "twin"])
def test_adding_and_what_it_changes(family: dict[str, Path], tmp_path: Path, scheme: str) -> None:
    one = eutectic.pack(family["base"], {"a": family["a"]}, tmp_path / "pool", scheme=scheme)
    before = values(one["a"])
    two = add(tmp_path / "pool", f"b={family['b']}")
    assert list(two) == ["a", "b"] and verify_pool(tmp_path / "pool").sound and two.manifest.log[-1].experts == ["b"]
    assert (values(two["a"]) == before) == (scheme != "tall")  # whose sum now holds b
    whole = eutectic.pack(family["base"], {"a": family["a"], "b": family["b"]}, tmp_path / "whole", scheme=scheme)
    if scheme != "twin":  # whose shared expert stays
        assert {n: values(two[n]) for n in two} == {n: values(whole[n]) for n in whole}
    again = remove(tmp_path / "pool", ["b"])
    again = add(tmp_path / "pool", f"b={family['b']}", recompute=True)
    assert {n: values(again[n]) for n in again} == {n: values(whole[n]) for n in whole}
    with pytest.raises(RecipeError, match="has a member 'b' already"):
        add(tmp_path / "pool", f"b={family['b']}")


def test_a_change_that_needs_a_lost_source_changes_nothing(family: dict[str, Path], pool: Pool, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in (tmp_path / "pool").rglob("*") if path.is_file()}
    family["b"].rename(tmp_path / "gone")
    with pytest.raises(SourceError, match=r"member b was packed from .* which is not there.*--keep-shared"):
        remove(tmp_path / "pool", ["a"])
    assert {path.name: path.read_bytes() for path in (tmp_path / "pool").rglob("*") if path.is_file()} == before
    (tmp_path / "gone").rename(family["b"])
    kept = values(pool["b"])
    left = remove(tmp_path / "pool", ["a"], keep_shared=True)
    assert list(left) == ["b"] and values(left["b"]) == kept and verify_pool(tmp_path / "pool").sound


def test_two_at_once(family: dict[str, Path], pool: Pool, tmp_path: Path) -> None:
    import fcntl

    with (tmp_path / "pool" / "pool.json").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="being changed by another process"):
            remove(tmp_path / "pool", ["a"])


@pytest.mark.parametrize(
    ("experts", "settings", "error", "words"),
    [
        (["a", "x/a"], {}, RecipeError, "two experts are called 'a'; name them apart"),
        (["../=a"], {}, RecipeError, "cannot name an expert"),
        (["n m=a"], {}, RecipeError, "cannot name an expert"),
        ([], {}, RecipeError, "needs an expert"),
        (["a"], {"scheme": "tal"}, RecipeError, "no scheme of pools is called 'tal'; did you mean 'tall'"),
        (["a"], {"mask_lamda": 1}, RecipeError, "has no setting 'mask_lamda'; did you mean 'mask_lambda'"),
        (["a"], {"mask_lambda": -1}, RecipeError, "lies outside"),
        (["a"], {"mask_lambda": [1, 2]}, RecipeError, "2 values for 1 experts"),
        (["a"], {"sum": "int8"}, RecipeError, "is none of core, float32"),
        (["a"], {"scheme": "rmm", "error": 0.5, "directions": 3}, RecipeError, "both given"),
    ],
)
def test_what_is_refused(
    family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, experts: list[str],
    settings: dict[str, Any], error: type[EutecticError], words: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        eutectic.pack(family["base"], experts, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.partial"))


def test_models_that_do_not_fit(family: dict[str, Path], make_model: Callable[..., Path], tmp_path: Path) -> None:
    tensors = {name: tensor.to_numpy() for name, tensor in eutectic.open(family["a"]).items()}
    cases = {
        "lacks the tensor 'steps'": {n: t for n, t in tensors.items() if n != "steps"},
        "has the tensor 'more'": tensors | {"more": np.zeros(3, np.float32)},
        r"'embed.weight' is \[41, 8\], in the base \[40, 8\]": tensors | {"embed.weight": np.zeros((41, 8), "f4")},
    }
    for at, (words, changed) in enumerate(cases.items()):
        with pytest.raises(SourceError, match=words):
            eutectic.pack(family["base"], {"x": make_model(f"m{at}", changed)}, tmp_path / "out")
    tensors["layers.0.weight"] = np.full((8, 8), np.nan, np.float32)
    for scheme in SCHEMES:
        with pytest.raises(NonFiniteError, match=r"layers\.0\.weight"):
            eutectic.pack(family["base"], {"x": make_model(f"nan-{scheme}", tensors)}, tmp_path / "out", scheme=scheme)
        assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_what_lies_in_the_way(family: dict[str, Path], pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists; choose another"):
        eutectic.pack(family["base"], {"a": family["a"]}, tmp_path / "pool")
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial" / "mine").touch()
    with pytest.raises(OutputError, match="in the way"):
        eutectic.pack(family["base"], {"a": family["a"]}, tmp_path / "new")
    assert (tmp_path / "new.partial" / "mine").exists()


def test_integers_that_differ_are_told(
    family: dict[str, Path], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    tensors = {name: tensor.to_numpy() for name, tensor in eutectic.open(family["a"]).items()}
    other = make_model("other", tensors | {"steps": np.array([4], np.int64)})
    made = eutectic.pack(family["base"], {"x": other}, tmp_path / "out")
    assert made.manifest.experts["x"].absent == ["steps"] and made["x"]["steps"].to_numpy().tolist() == [3]


def test_damage_is_found(pool: Pool, tmp_path: Path) -> None:
    folder = tmp_path / "pool"
    assert verify_pool(folder).sound
    mask = folder / "experts" / "a.safetensors"
    raw = bytearray(mask.read_bytes())
    raw[-1] ^= 1
    mask.write_bytes(raw)
    assert verify_pool(folder).problems == ("experts/a.safetensors: its bytes differ from what was written",)
    mask.write_bytes(raw[:-3])
    with pytest.raises(FormatError):
        eutectic.open(f"{folder}#a")
    assert "bytes, not" in verify_pool(folder).problems[0]
    mask.unlink()
    with pytest.raises(SourceError, match="no such file"):
        eutectic.open(f"{folder}#a")
    assert eutectic.open(f"{folder}#b").nbytes
    (folder / "experts" / "z.safetensors").touch()
    assert [text.partition(":")[0] for text in verify_pool(folder).problems] == [
        "experts/a.safetensors", "experts/z.safetensors"
    ]  # fmt: skip


def test_a_manifest_from_elsewhere(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "pool" / "pool.json"
    document = json.loads(path.read_text())
    for change, words in (
        ({"pool": 2}, "of version 2; this reads 1; a newer version of eutectic made it"),
        ({"scheme": 3}, "unknown or of the wrong kind: scheme"),
        ({"more": 3}, "more"),
    ):
        path.write_text(json.dumps(document | change))
        with pytest.raises(FormatError, match=words):
            open_pool(tmp_path / "pool")
    path.write_text(json.dumps(document | {"scheme": "new"}))
    with pytest.raises(RecipeError, match="no scheme of pools is called 'new'"):
        open_pool(tmp_path / "pool")


def test_names_of_members(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no member 'c'; its members are a, b"):
        eutectic.open(f"{tmp_path / 'pool'}#c")
    with pytest.raises(SourceError, match="a pool of several models, not one"):
        open_checkpoint(tmp_path / "pool")
    with pytest.raises(SourceError, match="no such"):
        eutectic.open(f"{tmp_path / 'nowhere'}#a")
    assert named(["x/base+lora/fr", "p#q"]) == {"fr": "x/base+lora/fr", "q": "p#q"}


def test_a_member_may_be_packed_again(pool: Pool, family: dict[str, Path], tmp_path: Path) -> None:
    again = eutectic.pack(family["base"], [f"{tmp_path / 'pool'}#a"], tmp_path / "again", scheme="rmm", error=0.0)
    assert list(again) == ["a"] and again.manifest.experts["a"].name == "pool#a"


def test_a_pool_does_not_take_in_its_own_member(pool: Pool, tmp_path: Path) -> None:
    before = (tmp_path / "pool" / "pool.json").read_bytes()
    with pytest.raises(RecipeError, match="is a member of this pool"):
        add(tmp_path / "pool", f"again={tmp_path / 'pool'}#a")
    assert (tmp_path / "pool" / "pool.json").read_bytes() == before


def test_a_lock_on_a_manifest_that_was_replaced_is_none(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def late(descriptor: int, how: int) -> None:  # another process ends its change just before
        (tmp_path / "new").write_bytes((tmp_path / "pool" / "pool.json").read_bytes())
        (tmp_path / "new").replace(tmp_path / "pool" / "pool.json")

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(OutputError, match="being changed by another process"):
        remove(tmp_path / "pool", ["a"], keep_shared=True)
    assert list(open_pool(tmp_path / "pool")) == ["a", "b"]


def test_a_manifest_cannot_name_files_outside_the_pool(pool: Pool, tmp_path: Path) -> None:
    manifest = tmp_path / "pool" / "pool.json"
    document = json.loads(manifest.read_text())
    document["experts"]["../../x"] = document["experts"].pop("a")
    manifest.write_text(json.dumps(document))
    with pytest.raises(FormatError, match="cannot name an expert"):
        open_pool(tmp_path / "pool")


def test_names_given_twice_are_removed_once(pool: Pool, tmp_path: Path) -> None:
    found = remove(tmp_path / "pool", ["a", "a"], keep_shared=True)
    assert list(found) == ["b"] and found.manifest.log[-1].experts == ["a"]


def test_what_a_killed_change_left_is_removed(family: dict[str, Path], pool: Pool, tmp_path: Path) -> None:
    from eutectic.pools.folder import MARK
    from eutectic.weights.sink import staging_of

    staging = staging_of((tmp_path / "pool").absolute())
    (tmp_path / "pool").rename(staging)  # as if killed after the exchange: the old pool lies beside its place
    (staging / MARK).touch()
    found = eutectic.pack(family["base"], [str(family["a"])], tmp_path / "pool")
    assert list(found) == ["a"] and not staging.exists() and not (tmp_path / "pool" / MARK).exists()
    add(tmp_path / "pool", str(family["b"]))
    assert not staging.exists() and not (tmp_path / "pool" / MARK).exists()


def test_a_full_disk_is_told_with_a_cure_that_there_is(
    family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(EutecticError, match="no room left") as raised:
        eutectic.pack(family["base"], [str(family["a"])], tmp_path / "pool")
    assert "--resume" not in str(raised.value) and not (tmp_path / "pool").exists()
    assert not [path for path in tmp_path.iterdir() if "pool" in path.name]


def test_a_pool_behind_a_link_is_changed_where_it_lies(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("pool")
    assert list(remove(tmp_path / "link", ["a"])) == ["b"]
    assert (tmp_path / "link").is_symlink() and list(open_pool(tmp_path / "pool")) == ["b"]
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]


def test_integers_of_other_widths_are_compared_as_integers(make_model: Callable[..., Path], tmp_path: Path) -> None:
    weight = {"w": np.ones((4, 4), np.float32)}
    base = make_model("ids", weight | {"ids": np.arange(5)})
    same = make_model("ids32", {"w": weight["w"] * 2, "ids": np.arange(5, dtype=np.int32)})
    other = make_model("ids7", {"w": weight["w"] * 2, "ids": np.arange(7, 12, dtype=np.int32)})
    eutectic.pack(base, {"same": same}, tmp_path / "pool", scheme="bitdelta")
    found = add(tmp_path / "pool", f"other={other}").manifest.experts
    assert found["same"].absent == [] and found["other"].absent == ["ids"]
