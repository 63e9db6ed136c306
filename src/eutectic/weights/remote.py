"""A file on another machine, read by ranges: a `SourceFile` like any other, of which a few pieces are in memory.

Needs obstore (extra `remote`). A piece that fails is asked for again a few times, with growing pauses; a file that
changes under way, a server that cannot serve ranges and an answer of the wrong length are never taken for data.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar, cast

from eutectic.errors import FormatError, MissingDependencyError, SourceError
from eutectic.weights.files import RemotePath, SourceFile

__all__ = ["HELD_BYTES", "Absent", "Refused", "RemoteFile", "Store", "Window", "insistent"]

START = 256 << 10  # bytes of the first piece: most headers, and any small file
PIECE = 2 << 20
SLOTS = 8  # pieces of one source in memory
AHEAD = 3  # pieces asked for before they are needed
HELD_BYTES = (SLOTS + 2 * (AHEAD + 1)) * PIECE  # of one source: pieces held, and those that arrive, in parts and joined
RECENT = 8  # pieces of a file that are remembered, to see what is read in order
ATTEMPTS = 5
PAUSE, MOST_PAUSE = 0.25, 4.0  # seconds before the second attempt, doubled each time
TIMEOUT, CONNECT_TIMEOUT = "60s", "10s"
_STATUS = re.compile(r"status code: (\d{3})")
_TRANSIENT = (408, 425, 429)  # and every 5xx


T = TypeVar("T")


class Absent(SourceError):
    """There is no such file."""


class Refused(SourceError):
    """The server does not let us have it."""


class _Passing(Exception):
    """A fault that another attempt may not meet."""


@dataclass(frozen=True)
class Reply:
    """One range, and what the server said about the whole file."""

    data: Any
    size: int
    etag: str | None
    modified_ns: int


class Store:
    """A server or bucket, asked for ranges of its files. `cure` tells what to do where it refuses.

    Raises:
        MissingDependencyError: obstore is not installed.
    """

    def __init__(
        self, url: str, *, headers: Mapping[str, str] | None = None, cure: str = "", pins: bool = False
    ) -> None:
        obstore = _obstore(url)
        options: dict[str, Any] = {"timeout": TIMEOUT, "connect_timeout": CONNECT_TIMEOUT, "allow_http": True}
        if headers:
            options["default_headers"] = dict(headers)
        # Attempts are counted here, where short answers count as failures, too.
        once = {"max_retries": 0, "retry_timeout": timedelta(seconds=60)}
        self.url, self.cure, self.pins = url, cure, pins
        self._store = obstore.store.from_url(url, client_options=options, retry_config=once)

    def get(self, place: RemotePath, path: str, begin: int, end: int, etag: str | None) -> Reply:
        """Bytes `begin` to `end` (fewer at the end of the file), if the file still has this `etag`."""
        import obstore

        options: dict[str, Any] = {"range": (begin, end)}
        if etag is not None and not etag.startswith("W/") and not self.pins:  # a weak one never matches (RFC 9110)
            options["if_match"] = etag
        with self._faults(place):
            try:
                found = obstore.get(self._store, path, options=cast("Any", options))
            except obstore.exceptions.BaseError as error:
                if _status(error) == 416 and begin == 0:
                    return Reply(b"", 0, None, 0)  # no range of an empty file exists
                raise
            data, meta, (first, _) = found.bytes(), found.meta, found.range
        if first != begin or len(data) != min(end, meta["size"]) - begin:
            raise _Passing(f"{len(data)} bytes arrived where {min(end, meta['size']) - begin} were asked for")
        return Reply(data, meta["size"], meta["e_tag"], int(meta["last_modified"].timestamp()) * 10**9)

    def names(self, place: RemotePath, prefix: str) -> list[str]:
        """The names directly under a prefix, where the kind of store can list."""
        import obstore

        with self._faults(place):
            found = obstore.list_with_delimiter(self._store, prefix or None)
        return sorted(entry["path"].rpartition("/")[2] for entry in found["objects"])

    @contextmanager
    def _faults(self, place: RemotePath) -> Iterator[None]:
        """obstore's faults as ours."""
        from obstore import exceptions

        try:
            yield
        except (exceptions.NotFoundError, FileNotFoundError):
            raise Absent(f"{place}: there is no such file") from None
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            raise Refused(f"{place}: the server denies access ({_status(error) or 'no reason'}). {self.cure}") from None
        except exceptions.PreconditionError:
            raise _changed(place) from None
        except exceptions.NotSupportedError:
            raise SourceError(
                f"{place}: the server does not serve ranges of a file, so it cannot be streamed; download it, "
                "and give its path"
            ) from None
        except exceptions.BaseError as error:
            status = _status(error)
            if status and status < 500 and status not in _TRANSIENT:
                raise SourceError(f"{place}: the server answers {status}. {self.cure}".rstrip()) from None
            raise _Passing(f"the server answers {status}" if status else _brief(error)) from None


def _obstore(url: str) -> Any:
    try:
        import obstore.store
    except ImportError:
        raise MissingDependencyError(
            f"{url}: to read from other machines needs obstore: pip install 'eutectic[remote]'"
        ) from None
    return obstore


def _status(error: BaseException) -> int | None:
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None


def _brief(error: BaseException) -> str:
    """The first line of a message, without what a URL's query may hold."""
    return re.sub(r"\?\S*", "", str(error).partition("\n")[0])[:160].rstrip(" :-")


