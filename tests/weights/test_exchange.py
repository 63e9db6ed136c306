"""`exchange_folders`: in one step where the kernel can, in two renames elsewhere."""

from __future__ import annotations

import ctypes
import errno
from pathlib import Path
from typing import Any

import pytest

from eutectic.weights.exchange import exchange_folders


def two(folder: Path) -> tuple[Path, Path]:
    for name in ("new", "old"):
        (folder / name).mkdir()
        (folder / name / "who").write_text(name)
    return folder / "new", folder / "old"


def swapped(folder: Path) -> bool:
    who = {name: (folder / name / "who").read_text() for name in ("new", "old")}
    return who == {"new": "old", "old": "new"} and {entry.name for entry in folder.iterdir()} == {"new", "old"}


def test_the_kernels_way(tmp_path: Path) -> None:
    exchange_folders(*two(tmp_path))
    assert swapped(tmp_path)


class Library:
    """A C library whose renameat2 fails with `code`, or which has none."""

    def __init__(self, code: int | None) -> None:
        if code is not None:

            def renameat2(*arguments: Any) -> int:
                ctypes.set_errno(code)
                return -1

            self.renameat2 = renameat2


@pytest.mark.parametrize("code", [None, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_where_the_kernel_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None) -> None:
    new, old = two(tmp_path)
    monkeypatch.setattr(ctypes, "CDLL", lambda *arguments, **keywords: Library(code))
    exchange_folders(new, old)
    assert swapped(tmp_path)


def test_a_real_failure_changes_nothing(tmp_path: Path) -> None:
    new, old = two(tmp_path)
    with pytest.raises(FileNotFoundError):
        exchange_folders(tmp_path / "absent", old)
    assert (new / "who").read_text() == "new" and (old / "who").read_text() == "old"


def test_a_crash_between_the_renames_leaves_both_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = two(tmp_path)
    monkeypatch.setattr(ctypes, "CDLL", lambda *arguments, **keywords: Library(None))
    rename = Path.rename

    def crash(self: Path, target: Path) -> Path:
        if self == new:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", crash)
    with pytest.raises(KeyboardInterrupt):
        exchange_folders(new, old)
    assert (new / "who").read_text() == "new" and (tmp_path / "old.replaced" / "who").read_text() == "old"
