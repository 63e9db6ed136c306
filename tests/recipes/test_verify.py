"""`verify`: any change to a merged folder is found and named; an untouched one is sound."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from click.testing import Result
from safetensors.numpy import load_file, save_file

import eutectic
from eutectic.errors import FormatError, SourceError
from eutectic.recipes.merge import merge
from eutectic.recipes.plan import Options
from eutectic.recipes.provenance import LOCK
from eutectic.recipes.verify import verify

INDEX = "model.safetensors.index.json"


@pytest.fixture(params=[1 << 30, 600], ids=["one file", "shards"])
def merged(tmp_path: Path, family: dict[str, Path], request: pytest.FixtureRequest) -> Path:
    recipe = {"merge_method": "linear", "parameters": {"weight": 1}}
    recipe["models"] = [{"model": str(family[name])} for name in ("a", "b")]  # type: ignore[assignment]
    (family["a"] / "tokenizer.json").write_text('{"a": 1}')
    made = merge(recipe, tmp_path / "merged", Options(fsync=False, shard_bytes=request.param))
    assert isinstance(made, Path)
    return made


def problems(folder: Path) -> str:
    found = verify(folder)
    assert found.sound == (not found.problems)
    return "\n".join(found.problems)


def shard_of(folder: Path, name: str) -> Path:
    tensor = eutectic.open(folder)[name]
    return tensor.file.path  # type: ignore[attr-defined]


def flip(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def test_what_was_written_is_sound(merged: Path) -> None:
    found = verify(merged)
    assert found.sound and found.tensors == 5 and found.nbytes == eutectic.open(merged).nbytes
    assert found.files == len(list(merged.iterdir())) - 1 - len(list(merged.glob("*.safetensors")))
    assert verify(merged / LOCK) == found
    moved = shutil.move(merged, merged.with_name("moved"))
    assert verify(moved).sound


def test_a_flipped_bit_of_any_tensor(merged: Path) -> None:
    for name, tensor in eutectic.open(merged).items():
        for at in {0, tensor.nbytes - 1} if tensor.nbytes else ():
            path, place = shard_of(merged, name), tensor.offset + at  # type: ignore[attr-defined]
            flip(path, place)
            assert problems(merged) == f"{name}: its bytes differ from what was written"
            flip(path, place)
    assert verify(merged).sound


def test_a_changed_or_missing_side_file(merged: Path) -> None:
    for name in ("tokenizer.json", "config.json", "README.md", "recipe.yaml"):
        before = (merged / name).read_bytes()
        flip(merged / name, -2)
        assert problems(merged) == f"{name}: changed since it was written" or name == "config.json"
        assert name in problems(merged)
        (merged / name).unlink()
        assert problems(merged) == f"{name}: missing"
        (merged / name).write_bytes(before)
    assert verify(merged).sound


def rewrite(path: Path, change: Callable[[dict[str, numpy.ndarray]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_tensor_gone_or_added(merged: Path) -> None:
    path = shard_of(merged, "layers.0.scale")
    rewrite(path, lambda tensors: tensors.update(extra=numpy.ones(3, "f4")))
    assert "extra" in problems(merged)
    rewrite(path, lambda tensors: (tensors.pop("extra"), tensors.pop("layers.0.scale"))[:0])
    assert "layers.0.scale" in problems(merged)


def test_a_shard_gone_or_added(merged: Path) -> None:
    path = shard_of(merged, "embed.weight")
    path.rename(merged.parent / "kept")
    assert problems(merged)
    (merged.parent / "kept").rename(path)
    save_file({"extra": numpy.ones(3, "f4")}, merged / "model-99999-of-99999.safetensors")
    assert "model-99999-of-99999.safetensors" in problems(merged)


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"shape":[40,8]', b'"shape":[8,40]'), (b'"dtype":"F32","shape":[40', b'"dtype":"I32","shape":[40')],
)
def test_the_same_bytes_under_another_shape_or_type(merged: Path, old: bytes, new: bytes) -> None:
    path = shard_of(merged, "embed.weight")
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    assert problems(merged)


def test_folders_that_cannot_be_verified(tmp_path: Path, family: dict[str, Path], merged: Path) -> None:
    for path in (tmp_path / "absent", family["a"], family["a"] / "model.safetensors"):
        with pytest.raises(SourceError, match=f"no {LOCK}; only folders that"):
            verify(path)
    lock = json.loads((merged / LOCK).read_text())
    for output in (None, [], {}, {"digest": "md5", "tensors": {}}, {**lock["output"], "files": [1]}):
        (merged / LOCK).write_text(json.dumps({**lock, "output": output}))
        with pytest.raises(FormatError, match=LOCK):
            verify(merged)
    (merged / LOCK).write_text("{")
    with pytest.raises(FormatError, match="not valid JSON"):
        verify(merged)


def test_the_command(merged: Path, cli: Callable[..., Result]) -> None:
    sound = cli("verify", merged)
    assert sound.exit_code == 0 and "is sound: 5 tensors" in sound.stdout
    flip(shard_of(merged, "embed.weight"), eutectic.open(merged)["embed.weight"].offset)  # type: ignore[attr-defined]
    spoilt = cli("verify", merged)
    assert spoilt.exit_code == 7 and "embed.weight: its bytes differ" in spoilt.stderr and spoilt.stdout == ""
    told = cli("verify", merged, "--json")
    report = json.loads(told.stdout)
    assert told.exit_code == 7 and report["sound"] is False and len(report["problems"]) == 1
    assert cli("verify", merged.parent / "absent").exit_code == 4


def test_one_of_a_kind_is_one(make_model: Callable[..., Path], tmp_path: Path, cli: Callable[..., Result]) -> None:
    model = make_model("one", {"w": numpy.ones(4, "f4")})
    merge({"merge_method": "passthrough", "models": [{"model": str(model)}]}, tmp_path / "out", fsync=False)
    assert "is sound: 1 tensor (16 bytes) and" in cli("verify", tmp_path / "out").stdout
