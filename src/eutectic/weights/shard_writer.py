"""One weight file of an unfinished result, filled by a process that does not own it: no journal, no lock.

The owner has made the file at its final size and keeps the journal (`sink.py`); whoever fills it writes tensors by
position and reports their digests. Two writers of one file write the same bytes, so a doubled task does no harm.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from eutectic.errors import OutputError
from eutectic.weights.sink import Shard, Written, explain, read_runs, write_at

__all__ = ["ShardWriter"]


class ShardWriter:
    """Writes some tensors of one shard into its file under `staging`; `digests` holds what is complete.

    Raises:
        OutputError: the file is not there, or is not the one that the owner made.
    """

    def __init__(self, staging: Path, shard: Shard, tensors: Sequence[Written]) -> None:
        self.staging, self.shard = staging, shard
        self.tensors = {tensor.name: tensor for tensor in tensors}
        self.digests: dict[str, str] = {}
        self._lock = threading.Lock()
        path = staging / shard.name
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}") from None
        same = os.fstat(self._file).st_size == shard.nbytes
        if not same or os.pread(self._file, len(shard.header), 0) != shard.header:
            self.close()
            raise OutputError(f"{path} is not the file that this merge began; --force starts over")

    def write(self, name: str, start: int, data: memoryview) -> None:
        """Write bytes of one tensor, `start` bytes into it."""
        write_at(self._file, data, self.shard.offsets[name] + start, self.staging)

    def complete(self, name: str, digest: str) -> None:
        """Record that every byte of a tensor is written."""
        with self._lock:
            self.digests[name] = digest

    def runs(self, name: str) -> Iterator[memoryview]:
        """What is written of a tensor, read back in runs of whole pieces."""
        return read_runs(self._file, self.shard.offsets[name], self.tensors[name].nbytes)

    def flush(self) -> None:
        """Flush what is written to the disk."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise explain(error, self.shard.nbytes, self.staging) from None

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
