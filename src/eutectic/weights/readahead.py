"""Cold storage: tell the kernel what will be read soon, and what is no longer needed.

Nothing is advised for files that already lie in the page cache, nor for those on another machine (`remote.py` reads
ahead there). What is consumed is dropped only where the sources are too large to be kept anyway, so that a merge of
large models does not push everything else out of memory.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

from eutectic.weights.files import SourceFile
from eutectic.weights.tensor_ref import StoredTensor, TensorRef

__all__ = ["ReadAhead", "available_memory", "is_cached"]

WINDOW = 128 << 20
STEP = 8 << 20
PROBES = 8


def is_cached(file: SourceFile, offset: int) -> bool:
    """Whether the page at `offset` can be read without waiting for the disk (Linux; elsewhere true)."""
    nowait = getattr(os, "RWF_NOWAIT", None)
    if nowait is None:
        return True
    try:
        return os.preadv(file.fileno(), [bytearray(1)], offset, nowait) == 1
    except BlockingIOError:
        return False
    except OSError:  # a file system without this flag: assume warm, which only costs speed
        return True


def available_memory() -> int:
    """Bytes that the kernel could give to new users, page cache included."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _is_cold(refs: list[StoredTensor]) -> bool:
    """Whether one of a few places in a file is not cached."""
    return any(not is_cached(ref.file, ref.offset + ref.nbytes // 2) for ref in refs[:: max(1, len(refs) // PROBES)])


class ReadAhead:
    """Advises the kernel up to 128 MB ahead of the tensors reported as `passed`, in the order given."""

    def __init__(self, refs: Sequence[TensorRef]) -> None:
        found = [ref.lies_in for ref in refs]
        stored = [ref for ref in found if isinstance(ref, StoredTensor) and ref.nbytes and ref.file.on_disk]
        by_file: dict[SourceFile, list[StoredTensor]] = {}
        for ref in stored:
            by_file.setdefault(ref.file, []).append(ref)
        self.cold = {file for file, refs in by_file.items() if _is_cold(refs)}
        self._queue = [ref for ref in stored if ref.file in self.cold]
        self.drops = sum(ref.nbytes for ref in self._queue) > available_memory() // 2
        self._passed = 0
        self._change = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._advise, daemon=True)

    def __enter__(self) -> ReadAhead:
        if self._queue:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._change:
            self._closed = True
            self._change.notify_all()
        if self._queue:
            self._thread.join()

    def passed(self, refs: Iterable[TensorRef]) -> None:
        """These tensors will not be read again."""
        if not self.cold:
            return
        found = [ref.lies_in for ref in refs]
        stored = [ref for ref in found if isinstance(ref, StoredTensor) and ref.file in self.cold]
        for ref in stored if self.drops else ():
            os.posix_fadvise(ref.file.fileno(), ref.offset, ref.nbytes, os.POSIX_FADV_DONTNEED)
        with self._change:
            self._passed += sum(ref.nbytes for ref in stored)
            self._change.notify_all()

    def _advise(self) -> None:
        advised = 0
        for ref in self._queue:
            for at in range(0, ref.nbytes, STEP):
                with self._change:
                    while not self._closed and advised - self._passed > WINDOW:
                        self._change.wait()
                    if self._closed:
                        return
                length = min(STEP, ref.nbytes - at)
                os.posix_fadvise(ref.file.fileno(), ref.offset + at, length, os.POSIX_FADV_WILLNEED)
                advised += length
