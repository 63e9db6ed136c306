"""`SourceFile`: positioned reads, and clear errors for what is no readable file."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eutectic.errors import FormatError, SourceError
from eutectic.weights.files import SourceFile

DATA = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> SourceFile:
    path = tmp_path_factory.mktemp("files") / "data"
    path.write_bytes(DATA)
    return SourceFile(path)


@settings(max_examples=50, deadline=None)
@given(start=st.integers(0, len(DATA)), length=st.integers(0, len(DATA)))
def test_a_read_is_that_part_of_the_file(file: SourceFile, start: int, length: int) -> None:
    length = min(length, len(DATA) - start)
    assert file.read(start, length) == DATA[start : start + length]


def test_size_and_time_are_those_first_seen(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"12345678")
    file = SourceFile(path)
    os.utime(path, ns=(1, 1))
    assert (file.size, file.mtime_ns != 1) == (8, True)


def test_threads_share_one_descriptor(file: SourceFile) -> None:
    wrong: list[int] = []

    def read(at: int) -> None:
        for _ in range(200):
            if file.read(at, 97) != DATA[at : at + 97]:
                wrong.append(at)

    threads = [threading.Thread(target=read, args=(at * 1000,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_descriptor_closes_with_the_object(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"x")
    file = SourceFile(path)
    descriptor = file.fileno()
    del file
    with pytest.raises(OSError):
        os.fstat(descriptor)


def test_a_file_that_shrinks_is_an_error_not_a_short_answer(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(DATA)
    file = SourceFile(path)
    os.truncate(path, 100)
    with pytest.raises(FormatError, match=r"ends at byte 100, 400 bytes early; .*10240 bytes when it was opened"):
        file.read(50, 450)


def test_a_failing_disk_is_named(file: SourceFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(SourceError, match=r"data: reading 4 bytes at 8 failed: Input/output error \(EIO\)"):
        file.read(8, 4)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    for name, words in {
        "absent": "no such file",
        "folder": "not a regular file",
        "pipe": "not a regular file",
        "loop": "Too many levels",
        "x" * 300: "name too long",
    }.items():
        with pytest.raises(SourceError, match=words):
            SourceFile(tmp_path / name)
