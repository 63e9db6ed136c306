"""`merge`: kill it, starve it, resume it; the bytes are always the same, and OUT is whole or absent."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
import yaml
from safetensors.numpy import save_file

import eutectic
from eutectic.errors import OutputError, RecipeError, ResourceError, SourceError, VerificationError
from eutectic.recipes.merge import Watcher, merge, plan
from eutectic.recipes.plan import Options
from eutectic.recipes.provenance import LOCK
from eutectic.weights.sink import JOURNAL, Sink, staging_of

Contents = Callable[[Path], dict[str, bytes]]
QUICK = Options(fsync=False)
KILLS = int(os.environ.get("EUTECTIC_KILLS", "12"))  # `make test-full` kills a hundred times


def recipe_of(method: str, family: Mapping[str, Path], **parameters: Any) -> dict[str, Any]:
    models = [{"model": str(family[name])} for name in ("a", "b")]
    if method == "slerp":
        return {"merge_method": method, "models": models, "parameters": {"t": 0.3}}
    found = {"merge_method": method, "models": models, "parameters": {"weight": 0.6, **parameters}}
    return found if method == "linear" else {**found, "base_model": str(family["base"])}


def stop_before_the_end(recipe: Any, out: Path) -> Path:
    """A run in which every tensor is written and journalled, killed before it was published."""
    with pytest.MonkeyPatch.context() as patch:

        def killed(self: Sink, files: Mapping[str, bytes]) -> Path:
            raise KeyboardInterrupt

        patch.setattr(Sink, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            merge(recipe, out, QUICK)
    assert not out.exists()
    return staging_of(out)


# ---------------------------------------------------------------- kill -9


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three models of 48 MB in float32: a merge of them takes long enough to be killed anywhere."""
    folder = tmp_path_factory.mktemp("large")
    generator = numpy.random.default_rng(1)
    found = {}
    for name in ("base", "a", "b"):
        (folder / name).mkdir()
        tensors = {f"layers.{at}.weight": generator.standard_normal((750, 1000), dtype="f4") for at in range(16)}
        save_file(tensors, folder / name / "model.safetensors")
        found[name] = folder / name
    return found


def test_killed_at_random_moments_and_resumed(tmp_path: Path, large: dict[str, Path], contents: Contents) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_of("ties", large, density=0.3)))
    merge(recipe, tmp_path / "calm", QUICK)
    calm = contents(tmp_path / "calm")
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    command = [sys.executable, "-m", "eutectic.cli.main", "merge", recipe, out, "--resume", "--quiet"]
    command += ["--no-fsync", "--threads", "1", "--max-memory", "24MiB", "--out-shard-size", "5GB"]
    dice = random.Random(5)
    kills = 0
    for _ in range(4 * KILLS):
        staged_before = partial.exists()
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        while process.poll() is None and not partial.exists():
            time.sleep(0.001)
        end = time.monotonic() + dice.uniform(0, 0.35) + (0.5 if staged_before else 0)
        while process.poll() is None and time.monotonic() < end:
            if out.exists():
                assert calm.keys() <= {entry.name for entry in out.iterdir()}
                assert (out / "model.safetensors").stat().st_size == len(calm["model.safetensors"])
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors.decode()
        if process.returncode:
            kills += 1
        if out.exists():  # it was faster, or the kill came after the rename
            assert {name: data for name, data in contents(out).items() if name != JOURNAL} == calm
            shutil.rmtree(out)
        if kills >= KILLS:
            break
    assert kills >= KILLS
    subprocess.run(command, check=True)
    assert contents(out) == calm
    assert not partial.exists()


# ---------------------------------------------------------------- resume, cut by cut


def test_resumed_from_every_byte_of_the_journal(tmp_path: Path, family: dict[str, Path], contents: Contents) -> None:
    recipe = recipe_of("ties", family)
    merge(recipe, tmp_path / "calm", QUICK)
    calm = contents(tmp_path / "calm")
    staging = stop_before_the_end(recipe, tmp_path / "out")
    shutil.copytree(staging, tmp_path / "kept")
    size = (tmp_path / "kept" / JOURNAL).stat().st_size
    for cut in range(size + 1):
        shutil.copytree(tmp_path / "kept", staging, dirs_exist_ok=True)
        os.truncate(staging / JOURNAL, cut)
        merge(recipe, tmp_path / "out", QUICK, resume=True)
        assert contents(tmp_path / "out") == calm, cut
        shutil.rmtree(tmp_path / "out")


