"""Source files, read by positions from any thread, and the places where they lie: a disk, or elsewhere."""

from __future__ import annotations

import errno
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from eutectic.errors import FormatError, SourceError

__all__ = ["Place", "RemotePath", "SourceFile", "is_folder", "open_file"]


class RemotePath(ABC):
    """A file or folder elsewhere, with the part of pathlib's interface that readers of checkpoints use.

    `str()` gives what names it in recipes, lock files and messages, and never holds a secret.
    """

    name: str

    @property
    def suffix(self) -> str:
        """What follows the last dot of the name, dot included."""
        stem, dot, last = self.name.rpartition(".")
        return dot + last if stem and last else ""

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return self.name.removesuffix(self.suffix) if self.suffix else self.name

    @property
    @abstractmethod
    def parent(self) -> RemotePath:
        """The folder around it."""

    @property
    @abstractmethod
    def identity(self) -> tuple[str, str | None]:
        """The public name and the revision that a model card states."""

    @property
    def held_bytes(self) -> int:
        """What reading any number of its files keeps in memory."""
        return 0

    @abstractmethod
    def __truediv__(self, name: str) -> RemotePath:
        """A file of this folder."""

    @abstractmethod
    def is_dir(self) -> bool:
        """Whether it stands for a folder."""

    @abstractmethod
    def is_file(self) -> bool:
        """Whether there is such a file; a server that cannot be asked is an error, not an answer."""

    @abstractmethod
    def iterdir(self) -> Iterator[RemotePath]:
        """The files that lie directly in this folder, in order of their names."""

    @abstractmethod
    def open(self) -> SourceFile:
        """The file, its size known."""

    @abstractmethod
    def pinned(self) -> RemotePath:
        """The same place, at the revision that it has now."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(other) == str(self)

    def __hash__(self) -> int:
        return hash(str(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


Place = Path | RemotePath


def open_file(place: Place) -> SourceFile:
    """The file at a place."""
    return place.open() if isinstance(place, RemotePath) else SourceFile(place)


def is_folder(place: Place) -> bool:
    """Whether a place is a folder; never raises for a path."""
    return place.is_dir() if isinstance(place, RemotePath) else os.path.isdir(place)  # noqa: PTH112


class SourceFile:
    """One file on disk: its size and time as first seen, and positioned reads that are safe across threads.

    The descriptor is opened at the first read and closed with the object. Reads never move a shared file
    position and never map memory, so the process grows by the caller's buffers only.
    """

    on_disk = True
    """Whether the kernel's page cache and its advice apply."""
    etag: str | None = None
    """What a server calls this version of the file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Place = Path(path)
        try:
            status = os.stat(path)  # noqa: PTH116
        except FileNotFoundError:
            raise SourceError(f"{self.path}: no such file") from None
        except OSError as error:
            raise SourceError(f"{self.path}: cannot be read: {error.strerror}") from None
        if not os.path.isfile(path):  # noqa: PTH113  (one call; follows links)
            raise SourceError(f"{self.path}: not a regular file")
        self.size = status.st_size
        self.mtime_ns = status.st_mtime_ns
        self._descriptor: int | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"SourceFile({str(self.path)!r}, {self.size} bytes)"

    def check_unchanged(self) -> None:
        """Refuse a file that is another one than when it was opened.

        Raises:
            SourceError: its size or its time changed, or it is gone.
        """
        try:
            now = os.stat(str(self.path))  # noqa: PTH116
        except OSError as error:
            raise SourceError(f"{self.path} was changed during the merge: {error.strerror}") from None
        if (now.st_size, now.st_mtime_ns) != (self.size, self.mtime_ns):
            raise SourceError(f"{self.path} was changed during the merge; run it again with --force")

    def fileno(self) -> int:
        """The descriptor, opened read-only at first use."""
        if self._descriptor is None:
            with self._lock:
                if self._descriptor is None:
                    try:
                        descriptor = os.open(str(self.path), os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
                    except OSError as error:
                        raise SourceError(f"{self.path}: cannot be opened: {error.strerror}") from None
                    weakref.finalize(self, os.close, descriptor)
                    self._descriptor = descriptor
        return self._descriptor

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` (bytes) from `offset`; a file that ends early is an error, never a short answer."""
        descriptor, done, length = self.fileno(), 0, buffer.nbytes
        while done < length:
            try:
                count = os.preadv(descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                name = errno.errorcode.get(error.errno or 0, "?")
                raise SourceError(
                    f"{self.path}: reading {length} bytes at {offset} failed: {error.strerror} ({name})"
                ) from None
            if count == 0:
                raise FormatError(
                    f"{self.path}: ends at byte {offset + done}, {length - done} bytes early; "
                    f"it had {self.size} bytes when it was opened. Was it changed while being read?"
                )
            done += count

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`."""
        buffer = bytearray(length)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)
