"""Writing a model folder so that nothing half-written ever looks finished.

Everything goes to the sibling `OUT.partial`: shards are created at their final size with their header first, tensors
are written by position in any order, a journal names each finished tensor with its digest. At the end files are
flushed and the folder is renamed to OUT in one step (or exchanged with it under `--force`). A killed run leaves only
`OUT.partial`; resuming trusts a journalled tensor only if its bytes still have that digest.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from eutectic.errors import OutputError, ResourceError
from eutectic.weights.digest import hash_range
from eutectic.weights.dtypes import DType
from eutectic.weights.exchange import exchange_folders
from eutectic.weights.safetensors import build_header

__all__ = [
    "DEFAULT_SHARD_BYTES",
    "Shard",
    "Sink",
    "Written",
    "explain",
    "fingerprint_of",
    "read_runs",
    "split_into_shards",
    "staging_of",
    "write_at",
]

DEFAULT_SHARD_BYTES = 5_000_000_000
JOURNAL = ".journal"
RUN = 1 << 20  # bytes re-read at a time
METADATA = {"format": "pt"}


class Written(Protocol):
    """What the sink needs to know of a tensor."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> DType: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True)
class Shard:
    """One weight file of the result: its name below the result's folder, header, and each tensor's absolute offset."""

    name: str
    header: bytes
    offsets: Mapping[str, int]
    nbytes: int


def split_into_shards(
    tensors: Sequence[Written], most_bytes: int = DEFAULT_SHARD_BYTES, components: Mapping[str, str] | None = None
) -> list[Shard]:
    """Files as transformers names them: tensors in order, a new file where the next would exceed `most_bytes`.

    `components` maps the folders of a pipeline to the names of their files: a tensor ``unet/name`` lies in ``unet/`` as
    ``name``. The default is one model: ``{"": "model"}``.
    """
    shards = []
    for folder, stem in (components or {"": "model"}).items():
        start = f"{folder}/" if folder else ""
        own = [tensor for tensor in tensors if tensor.name.startswith(start)]
        shards += _split(own, most_bytes, start, stem) if own or not folder else []
    return shards


def _split(tensors: Sequence[Written], most_bytes: int, folder: str, stem: str) -> list[Shard]:
    groups: list[list[Written]] = [[]]
    size = 0
    for tensor in tensors:
        if groups[-1] and size + tensor.nbytes > most_bytes:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.nbytes
    shards = []
    for at, group in enumerate(groups, 1):
        series = "" if len(groups) == 1 else f"-{at:05d}-of-{len(groups):05d}"
        header, offsets = build_header({t.name.removeprefix(folder): (t.dtype, t.shape) for t in group}, METADATA)
        places = {folder + name: offset for name, offset in offsets.items()}
        nbytes = len(header) + sum(t.nbytes for t in group)
        shards.append(Shard(f"{folder}{stem}{series}.safetensors", header, places, nbytes))
    return shards


def staging_of(out: Path) -> Path:
    """The folder that an unfinished `out` lives in."""
    return out.with_name(out.name + ".partial")