def test_a_spoilt_tensor_is_merged_again(tmp_path: Path, family: dict[str, Path], contents: Contents) -> None:
    recipe = recipe_of("ties", family)
    merge(recipe, tmp_path / "calm", QUICK)
    staging = stop_before_the_end(recipe, tmp_path / "out")
    with open(staging / "model.safetensors", "r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"\xaa" * 5)
    merge(recipe, tmp_path / "out", QUICK, resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "calm")


def test_resuming_reads_only_what_is_missing(tmp_path: Path, family: dict[str, Path]) -> None:
    """Nothing is merged twice: with every tensor journalled, a source may even have lost its data."""
    recipe = recipe_of("linear", family)
    stop_before_the_end(recipe, tmp_path / "out")
    moved: list[int] = []

    class Count(Watcher):
        def moved(self, nbytes: int) -> None:
            moved.append(nbytes)

    made = plan(recipe)
    merge(recipe, tmp_path / "out", QUICK, resume=True, watcher=Count())
    assert sum(moved) == 2 * made.nbytes and len(moved) == 1


def test_resume_with_nothing_staged_starts(tmp_path: Path, family: dict[str, Path]) -> None:
    assert merge(recipe_of("linear", family), tmp_path / "out", QUICK, resume=True) == tmp_path / "out"
    assert eutectic.verify(tmp_path / "out").sound


def test_resume_of_a_finished_merge_changes_nothing(
    tmp_path: Path, family: dict[str, Path], contents: Contents
) -> None:
    recipe = recipe_of("linear", family)
    merge(recipe, tmp_path / "out", QUICK)
    before, times = contents(tmp_path / "out"), [p.stat().st_mtime_ns for p in sorted((tmp_path / "out").iterdir())]
    assert merge(recipe, tmp_path / "out", QUICK, resume=True) == tmp_path / "out"
    assert contents(tmp_path / "out") == before
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").iterdir())] == times


def test_another_recipe_is_refused_and_force_starts_over(
    tmp_path: Path, family: dict[str, Path], contents: Contents
) -> None:
    staging = stop_before_the_end(recipe_of("linear", family), tmp_path / "out")
    before = contents(staging)
    other = recipe_of("linear", family, normalize=False)
    with pytest.raises(OutputError, match="started from another recipe, other sources or other options; --force"):
        merge(other, tmp_path / "out", QUICK, resume=True)
    with pytest.raises(OutputError, match="unfinished merge: --resume continues it, --force starts over"):
        merge(other, tmp_path / "out", QUICK)
    assert contents(staging) == before
    merge(other, tmp_path / "out", QUICK, force=True)
    merge(other, tmp_path / "calm", QUICK)
    assert contents(tmp_path / "out") == contents(tmp_path / "calm")


def test_other_options_or_sources_are_another_merge(tmp_path: Path, family: dict[str, Path]) -> None:
    recipe = recipe_of("dare_ties", family, density=0.5)
    stop_before_the_end(recipe, tmp_path / "out")
    for changed in (Options(fsync=False, seed=4), Options(fsync=False, shard_bytes=100)):
        with pytest.raises(OutputError, match="other options"):
            merge(recipe, tmp_path / "out", changed, resume=True)
    os.utime(family["a"] / "model.safetensors", ns=(5, 5))
    with pytest.raises(OutputError, match="other sources"):
        merge(recipe, tmp_path / "out", QUICK, resume=True)


def test_memory_and_threads_may_change_between_runs(
    tmp_path: Path, family: dict[str, Path], contents: Contents
) -> None:
    recipe = recipe_of("ties", family)
    merge(recipe, tmp_path / "calm", QUICK)
    staging = stop_before_the_end(recipe, tmp_path / "out")
    os.truncate(staging / JOURNAL, 200)
    merge(recipe, tmp_path / "out", Options(fsync=False, threads=3, max_memory=32 << 20), resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "calm")


def test_force_swaps_the_folder_in_one_step(tmp_path: Path, family: dict[str, Path], contents: Contents) -> None:
    merge(recipe_of("linear", family), tmp_path / "out", QUICK)
    old = contents(tmp_path / "out")
    new = recipe_of("ties", family)
    with pytest.raises(OutputError, match=r"exists\. --force replaces it"):
        merge(new, tmp_path / "out", QUICK)

    class Look(Watcher):
        def moved(self, nbytes: int) -> None:
            assert contents(tmp_path / "out") == old

    merge(new, tmp_path / "out", QUICK, force=True, watcher=Look())
    merge(new, tmp_path / "calm", QUICK)
    assert contents(tmp_path / "out") == contents(tmp_path / "calm")
    assert not staging_of(tmp_path / "out").exists()


def test_an_interrupted_force_leaves_the_old_folder(
    tmp_path: Path, family: dict[str, Path], contents: Contents
) -> None:
    merge(recipe_of("linear", family), tmp_path / "out", QUICK)
    old = contents(tmp_path / "out")

    class Stop(Watcher):
        def moved(self, nbytes: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(recipe_of("ties", family), tmp_path / "out", QUICK, force=True, watcher=Stop())
    assert contents(tmp_path / "out") == old
    merge(recipe_of("ties", family), tmp_path / "out", QUICK, force=True, resume=True)
    merge(recipe_of("ties", family), tmp_path / "calm", QUICK)
    assert contents(tmp_path / "out") == contents(tmp_path / "calm")


# ---------------------------------------------------------------- starved


@pytest.mark.parametrize("after", [0, 1, 2, 4, 6, 8])
def test_a_disk_that_fills_up_can_be_resumed(
    tmp_path: Path, family: dict[str, Path], contents: Contents, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    recipe = recipe_of("ties", family)
    merge(recipe, tmp_path / "calm", QUICK)
    real, calls = os.pwrite, 0

    def filling(descriptor: int, data: Any, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", filling)
        with pytest.raises(ResourceError, match=r"no room left .* --resume"):
            merge(recipe, tmp_path / "out", QUICK)
    assert not (tmp_path / "out").exists()
    merge(recipe, tmp_path / "out", QUICK, resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "calm")


def test_room_already_taken_by_the_staged_part_counts(
    tmp_path: Path, family: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run needs room for what is missing, not for what is on the disk already."""
    recipe = recipe_of("linear", family)
    staging = stop_before_the_end(recipe, tmp_path / "out")
    held = sum(path.stat().st_blocks * 512 for path in staging.iterdir())
    usage = shutil.disk_usage(tmp_path)
    left = plan(recipe).disk + (16 << 20) - held
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=left))
    with pytest.raises(ResourceError, match="bytes free; the result needs"):
        merge(recipe, tmp_path / "elsewhere", QUICK)
    merge(recipe, tmp_path / "out", QUICK, resume=True)


def test_a_source_that_shrinks_while_it_is_read(tmp_path: Path, family: dict[str, Path]) -> None:
    shard = family["b"] / "model.safetensors"

    class Shrink(Watcher):
        def planned(self, plan: Any) -> None:
            os.truncate(shard, shard.stat().st_size // 2)

    with pytest.raises(SourceError, match=f"{shard}: ends at byte .* Was it changed while being read"):
        merge(recipe_of("linear", family), tmp_path / "out", QUICK, watcher=Shrink())
    assert not (tmp_path / "out").exists()


def test_a_recipe_edited_during_the_merge_is_recorded_as_it_was_read(tmp_path: Path, family: dict[str, Path]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_of("linear", family)))
    text = path.read_text()

    class Edit(Watcher):
        def planned(self, plan: Any) -> None:
            path.unlink()

    merge(path, tmp_path / "out", QUICK, watcher=Edit())
    assert (tmp_path / "out" / "recipe.yaml").read_text() == text


# ---------------------------------------------------------------- the same bytes


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three models whose largest tensor has several blocks and no round size."""
    folder = tmp_path_factory.mktemp("medium")
    generator = numpy.random.default_rng(2)
    found = {}
    for name in ("base", "a", "b"):
        (folder / name).mkdir()
        tensors = {
            "embed.weight": generator.standard_normal((1013, 311), dtype="f4"),
            "half.weight": generator.standard_normal((70_000,), dtype="f4").astype("f2"),
            "norm.weight": generator.standard_normal(65_536, dtype="f4"),
            "scale": generator.standard_normal((), dtype="f4"),
        }
        save_file(tensors, folder / name / "model.safetensors")
        found[name] = folder / name
    return found


METHODS = [
    ("linear", {}),
    ("slerp", {}),
    ("task_arithmetic", {}),
    ("ties", {"density": 0.4}),
    ("ties", {"density": 0.4, "scope": "model", "rescale": True}),
    ("dare_ties", {"density": 0.4}),
    ("dare_linear", {"density": 0.4}),
]


@pytest.mark.parametrize(("method", "parameters"), METHODS, ids=lambda value: str(value))
def test_threads_memory_and_lazy_reads_change_no_byte(
    tmp_path: Path, medium: dict[str, Path], contents: Contents, method: str, parameters: dict[str, Any]
) -> None:
    recipe = recipe_of(method, medium, **parameters)
    merge(recipe, tmp_path / "one", Options(fsync=False, threads=1))
    calm = contents(tmp_path / "one")
    for at, options in enumerate(
        [
            Options(fsync=False, threads=2),
            Options(fsync=False, threads=4, max_memory=1 << 30),
            Options(fsync=False, threads=1, max_memory=12 << 20),
        ]
    ):
        merge(recipe, tmp_path / f"other{at}", options)
        assert contents(tmp_path / f"other{at}") == calm
    lazy, written = merge(recipe, threads=1, max_memory=20 << 20), eutectic.open(tmp_path / "one")
    assert not isinstance(lazy, Path)
    for name, tensor in written.items():
        assert lazy[name].read() == tensor.read()


def test_shards_change_no_tensor(tmp_path: Path, medium: dict[str, Path]) -> None:
    recipe = recipe_of("ties", medium)
    merge(recipe, tmp_path / "one", QUICK)
    merge(recipe, tmp_path / "many", QUICK, shard_bytes=300_000)
    one, many = eutectic.open(tmp_path / "one"), eutectic.open(tmp_path / "many")
    assert len(many.headers) > 1 and one.keys() == many.keys()
    assert all(one[name].read() == many[name].read() for name in one)


def test_the_seed_decides_random_methods(tmp_path: Path, medium: dict[str, Path]) -> None:
    recipe = recipe_of("dare_linear", medium, density=0.5)
    bytes_of = [merge(recipe, seed=seed)["norm.weight"].read() for seed in (1, 1, 2)]  # type: ignore[index]
    assert bytes_of[0] == bytes_of[1] != bytes_of[2]


# ---------------------------------------------------------------- from a lock file


def test_a_lock_file_rebuilds_the_same_bytes(tmp_path: Path, family: dict[str, Path], contents: Contents) -> None:
    recipe = recipe_of("dare_ties", family, density=0.5)
    merge(recipe, tmp_path / "first", QUICK, seed=9, shard_bytes=600)
    merge(tmp_path / "first" / LOCK, tmp_path / "again", QUICK)
    first, again = contents(tmp_path / "first"), contents(tmp_path / "again")
    assert first.keys() == again.keys()
    for name in first:
        if name.endswith((".safetensors", ".json")):
            assert first[name] == again[name], name
    assert eutectic.verify(tmp_path / "again").sound


def test_a_lock_file_rebuilds_the_card_and_the_recipe_too(
    tmp_path: Path, family: dict[str, Path], contents: Contents
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("# my best mixture\n" + yaml.safe_dump(recipe_of("linear", family)))
    merge(path, tmp_path / "first", QUICK)
    merge(tmp_path / "first" / LOCK, tmp_path / "again", QUICK)
    assert contents(tmp_path / "first") == contents(tmp_path / "again")


def change_a_value(model: Path) -> None:
    path = model / "model.safetensors"
    status = path.stat()
    with open(path, "r+b") as file:
        file.seek(-10, os.SEEK_END)
        file.write(b"\x40")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_source_with_another_header_is_named(tmp_path: Path, family: dict[str, Path]) -> None:
    merge(recipe_of("linear", family), tmp_path / "first", QUICK)
    tensors = {name: tensor.to_numpy() for name, tensor in eutectic.open(family["b"]).items()}
    save_file({**tensors, "layers.0.scale": numpy.ones((1,), "f4")}, family["b"] / "model.safetensors")
    with pytest.raises(SourceError) as caught:
        merge(tmp_path / "first" / LOCK, tmp_path / "again", QUICK)
    assert str(family["b"]) in str(caught.value) or "b [1]" in str(caught.value)
    with pytest.raises(RecipeError, match="--allow-mismatch: allow_mismatch was false"):
        merge(tmp_path / "first" / LOCK, tmp_path / "again", QUICK, allow_mismatch=True)
    assert not (tmp_path / "again").exists() and not staging_of(tmp_path / "again").exists()


def test_a_changed_value_is_found_at_once_if_sources_were_hashed(tmp_path: Path, family: dict[str, Path]) -> None:
    merge(recipe_of("linear", family), tmp_path / "first", QUICK, hash_sources=True)
    change_a_value(family["b"])
    with pytest.raises(SourceError, match="sources are not those of the lock file") as caught:
        merge(tmp_path / "first" / LOCK, tmp_path / "again", QUICK)
    assert f"{family['b']}: model.safetensors changed" in str(caught.value)
    assert str(family["a"]) not in str(caught.value)
    assert not staging_of(tmp_path / "again").exists()


def test_a_changed_value_is_found_in_the_result_otherwise(tmp_path: Path, family: dict[str, Path]) -> None:
    merge(recipe_of("linear", family), tmp_path / "first", QUICK)
    change_a_value(family["b"])
    with pytest.raises(VerificationError, match=r"differ from the lock file in 1 of 5: .*values changed although"):
        merge(tmp_path / "first" / LOCK, tmp_path / "again", QUICK)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"options": []}, {"options": {"seed": 0}}, {"options": {"seed": "x"}}, {"sources": "x"}, {"sources": [{}]},
        {"recipe": [1]}, {"recipe": None}, {"recipe": "/etc/hostname"}, {"output": None}, {"output": {}},
        {"output": {"tensors": []}}, {"lock": 2}, {"lock": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_lock_file_that_makes_no_sense(tmp_path: Path, family: dict[str, Path], change: dict[str, Any]) -> None:
    merge(recipe_of("linear", family), tmp_path / "first", QUICK)
    lock = json.loads((tmp_path / "first" / LOCK).read_text())
    (tmp_path / "bad.lock.json").write_text(json.dumps({**lock, **change}))
    with pytest.raises(eutectic.EutecticError, match=r"bad\.lock\.json"):
        merge(tmp_path / "bad.lock.json", tmp_path / "out", QUICK)
    assert not (tmp_path / "out").exists() and not staging_of(tmp_path / "out").exists()


# ---------------------------------------------------------------- ways to call it


def test_a_mapping_a_path_a_text_and_a_recipe_are_one(tmp_path: Path, family: dict[str, Path]) -> None:
    from eutectic.recipes.schema import load_recipe

    mapping = recipe_of("linear", family)
    text = yaml.safe_dump(mapping)
    (tmp_path / "r.yml").write_text(text)
    expected = {name: tensor.read() for name, tensor in plan(mapping).items()}
    for at, recipe in enumerate((mapping, text, tmp_path / "r.yml", str(tmp_path / "r.yml"), load_recipe(mapping))):
        merge(recipe, tmp_path / f"out{at}", QUICK)
        assert {n: t.read() for n, t in eutectic.open(tmp_path / f"out{at}").items()} == expected


@pytest.mark.parametrize("kind", ["to a folder", "to nothing", "to a model"])
def test_a_target_that_is_a_link(tmp_path: Path, family: dict[str, Path], kind: str) -> None:
    """The result comes where the link points, or the link is refused before any work; never after it."""
    real, link = tmp_path / "disk" / "real", tmp_path / "out"
    real.parent.mkdir()
    if kind == "to a folder":
        real.mkdir()
    if kind == "to a model":
        shutil.copytree(family["a"], real)
    link.symlink_to(real)
    try:
        merge(recipe_of("linear", family), link, QUICK, force=True)
    except OutputError as error:
        assert "link" in str(error)
        assert not staging_of(link).exists() and not staging_of(real).exists()
    else:
        assert eutectic.verify(link).sound and link.is_symlink()
        assert not staging_of(link).exists() and not staging_of(real).exists()


def test_nested_recipes_equal_two_steps(tmp_path: Path, medium: dict[str, Path]) -> None:
    inner = {**recipe_of("linear", medium), "dtype": "float32"}
    merge(inner, tmp_path / "inner", QUICK)
    outer = {"merge_method": "linear", "parameters": {"weight": 1}}
    base = {"model": str(medium["base"])}
    two = plan({**outer, "models": [{"model": str(tmp_path / "inner")}, base], "dtype": "float32"})
    one = plan({**outer, "models": [{"model": inner}, base], "dtype": "float32"})
    for name in one:
        assert one[name].read() == two[name].read()
