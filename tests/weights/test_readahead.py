"""`ReadAhead`: silent on warm files, a bounded window ahead on cold ones, never in the way."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

from eutectic.weights import readahead
from eutectic.weights.checkpoint import Checkpoint, open_checkpoint
from eutectic.weights.readahead import ReadAhead, is_cached
from eutectic.weights.tensor_ref import StoredTensor


class Advice:
    """Records what the kernel is told, by file name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given: list[tuple[str, int, int, int]] = []
        self.wanted = threading.Event()
        monkeypatch.setattr(os, "posix_fadvise", self.take)

    def take(self, descriptor: int, offset: int, length: int, advice: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        self.given.append((name, offset, length, advice))
        self.wanted.set()

    def told(self, advice: int) -> list[tuple[str, int, int]]:
        return [(name, offset, length) for name, offset, length, kind in self.given if kind == advice]


def opened(folder: Path, name: str) -> Checkpoint:
    save_file({f"w{at}": numpy.ones(1000, "f4") for at in range(4)}, folder / name)
    return open_checkpoint(folder / name)


def test_a_file_just_written_is_cached(tmp_path: Path) -> None:
    refs = list(opened(tmp_path, "warm.safetensors").values())
    assert isinstance(refs[0], StoredTensor)
    assert is_cached(refs[0].file, refs[0].offset)


def test_warm_files_get_no_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advice = Advice(monkeypatch)
    refs = list(opened(tmp_path, "warm.safetensors").values())
    with ReadAhead(refs) as ahead:
        ahead.passed(refs)
    assert not ahead.cold and not advice.given


def test_cold_files_are_asked_for_in_order_and_dropped_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refs = list(opened(tmp_path, "cold.safetensors").values())
    monkeypatch.setattr(readahead, "available_memory", lambda: 0)  # too little to keep anything
    advice = Advice(monkeypatch)
    monkeypatch.setattr(readahead, "is_cached", lambda file, offset: False)
    with ReadAhead(refs) as ahead:
        for ref in refs:
            ahead.passed([ref])
        ahead._thread.join(5)
    places = [("cold.safetensors", ref.offset, ref.nbytes) for ref in refs if isinstance(ref, StoredTensor)]
    assert advice.told(os.POSIX_FADV_WILLNEED) == places
    assert advice.told(os.POSIX_FADV_DONTNEED) == places


def test_the_window_is_bounded_and_closing_ends_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refs = list(opened(tmp_path, "cold.safetensors").values())
    advice = Advice(monkeypatch)
    monkeypatch.setattr(readahead, "is_cached", lambda file, offset: False)
    monkeypatch.setattr(readahead, "WINDOW", 4000)
    with ReadAhead(refs) as ahead:
        assert advice.wanted.wait(5)
        ahead._thread.join(0.1)
        assert len(advice.told(os.POSIX_FADV_WILLNEED)) == 2  # one within the window, one that crosses it
    assert not ahead._thread.is_alive()


def test_what_was_warm_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The promise of the module: nothing that was cached before is dropped, even beside a cold file."""
    warm = list(opened(tmp_path, "warm.safetensors").values())
    cold = list(opened(tmp_path, "cold.safetensors").values())
    monkeypatch.setattr(readahead, "available_memory", lambda: 0)  # too little to keep anything
    advice = Advice(monkeypatch)
    monkeypatch.setattr(readahead, "is_cached", lambda file, offset: file.path.name.startswith("warm"))
    with ReadAhead([*warm, *cold]) as ahead:
        ahead.passed([*warm, *cold])
    assert {name for name, _, _ in advice.told(os.POSIX_FADV_DONTNEED)} == {"cold.safetensors"}
