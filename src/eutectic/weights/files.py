"""A source file, read by positions from any thread."""

from __future__ import annotations

import errno
import os
import threading
import weakref
from pathlib import Path

from eutectic.errors import FormatError, SourceError

__all__ = ["SourceFile"]


class SourceFile:
    """One file on disk: its size and time as first seen, and positioned reads that are safe across threads.

    The descriptor is opened at the first read and closed with the object. Reads never move a shared file
    position and never map memory, so the process grows by the caller's buffers only.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            status = self.path.stat()
        except FileNotFoundError:
            raise SourceError(f"{self.path}: no such file") from None
        except OSError as error:
            raise SourceError(f"{self.path}: cannot be read: {error.strerror}") from None
        if not os.path.isfile(self.path):  # noqa: PTH113  (one call; follows links)
            raise SourceError(f"{self.path}: not a regular file")
        self.size = status.st_size
        self.mtime_ns = status.st_mtime_ns
        self._descriptor: int | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"SourceFile({str(self.path)!r}, {self.size} bytes)"

    def fileno(self) -> int:
        """The descriptor, opened read-only at first use."""
        if self._descriptor is None:
            with self._lock:
                if self._descriptor is None:
                    try:
                        descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
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
