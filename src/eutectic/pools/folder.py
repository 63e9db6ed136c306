"""A pool's folder written beside its place and put there when it is whole; files with positions to write at."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from eutectic.errors import OutputError
from eutectic.pools.manifest import FILE
from eutectic.pools.scheme import Part
from eutectic.weights.exchange import exchange_folders
from eutectic.weights.safetensors import build_header
from eutectic.weights.sink import explain, staging_of, write_at

__all__ = ["PartFile", "refuse_target", "staged", "write_manifest"]

MARK = ".pool"  # in a staging folder from its first moment: it is ours to remove


class PartFile:
    """One safetensors file of parts, at its final size from the start; written by position, from any thread."""

    def __init__(self, path: Path, parts: Mapping[str, Part]) -> None:
        self.path, self.parts = path, parts
        header, self._offsets = build_header({name: (p.dtype, p.shape) for name, p in parts.items()}, {"format": "pt"})
        nbytes = len(header) + sum(part.nbytes for part in parts.values())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            os.ftruncate(self._file, nbytes)
        except OSError as error:
            raise explain(error, nbytes, path.parent, resumes=False) from None
        write_at(self._file, memoryview(header), 0, path.parent, resumes=False)

    @staticmethod
    def size(parts: Mapping[str, Part]) -> int:
        """Bytes of the file that holds these parts."""
        header, _ = build_header({name: (p.dtype, p.shape) for name, p in parts.items()}, {"format": "pt"})
        return len(header) + sum(part.nbytes for part in parts.values())

    def write(self, name: str, first: int, raw: np.ndarray) -> None:
        """Write the bytes of a part from entry `first` on."""
        if raw.size:
            at = self._offsets[name] + first * self.parts[name].dtype.size
            write_at(self._file, raw.data, at, self.path.parent, resumes=False)

    def close(self, *, fsync: bool = True) -> None:
        """Flush and close the file."""
        try:
            if fsync:
                os.fsync(self._file)
        except OSError as error:
            raise explain(error, 0, self.path.parent, resumes=False) from None
        finally:
            os.close(self._file)


def refuse_target(out: Path) -> None:
    """Refuse a target that exists.

    Raises:
        OutputError: it does.
    """
    if out.is_symlink() or out.exists():
        raise OutputError(f"{out} exists; choose another target or remove it")


@contextmanager
def staged(out: Path, *, replaces: bool = False) -> Iterator[Path]:
    """A folder beside `out` to write a pool into; it becomes `out` in one step when all went well, else it goes.

    Args:
        replaces: `out` is there and is exchanged for the new one; otherwise it must not exist.

    Raises:
        OutputError: `out` exists, or the folder cannot be made or put there.
    """
    out = out.resolve() if replaces else out.absolute()  # behind a link lies what is exchanged, not the link
    staging = staging_of(out)
    if not replaces:
        refuse_target(out)
    lock = _claim(staging)
    try:
        yield staging
        if replaces:
            (out / MARK).touch()  # what is staging after the exchange is ours to remove, too
            exchange_folders(staging, out)
        elif out.exists():
            raise OutputError(f"{out} appeared while packing; choose another target")
        else:
            staging.rename(out)
        (out / MARK).unlink()
        _sync_folder(out.parent)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}") from None
    finally:
        _remove(staging)
        os.close(lock)


def _claim(staging: Path) -> int:
    """Make the staging folder, in place of what a killed run left; the descriptor holds it until it is closed."""
    mark = staging / MARK
    try:
        if staging.exists() and not mark.exists() and (not staging.is_dir() or any(staging.iterdir())):
            raise OutputError(f"{staging} is in the way and no unfinished pool; move it, or choose another target")
        staging.mkdir(parents=True, exist_ok=True)
        lock = os.open(mark, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise OutputError(f"{staging} cannot be made: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for entry in staging.iterdir():
            if entry != mark:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    except BlockingIOError:
        os.close(lock)
        raise OutputError(f"{staging} is being written by another process; wait for it or stop it") from None
    except OSError as error:
        os.close(lock)
        raise OutputError(f"{staging} cannot be used: {error.strerror}") from None
    return lock


def _remove(staging: Path) -> None:
    """Remove a staging folder, its mark last: of what a killed run leaves of it, all is ours still."""
    for entry in staging.iterdir() if staging.is_dir() else ():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != MARK:
            entry.unlink(missing_ok=True)
    shutil.rmtree(staging, ignore_errors=True)


def write_manifest(folder: Path, text: str) -> None:
    """Write pool.json, last of all and in one step.

    Raises:
        OutputError, ResourceError: it cannot be written; the one that was there stays.
    """
    fresh = folder / f"{FILE}.partial"
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            write_at(descriptor, memoryview(text.encode()), 0, folder, resumes=False)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        fresh.replace(folder / FILE)
    except OSError as error:
        raise explain(error, len(text), folder, resumes=False) from None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
