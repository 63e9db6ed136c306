"""`open_checkpoint`: every way in which a model can lie on disk, and every way in which it can lie wrongly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.numpy import save_file

from eutectic.errors import FormatError, SourceError
from eutectic.weights.checkpoint import open_checkpoint

A, B = numpy.arange(6, dtype="f4").reshape(2, 3), numpy.arange(4, dtype="f2")
INDEX = "model.safetensors.index.json"


def shard(folder: Path, at: int, count: int, tensors: dict[str, numpy.ndarray]) -> str:
    name = f"model-{at:05d}-of-{count:05d}.safetensors"
    save_file(tensors, folder / name)
    return name


def two_shards(folder: Path, *, index: bool = True) -> dict[str, str]:
    where = {"a": shard(folder, 1, 2, {"a": A}), "b": shard(folder, 2, 2, {"b": B})}
    if index:
        write_index(folder, where)
    return where


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def holds_both(path: Path) -> bool:
    found = open_checkpoint(path)
    return list(found) == ["a", "b"] and all(
        numpy.array_equal(found[name].to_numpy(), array) for name, array in {"a": A, "b": B}.items()
    )


def test_a_single_file_and_its_folder(tmp_path: Path) -> None:
    save_file({"a": A, "b": B}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    for path in (tmp_path, tmp_path / "model.safetensors", str(tmp_path)):
        assert holds_both(Path(path))
        assert open_checkpoint(path).config == {"model_type": "x"}
    found = open_checkpoint(tmp_path)
    assert (found.nbytes, found.numel, len(found), "c" in found) == (32, 10, 2, False)
    assert [file.path.name for file in found.headers] == ["model.safetensors"]
    assert torch.equal(found.state_dict()["a"], torch.from_numpy(A))


def test_shards_by_index(tmp_path: Path) -> None:
    two_shards(tmp_path)
    assert holds_both(tmp_path) and holds_both(tmp_path / INDEX)


def test_shards_without_an_index(tmp_path: Path) -> None:
    two_shards(tmp_path, index=False)
    assert holds_both(tmp_path)


def test_a_folder_with_one_file_of_any_name(tmp_path: Path) -> None:
    save_file({"a": A, "b": B}, tmp_path / "my weights.safetensors")
    assert holds_both(tmp_path)


def test_torch_files(tmp_path: Path) -> None:
    state = {"a": torch.from_numpy(A), "b": torch.from_numpy(B)}
    for name in ("pytorch_model.bin", "weights.pt", "weights.pth", "weights.ckpt"):
        torch.save(state, tmp_path / name)
        assert holds_both(tmp_path / name)
        assert holds_both(tmp_path)
        (tmp_path / name).unlink()


def test_torch_shards_by_index(tmp_path: Path) -> None:
    names = [f"pytorch_model-{at:05d}-of-00002.bin" for at in (1, 2)]
    torch.save({"a": torch.from_numpy(A)}, tmp_path / names[0])
    torch.save({"b": torch.from_numpy(B)}, tmp_path / names[1])
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert holds_both(tmp_path)


def test_safetensors_come_before_torch_files(tmp_path: Path) -> None:
    save_file({"a": A, "b": B}, tmp_path / "model.safetensors")
    torch.save({"old": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert holds_both(tmp_path)


def test_a_linked_shard_is_followed(tmp_path: Path) -> None:
    """The hub's cache links every file of a snapshot to a blob outside the folder."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir(), snapshot.mkdir()
    for name in two_shards(blobs).values():
        (snapshot / name).symlink_to(blobs / name)
    (snapshot / INDEX).symlink_to(blobs / INDEX)
    assert holds_both(snapshot)


