"""`Sink`: nothing half-written ever looks finished; whatever was written whole is found again."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from eutectic.errors import OutputError, ResourceError
from eutectic.weights.checkpoint import open_checkpoint
from eutectic.weights.digest import hash_range
from eutectic.weights.dtypes import BY_NAME
from eutectic.weights.sink import Sink, split_into_shards, staging_of


def tensor(name: str, *shape: int, dtype: str = "F32") -> Any:
    nbytes = BY_NAME[dtype].size * int(numpy.prod(shape))
    return SimpleNamespace(name=name, dtype=BY_NAME[dtype], shape=shape, nbytes=nbytes)


TENSORS = [tensor("a", 3, 2), tensor("b", 5, dtype="BF16"), tensor("none", 0, 4), tensor("c")]


def data_of(one: Any) -> bytes:
    return bytes((len(one.name) + ord(one.name[0]) + at) % 256 for at in range(one.nbytes))


def digest_of(one: Any) -> str:
    return hash_range(iter([memoryview(data_of(one))] if one.nbytes else []))


def open_sink(out: Path, mark: str = "mark", shard_bytes: int = 1 << 30, **options: Any) -> Sink:
    return Sink(out, TENSORS, split_into_shards(TENSORS, shard_bytes), mark, fsync=False, **options)


def write_all(sink: Sink, tensors: list[Any] = TENSORS) -> None:
    for one in reversed(tensors):  # any order will do
        if one.name not in sink.digests:
            data = memoryview(data_of(one))
            half = one.nbytes // 2
            sink.write(one.name, half, data[half:])
            sink.write(one.name, 0, data[:half])
            sink.complete(one.name, digest_of(one))


def is_whole(out: Path) -> bool:
    found = open_checkpoint(out)
    return set(found) == {one.name for one in TENSORS} and all(
        bytes(found[one.name].read()) == data_of(one) for one in TENSORS
    )


@pytest.mark.parametrize("shard_bytes", [1 << 30, 30, 1])
@pytest.mark.parametrize("fsync", [True, False])
def test_what_is_written_reads_back(tmp_path: Path, shard_bytes: int, fsync: bool) -> None:
    shards = split_into_shards(TENSORS, shard_bytes)
    sink = Sink(tmp_path / "out", TENSORS, shards, "mark", fsync=fsync)
    write_all(sink)
    assert not (tmp_path / "out").exists()
    assert sink.finish({"config.json": b"{}"}) == tmp_path / "out"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["config.json", *(shard.name for shard in shards)]
    )
    assert not staging_of(tmp_path / "out").exists()
    for shard in shards:
        path = tmp_path / "out" / shard.name
        assert path.stat().st_size == shard.nbytes
        with safe_open(path, "np") as library:
            assert library.metadata() == {"format": "pt"}
            assert set(library.keys()) == shard.offsets.keys()
    if len(shards) == 1:
        assert is_whole(tmp_path / "out")


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=12), most=st.integers(1, 120))
def test_shards_keep_order_and_limit(sizes: list[int], most: int) -> None:
    tensors = [tensor(f"t{at}", size, dtype="U8") for at, size in enumerate(sizes)]
    shards = split_into_shards(tensors, most)
    assert [name for shard in shards for name in shard.offsets] == [one.name for one in tensors]
    for at, shard in enumerate(shards, 1):
        held = [one.nbytes for one in tensors if one.name in shard.offsets]
        assert sum(held) <= most or len([size for size in held if size]) == 1
        assert shard.nbytes == len(shard.header) + sum(held)
        expected = "model.safetensors" if len(shards) == 1 else f"model-{at:05d}-of-{len(shards):05d}.safetensors"
        assert shard.name == expected


def test_a_second_sink_is_refused_while_one_is_open(tmp_path: Path) -> None:
    first = open_sink(tmp_path / "out")
    for options in ({}, {"resume": True}, {"force": True}):
        with pytest.raises(OutputError, match="being written by another process"):
            open_sink(tmp_path / "out", **options)
    first.close()
    open_sink(tmp_path / "out", resume=True).close()


def test_unfinished_work_asks_what_to_do(tmp_path: Path) -> None:
    open_sink(tmp_path / "out").close()
    with pytest.raises(OutputError, match="unfinished merge: --resume continues it, --force starts over"):
        open_sink(tmp_path / "out")
    with pytest.raises(OutputError, match="started from another recipe"):
        open_sink(tmp_path / "out", mark="other", resume=True)
    open_sink(tmp_path / "out", mark="other", force=True).close()
    open_sink(tmp_path / "out", mark="other", resume=True).close()


def test_resuming_finds_what_was_whole(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "out")
    write_all(sink, TENSORS[:2])
    sink.write("c", 0, memoryview(b"half"))
    sink.close()
    again = open_sink(tmp_path / "out", resume=True)
    assert again.digests.keys() == {"a", "b"}
    write_all(again)
    assert is_whole(again.finish({}))


def test_a_journalled_tensor_whose_bytes_changed_is_not_trusted(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "out")
    write_all(sink)
    sink.write("a", 3, memoryview(b"!"))
    sink.close()
    again = open_sink(tmp_path / "out", resume=True)
    assert "a" not in again.digests and {"b", "c", "none"} <= again.digests.keys()
    write_all(again)
    assert is_whole(again.finish({}))


@pytest.mark.parametrize("harm", ["missing", "short", "long", "header"])
def test_a_damaged_shard_is_mended(tmp_path: Path, harm: str) -> None:
    sink = open_sink(tmp_path / "out")
    write_all(sink)
    sink.close()
    shard = staging_of(tmp_path / "out") / "model.safetensors"
    size = shard.stat().st_size
    if harm == "missing":
        shard.unlink()
    elif harm == "header":
        with open(shard, "r+b") as file:
            file.write(b"\0" * 16)
    else:
        os.truncate(shard, size - 9 if harm == "short" else size + 9)
    again = open_sink(tmp_path / "out", resume=True)
    write_all(again)
    assert is_whole(again.finish({}))


def test_no_room_says_so_and_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sink = open_sink(tmp_path / "out")
    write_all(sink, TENSORS[:1])
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(ResourceError, match=r"no room left while writing 4 bytes.*No space left.*--resume"):
            sink.write("c", 0, memoryview(b"1234"))
        patch.setattr(os, "write", full)
        with pytest.raises(ResourceError):
            sink.complete("c", digest_of(TENSORS[3]))
    sink.close()
    again = open_sink(tmp_path / "out", resume=True)
    assert again.digests.keys() == {"a"}
    write_all(again)
    assert is_whole(again.finish({}))


@pytest.mark.parametrize("place", ["write", "pwrite"])
def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    real = getattr(os, place)
    monkeypatch.setattr(os, place, lambda descriptor, data, *where: real(descriptor, data[:3], *where))
    sink = open_sink(tmp_path / "out")
    write_all(sink)
    sink.close()
    again = open_sink(tmp_path / "out", resume=True)
    assert len(again.digests) == len(TENSORS)
    assert is_whole(again.finish({"note": b"0123456789"}))
    assert (tmp_path / "out" / "note").read_bytes() == b"0123456789"


def test_finishing_with_a_tensor_missing_is_a_bug_that_shows(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "out")
    write_all(sink, TENSORS[:1])
    with pytest.raises(AssertionError, match="never completed"):
        sink.finish({})
    sink.close()
    assert not (tmp_path / "out").exists()


def test_force_replaces_the_folder_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    sink = open_sink(out, force=True)
    write_all(sink)
    assert (out / "old").exists()
    sink.finish({})
    assert is_whole(out) and not (out / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_target_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    """And so is the work: it can still be published once the target is out of the way."""
    sink = open_sink(tmp_path / "out")
    write_all(sink)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(OutputError, match="appeared while merging; the result stays in"):
        sink.finish({})
    sink.close()
    assert (tmp_path / "out" / "mine").read_text() == "mine"
    (tmp_path / "out").rename(tmp_path / "aside")
    again = open_sink(tmp_path / "out", resume=True)
    assert len(again.digests) == len(TENSORS)
    assert is_whole(again.finish({}))


@pytest.mark.parametrize("options", [{"resume": True}, {"force": True}, {"resume": True, "force": True}])
def test_a_folder_that_is_not_ours_is_never_emptied(tmp_path: Path, options: dict[str, bool]) -> None:
    """OUT.partial may be anything, such as what a download tool left there."""
    foreign = staging_of(tmp_path / "out")
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("five years")
    with pytest.raises(OutputError, match=r"out\.partial"):
        open_sink(tmp_path / "out", **options)
    assert (foreign / "thesis.txt").read_text() == "five years"


def test_an_empty_staging_folder_is_taken_over(tmp_path: Path) -> None:
    """What a run leaves that was killed before its first journal line."""
    staging_of(tmp_path / "out").mkdir()
    sink = open_sink(tmp_path / "out", resume=True)
    write_all(sink)
    assert is_whole(sink.finish({}))


def test_nobody_can_take_over_while_the_result_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process that resumes at the worst moment must not empty the folder that becomes OUT."""
    sink = open_sink(tmp_path / "out")
    write_all(sink)
    rename = Path.rename
    refused: list[str] = []

    def intruded(self: Path, target: Path) -> Path:
        try:
            open_sink(tmp_path / "out", resume=True).close()
        except OutputError as error:
            refused.append(str(error))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", intruded)
    sink.finish({})
    assert is_whole(tmp_path / "out")
    assert refused and "being written by another process" in refused[0]