def explain(error: OSError, nbytes: int, staging: Path, *, resumes: bool = True) -> OutputError | ResourceError:
    """A failed write in words: what failed where, and what to do; `resumes` where the command has --resume."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceError(
            f"no room left while writing {nbytes:,} bytes under {staging} ({error.strerror}). "
            f"Free some space, then run the same command {'with --resume' if resumes else 'again'}."
        )
    cure = "--resume continues once mended" if resumes else "mend it and run the same command again"
    return OutputError(f"writing under {staging} failed: {error.strerror}; {cure}")


def write_at(descriptor: int, data: memoryview, offset: int | None, staging: Path, *, resumes: bool = True) -> None:
    """Write all of `data` at `offset` (None: at the end), however many calls it takes."""
    done = 0
    try:
        while done < data.nbytes:
            if offset is None:
                wrote = os.write(descriptor, data[done:])
            else:
                wrote = os.pwrite(descriptor, data[done:], offset + done)
            if wrote == 0:
                raise OSError(errno.EIO, "the file system takes no more bytes")
            done += wrote
    except OSError as error:
        raise explain(error, data.nbytes, staging, resumes=resumes) from None


def read_runs(descriptor: int, offset: int, nbytes: int) -> Iterator[memoryview]:
    """The bytes of a tensor that starts at `offset`, in runs of whole pieces."""
    buffer = bytearray(RUN)
    while nbytes:
        run = memoryview(buffer)[: min(RUN, nbytes)]
        count = os.preadv(descriptor, [run], offset)
        if count == 0:
            return
        yield run[:count]
        offset, nbytes = offset + count, nbytes - count


def fingerprint_of(staging: Path) -> str | None:
    """The fingerprint of the run that an unfinished result belongs to; None where it does not say."""
    try:
        first = json.loads((staging / JOURNAL).read_bytes().partition(b"\n")[0])
    except (OSError, ValueError):
        return None
    return first.get("fingerprint") if isinstance(first, dict) else None


class Sink:
    """One result being written. Use `write` and `complete` from any thread, then `finish`, once, from one.

    Args:
        out: the folder to make. tensors: everything that it will hold, in order. shards: how they are split.
        fingerprint: what the run depends on; a resumed run must have the same.
        resume: continue what is staged. force: replace `out`, and drop what is staged.
        fsync: flush to the disk before the final rename.
    """

    def __init__(
        self,
        out: Path,
        tensors: Sequence[Written],
        shards: Sequence[Shard],
        fingerprint: str,
        *,
        resume: bool = False,
        force: bool = False,
        fsync: bool = True,
    ) -> None:
        self.out, self.shards, self.fsync, self.force = out.absolute(), shards, fsync, force
        self.staging = staging_of(self.out)
        self.tensors = {tensor.name: tensor for tensor in tensors}
        self.digests: dict[str, str] = {}
        self._place = {name: (at, offset) for at, s in enumerate(shards) for name, offset in s.offsets.items()}
        self._lock = threading.Lock()
        self._files: list[int] = []
        self._journal = -1
        try:
            fresh = self._stage(fingerprint, resume)
            self._open_shards(fresh)
            if not fresh:
                self._trust_journal()
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------ staging

    def _stage(self, fingerprint: str, resume: bool) -> bool:
        """Make or take over the staging folder; returns whether it is new."""
        try:
            self.staging.parent.mkdir(parents=True, exist_ok=True)
            new = not self.staging.exists()
            if new:
                self.staging.mkdir()
        except OSError as error:
            raise OutputError(f"{self.staging} cannot be made: {error.strerror}") from None
        path = self.staging / JOURNAL
        foreign = self.staging.is_dir() and not path.exists() and any(self.staging.iterdir())
        if foreign:
            raise OutputError(f"{self.staging} is in the way and no merge of ours; move it, or choose another target")
        try:
            self._journal = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not path.exists() or os.fstat(self._journal).st_ino != path.stat().st_ino:
                raise BlockingIOError  # published by another process between our opening and our lock
        except BlockingIOError:
            self.close()
            raise OutputError(f"{self.staging} is being written by another process; wait for it or stop it") from None
        except OSError as error:
            self.close()
            raise OutputError(f"{path} cannot be written: {error.strerror}") from None
        if new:
            self._append({"fingerprint": fingerprint})
            return True
        if self.force and not resume:
            return self._restart(fingerprint)
        if not resume:
            self.close()
            raise OutputError(f"{self.staging} holds an unfinished merge: --resume continues it, --force starts over")
        first, *_ = self._entries() or [{}]
        if not first.get("fingerprint"):
            return self._restart(fingerprint)
        if first["fingerprint"] != fingerprint:
            self.close()
            raise OutputError(
                f"{self.staging} was started from another recipe, other sources or other options; "
                "--force starts over, or remove that folder"
            )
        return False

    def _restart(self, fingerprint: str) -> bool:
        for entry in self.staging.iterdir():
            if entry.name != JOURNAL:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        self._cut_journal(0)
        self._append({"fingerprint": fingerprint})
        return True

    def _cut_journal(self, nbytes: int) -> None:
        try:
            os.ftruncate(self._journal, nbytes)
        except OSError as error:
            raise explain(error, nbytes, self.staging) from None

    def _append(self, entry: dict[str, str]) -> None:
        self._write(self._journal, memoryview(json.dumps(entry).encode() + b"\n"), None)

    def _entries(self) -> list[dict[str, str]]:
        """The journal's whole lines; a torn last one is ignored, as its tensor may not be complete."""
        text = os.pread(self._journal, os.fstat(self._journal).st_size, 0)
        lines = text.split(b"\n")[:-1]
        entries = []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                break
            entries.append(entry if isinstance(entry, dict) else {})
        return entries

    def _open_shards(self, fresh: bool) -> None:
        for shard in self.shards:
            path = self.staging / shard.name
            try:
                path.parent.mkdir(exist_ok=True)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                self._files.append(descriptor)
                os.ftruncate(descriptor, shard.nbytes)
            except OSError as error:
                raise explain(error, shard.nbytes, self.staging) from None
            if fresh or os.pread(descriptor, len(shard.header), 0) != shard.header:
                self._write(descriptor, memoryview(shard.header), 0)

    def _trust_journal(self) -> None:
        torn = os.fstat(self._journal).st_size
        entries = self._entries()
        whole = sum(len(json.dumps(entry)) + 1 for entry in entries)
        if whole < torn:
            self._cut_journal(whole)
        for entry in entries[1:]:
            name, digest = entry.get("tensor"), entry.get("digest")
            if name in self.tensors and digest and hash_range(self.runs(name)) == digest:
                self.digests[name] = digest

    def runs(self, name: str) -> Iterator[memoryview]:
        """What is written of a tensor so far, read back in runs of whole pieces."""
        at, offset = self._place[name]
        return read_runs(self._files[at], offset, self.tensors[name].nbytes)

    # ------------------------------------------------------------------ writing

    def write(self, name: str, start: int, data: memoryview) -> None:
        """Write bytes of one tensor, `start` bytes into it."""
        at, offset = self._place[name]
        self._write(self._files[at], data, offset + start)

    def _write(self, descriptor: int, data: memoryview, offset: int | None) -> None:
        write_at(descriptor, data, offset, self.staging)

    def _flush(self, descriptor: int, nbytes: int) -> None:
        try:
            os.fsync(descriptor)
        except OSError as error:
            raise explain(error, nbytes, self.staging) from None

    def complete(self, name: str, digest: str) -> None:
        """Record that every byte of a tensor is written."""
        with self._lock:
            self.digests[name] = digest
            self._append({"tensor": name, "digest": digest})

    def finish(self, files: Mapping[str, bytes]) -> Path:
        """Add the other files, flush everything, and turn the staging folder into the result."""
        absent = [name for name in self.tensors if name not in self.digests]
        if absent:
            raise AssertionError(f"{len(absent)} tensors were never completed, {absent[0]!r} among them")
        for name, content in files.items():
            self._put(self.staging / name, content)
        if self.fsync:
            for shard, descriptor in zip(self.shards, self._files, strict=True):
                self._flush(descriptor, shard.nbytes)
            written = (*files, *(shard.name for shard in self.shards))
            for folder in sorted({(self.staging / name).parent for name in written} | {self.staging}):
                self._sync_folder(folder)
        self._publish()
        # last: until then a resumed run finds its work, and the lock is held
        (self.out / JOURNAL).unlink(missing_ok=True)
        self.close()
        return self.out

    def _put(self, path: Path, content: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise explain(error, len(content), self.staging) from None
        try:
            self._write(descriptor, memoryview(content), 0)
            if self.fsync:
                self._flush(descriptor, len(content))
        finally:
            os.close(descriptor)

    def _publish(self) -> None:
        try:
            if self.out.exists() and any(self.out.iterdir()):
                if not self.force:
                    raise OutputError(f"{self.out} appeared while merging; the result stays in {self.staging}")
                exchange_folders(self.staging, self.out)
                shutil.rmtree(self.staging)
            else:
                self.staging.rename(self.out)
        except OSError as error:
            raise OutputError(f"{self.staging} cannot be renamed to {self.out}: {error.strerror}") from None
        if self.fsync:
            self._sync_folder(self.out.parent)

    def _sync_folder(self, folder: Path) -> None:
        """Flush a folder's names."""
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise explain(error, 0, self.staging) from None
        try:
            self._flush(descriptor, 0)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Close every file; what is staged stays."""
        for descriptor in [*self._files, self._journal]:
            if descriptor >= 0:
                os.close(descriptor)
        self._files, self._journal = [], -1
