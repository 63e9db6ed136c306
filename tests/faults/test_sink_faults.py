"""Faults under the sink, at every call in turn: OUT is absent or whole, and resuming gives the same bytes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eutectic.errors import EutecticError
from eutectic.recipes.merge import merge
from eutectic.recipes.plan import Options
from eutectic.weights import sink
from eutectic.weights.sink import JOURNAL

Contents = Callable[[Path], dict[str, bytes]]
CALLS = ("open", "ftruncate", "pwrite", "write", "fsync")
OPTIONS = Options(threads=1)


class Failing:
    """`os` as the sink sees it: the call number `at` of `CALLS` fails, or writes a part or nothing."""

    def __init__(self, at: int, fault: int | str) -> None:
        self.at, self.fault, self.calls, self.hit = at, fault, 0, ""

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*arguments: Any) -> Any:
            self.calls += 1
            if self.calls - 1 != self.at:
                return real(*arguments)
            self.hit = name
            if isinstance(self.fault, int):
                raise OSError(self.fault, os.strerror(self.fault))
            if name not in ("pwrite", "write"):
                return real(*arguments)
            if self.fault == "nothing":
                return 0
            descriptor, data, *offset = arguments
            return real(descriptor, data[: max(1, len(data) // 2)], *offset)

        return call


@pytest.fixture
def recipe(family: dict[str, Path]) -> dict[str, Any]:
    return {
        "merge_method": "ties",
        "base_model": str(family["base"]),
        "models": [{"model": str(family[name])} for name in ("a", "b")],
        "parameters": {"weight": 0.6, "density": 0.5},
    }


@pytest.fixture
def calm(recipe: dict[str, Any], tmp_path: Path, contents: Contents) -> dict[str, bytes]:
    merge(recipe, tmp_path / "calm", OPTIONS)
    return contents(tmp_path / "calm")


def count_calls(recipe: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    with monkeypatch.context() as patch:
        watched = Failing(-1, errno.EIO)
        patch.setattr(sink, "os", watched)
        merge(recipe, out, OPTIONS)
    assert watched.calls > 20
    return watched.calls


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO, errno.EDQUOT, "part", "nothing"])
def test_every_call_fails_once(
    fault: int | str, recipe: dict[str, Any], calm: dict[str, bytes], tmp_path: Path, contents: Contents,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    hit = set()
    for at in range(count_calls(recipe, tmp_path / "counted", monkeypatch)):
        out = tmp_path / f"out{at}"
        failed = ""
        with monkeypatch.context() as patch:
            failing = Failing(at, fault)
            patch.setattr(sink, "os", failing)
            try:
                merge(recipe, out, OPTIONS)
            except EutecticError as error:
                failed = str(error)
        hit.add(failing.hit)
        writes = failing.hit in ("pwrite", "write")
        assert bool(failed) == (isinstance(fault, int) or (fault == "nothing" and writes)), (at, failing.hit, failed)
        assert "Errno" not in failed
        if out.exists():
            assert {name: data for name, data in contents(out).items() if name != JOURNAL} == calm, at
        merge(recipe, out, OPTIONS, resume=True)
        assert contents(out) == calm, (at, failing.hit)
        assert not out.with_name(f"{out.name}.partial").exists()
    assert hit == set(CALLS)


@pytest.mark.parametrize("force", [False, True])
def test_the_last_rename_fails(
    force: bool, recipe: dict[str, Any], calm: dict[str, bytes], tmp_path: Path, contents: Contents,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    before: dict[str, bytes] = {}
    if force:
        merge({**recipe, "parameters": {"weight": 0.1}}, out, OPTIONS)
        before = contents(out)

    def fails(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(sink, "exchange_folders", fails)
        patch.setattr(Path, "rename", fails)
        with pytest.raises(EutecticError, match="cannot be renamed"):
            merge(recipe, out, OPTIONS, force=force)
    assert out.exists() == force
    assert not force or contents(out) == before
    merge(recipe, out, OPTIONS, resume=True, force=force)
    assert contents(out) == calm


def test_a_full_disk_is_named(recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "os", Failing(8, errno.ENOSPC))
    with pytest.raises(EutecticError, match="no room left"):
        merge(recipe, tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists()