def test_a_kill_just_before_the_rename_loses_no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    sink = open_sink(tmp_path / "out")
    write_all(sink)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            sink.finish({})
    sink.close()
    assert not (tmp_path / "out").exists()
    again = open_sink(tmp_path / "out", resume=True)
    assert len(again.digests) == len(TENSORS)
    assert is_whole(again.finish({}))


def test_whoever_tidies_up_meanwhile_breaks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second `--resume` finds the published result finished and removes its journal before this one does."""
    sink = open_sink(tmp_path / "out")
    write_all(sink)
    rename = Path.rename

    def tidied(self: Path, target: Path) -> Path:
        published = rename(self, target)
        (published / ".journal").unlink()
        return published

    monkeypatch.setattr(Path, "rename", tidied)
    assert is_whole(sink.finish({}))


def test_targets_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out, words in {
        tmp_path / "file" / "out": "cannot be made",
        tmp_path / ("x" * 250): "cannot be made: File name too long",
        tmp_path / ("x" * 300) / "out": "cannot be made: File name too long",
    }.items():
        with pytest.raises(OutputError, match=words):
            open_sink(out)
    staging_of(tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputError, match=r"taken\.partial"):
        open_sink(tmp_path / "taken", resume=True)


def test_names_are_those_of_transformers(tmp_path: Path) -> None:
    """Its own writer, asked for the same split, names the same files."""
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards

    state = {f"w{at}": torch.zeros(10) for at in range(5)}
    theirs = split_torch_state_dict_into_shards(state, max_shard_size=100, filename_pattern="model{suffix}.safetensors")
    ours = split_into_shards([tensor(name, 10) for name in state], 100)
    assert [shard.name for shard in ours] == list(theirs.filename_to_tensors)
    assert {s.name: list(s.offsets) for s in ours} == theirs.filename_to_tensors


def test_the_journal_is_json_lines(tmp_path: Path, contents: Callable[[Path], dict[str, bytes]]) -> None:
    sink = open_sink(tmp_path / "out")
    write_all(sink)
    sink.close()
    lines = contents(staging_of(tmp_path / "out"))[".journal"].splitlines()
    assert json.loads(lines[0]) == {"fingerprint": "mark"}
    assert {json.loads(line)["tensor"] for line in lines[1:]} == {one.name for one in TENSORS}