def test_a_missing_shard(tmp_path: Path) -> None:
    lost = two_shards(tmp_path)["b"]
    (tmp_path / lost).unlink()
    with pytest.raises(SourceError, match=f"shard {lost} is named by {INDEX} but missing; fetch it again"):
        open_checkpoint(tmp_path)
    (tmp_path / INDEX).unlink()
    with pytest.raises(SourceError, match="shard 2 of 2 is missing; fetch it again"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "target", ["../other.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "a\\b", "x\0y", ""]
)
def test_an_index_that_points_outside_its_folder(tmp_path: Path, target: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"b": B}, tmp_path / "other.safetensors")
    write_index(folder, {"b": target})
    with pytest.raises(FormatError, match="outside its own folder") as caught:
        open_checkpoint(folder)
    assert repr(target) in str(caught.value)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    names = [shard(tmp_path, at, 2, {"a": A}) for at in (1, 2)]
    with pytest.raises(FormatError, match=f"{names[1]}: 'a' is also stored in {names[0]}"):
        open_checkpoint(tmp_path)


def test_an_index_that_disagrees_with_the_shards(tmp_path: Path) -> None:
    where = two_shards(tmp_path)
    for weight_map, words in [
        ({**where, "ghost": where["a"]}, f"names 'ghost' in {where['a']}, which does not hold it"),
        ({"a": where["b"], "b": where["b"]}, "'a'"),
        ({"a": where["b"], "b": where["a"]}, "'a' is stored in .*-00001-.* says it is in .*-00002-"),
        ({}, "weight_map is empty"),
        ({"a": 3}, "must map tensor names to file names"),
        ([], "must map tensor names to file names"),
    ]:
        write_index(tmp_path, weight_map)
        with pytest.raises(SourceError, match=words):
            open_checkpoint(tmp_path)
    save_file({"b": B, "stray": B}, tmp_path / where["b"])
    write_index(tmp_path, where)
    with pytest.raises(FormatError, match=r"'stray' is stored in .* does not name it"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not valid JSON"), ("[1]", "a JSON list"), ("[" * 20_000, "not valid JSON"), ('"\\ud800"', "a JSON str")],
)
def test_an_index_or_config_that_is_no_json_object(tmp_path: Path, text: str, words: str) -> None:
    save_file({"a": A}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(FormatError, match=words):
        open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(FormatError, match=words):
        open_checkpoint(tmp_path)


def test_folders_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no weights found; a model folder holds"):
        open_checkpoint(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(SourceError, match="It holds an adapter, not a model"):
        open_checkpoint(tmp_path)
    for name in ("x.safetensors", "y.safetensors"):
        save_file({"a": A}, tmp_path / name)
    with pytest.raises(SourceError, match=r"2 weight files and no index: x.safetensors, y.safetensors; name the one"):
        open_checkpoint(tmp_path)


def test_paths_that_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "empty.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    for path, words in {
        tmp_path / "absent": "no such file",
        tmp_path / "notes.txt": "not a weight format known here",
        tmp_path / "loop": "Too many levels",
        tmp_path / "empty.safetensors": "holds no tensor",
        tmp_path / ("x" * 300): "name too long",
    }.items():
        with pytest.raises(SourceError, match=words):
            open_checkpoint(path)


def test_opening_reads_headers_only(tmp_path: Path) -> None:
    """A sparse 40 GB file opens at once: nothing of its tensors is read."""
    numel = 10_000_000_000
    header = json.dumps({"w": {"dtype": "F32", "shape": [numel], "data_offsets": [0, 4 * numel]}}).encode()
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 4 * numel)
    found = open_checkpoint(tmp_path)
    assert found.numel == numel
    assert found["w"].read(numel - 2, numel) == bytes(8)


def test_opening_loads_neither_torch_nor_numpy(tmp_path: Path) -> None:
    save_file({"a": A, "b": B}, tmp_path / "model.safetensors")
    torch.save({"a": torch.from_numpy(A)}, tmp_path / "old.bin")
    script = (
        "import sys; from eutectic.weights.checkpoint import open_checkpoint as o;"
        "import eutectic.weights.sink, eutectic.weights.readahead, eutectic.weights.exchange;"
        f"c = o({str(tmp_path)!r}); c['a'].read(); o({str(tmp_path / 'old.bin')!r})['a'].read();"
        "print(sorted({'torch', 'numpy', 'transformers', 'numba'} & sys.modules.keys()))"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"