def _changed(place: RemotePath) -> SourceError:
    return SourceError(f"{place} was changed on its server while it was read; run the merge again with --force")


def insistent(place: RemotePath, ask: Callable[[], T]) -> T:
    """What `ask()` returns, asked up to `ATTEMPTS` times."""
    for attempt in range(ATTEMPTS):
        try:
            return ask()
        except _Passing as fault:
            if attempt == ATTEMPTS - 1:
                raise SourceError(
                    f"{place}: {fault}, {ATTEMPTS} times. What was merged stays; run it again with --resume"
                ) from None
        time.sleep(min(MOST_PAUSE, PAUSE * 2**attempt))
    raise AssertionError("the last attempt returns or raises")


class Window:
    """The pieces of one source's files that were used last, at most `SLOTS`, and those under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple[RemoteFile, int], Future[Any]] = OrderedDict()

    def piece(self, file: RemoteFile, index: int) -> Any:
        """One piece of a file; whoever asks for it first fetches it, others wait."""
        future, mine = self._claim(file, index)
        if mine:
            self._fill(file, index, future, ATTEMPTS)
            return future.result()
        try:
            return future.result()
        except _Passing:  # read ahead in vain: now it is needed
            return self.piece(file, index)

    def expect(self, file: RemoteFile, index: int) -> None:
        """Fetch a piece in the background, once, unless it is there."""
        future, mine = self._claim(file, index)
        if mine:
            _pool().submit(self._fill, file, index, future, 1)

    def keep(self, file: RemoteFile, index: int, data: Any) -> None:
        """Take a piece that was fetched elsewhere."""
        future, mine = self._claim(file, index)
        if mine:
            future.set_result(data)

    def _claim(self, file: RemoteFile, index: int) -> tuple[Future[Any], bool]:
        with self._lock:
            found = self._held.get((file, index))
            if found is not None:
                self._held.move_to_end((file, index))
                return found, False
            done = [key for key, future in self._held.items() if future.done()]
            for key in done[: max(0, len(self._held) - SLOTS + 1)]:
                del self._held[key]
            future: Future[Any] = Future()
            self._held[file, index] = future
            return future, True

    def _fill(self, file: RemoteFile, index: int, future: Future[Any], attempts: int) -> None:
        try:
            future.set_result(file.fetch(index, insist=attempts > 1))
        except BaseException as error:
            with self._lock:
                self._held.pop((file, index), None)
            future.set_exception(error)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=4 * AHEAD, thread_name_prefix="remote")


class RemoteFile(SourceFile):
    """A file of a `Store`. Opening it fetches its first bytes, and with them its size and ETag."""

    on_disk = False

    def __init__(self, place: RemotePath, store: Store, path: str, window: Window) -> None:
        self.path = self._place = place
        self._store, self._key, self._window = store, path, window
        reply: Reply = insistent(place, lambda: store.get(place, path, 0, START, None))
        self.size, self.mtime_ns = reply.size, reply.modified_ns
        self.etag = None if store.pins else reply.etag
        self._recent: deque[int] = deque(maxlen=RECENT)
        window.keep(self, 0, reply.data)

    def check_unchanged(self) -> None:
        if not self._store.pins:
            self._ask(0, 1)

    def fileno(self) -> int:
        raise SourceError(f"{self.path} has no descriptor: it lies on another machine")

    def read_into(self, buffer: memoryview, offset: int) -> None:
        if offset + buffer.nbytes > self.size:
            raise FormatError(f"{self.path}: {buffer.nbytes} bytes at {offset} lie behind its end at {self.size}")
        done = 0
        while done < buffer.nbytes:
            index = _index(offset + done)
            data = memoryview(self._window.piece(self, index))
            part = data[offset + done - _begin(index) :][: buffer.nbytes - done]
            buffer[done : done + part.nbytes] = part
            done += part.nbytes
            self._read_ahead(index)

    def _read_ahead(self, index: int) -> None:
        """Expect the next pieces where two neighbours were read: in a long tensor, or one after another.

        Several threads may read several places of the file at once, so that neighbours are not always the last two.
        """
        if index in self._recent:
            return
        follows = index > 1 and index - 1 in self._recent
        self._recent.append(index)
        if not follows:
            return
        for following in range(index + 1, index + 1 + AHEAD):
            if _begin(following) < self.size:
                self._window.expect(self, following)

    def fetch(self, index: int, *, insist: bool) -> Any:
        """The bytes of a piece, from the server."""
        begin, end = _begin(index), min(_begin(index + 1), self.size)
        return insistent(self._place, lambda: self._ask(begin, end)) if insist else self._ask(begin, end)

    def _ask(self, begin: int, end: int) -> Any:
        reply = self._store.get(self._place, self._key, begin, end, self.etag)
        if (reply.size, reply.etag if self.etag else None) != (self.size, self.etag):
            raise _changed(self._place)
        if not self._store.pins and reply.modified_ns != self.mtime_ns:
            raise _changed(self._place)
        return reply.data


def _index(offset: int) -> int:
    """Which piece holds a byte: a short first one, then pieces of one size."""
    return 0 if offset < START else 1 + (offset - START) // PIECE


def _begin(index: int) -> int:
    return 0 if index == 0 else START + (index - 1) * PIECE
