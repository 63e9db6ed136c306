"""The ledger: every measurement once, in one SQLite file that processes may share and a killed run leaves whole.

A measurement is keyed by what was measured (recipe and sources), task, split, the data's fingerprint and the fidelity.
"""

from __future__ import annotations

import json
import math
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

import eutectic
from eutectic.errors import FormatError, OutputError
from eutectic.evaluation.scores import Scores
from eutectic.weights.digest import hash_bytes

__all__ = ["Key", "Ledger"]

VERSION = 1
WAIT_MS = 60_000  # for another process to finish its transaction
_TABLES = """
CREATE TABLE IF NOT EXISTS scores (
    key TEXT PRIMARY KEY, subject TEXT NOT NULL, task TEXT NOT NULL, split TEXT NOT NULL, data TEXT NOT NULL,
    fidelity REAL NOT NULL, value REAL NOT NULL, stderr REAL, n INTEGER NOT NULL, seconds REAL NOT NULL, samples BLOB,
    label TEXT NOT NULL, recipe TEXT, eutectic TEXT NOT NULL, at TEXT NOT NULL
) WITHOUT ROWID
"""


@dataclass(frozen=True)
class Key:
    """What makes two measurements the same."""

    subject: str
    task: str
    split: str
    data: str
    fidelity: float = 1.0

    @property
    def digest(self) -> str:
        """One text for all of it."""
        parts = [self.subject, self.task, self.split, self.data, self.fidelity]
        return hash_bytes(json.dumps(parts).encode())


class Ledger:
    """Measurements on disk. Use it as a context manager, or `close` it.

    >>> import tempfile
    >>> with Ledger(Path(tempfile.mkdtemp()) / "ledger.sqlite") as ledger:
    ...     key = Key("model", "task", "test", "data")
    ...     ledger.record(key, Scores(0.5, 0.1, 10), label="a")
    ...     ledger.find(key).value
    0.5
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=WAIT_MS / 1000, isolation_level=None, check_same_thread=False)
            self._prepare()
        except sqlite3.DatabaseError as error:
            raise self._fault(error) from None
        except OSError as error:
            raise OutputError(f"{self.path}: the ledger cannot be made: {error.strerror}") from None

    def _prepare(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            self._db.close()
            raise FormatError(
                f"{self.path}: a ledger of version {version}, made by a newer Eutectic; this one reads version "
                f"{VERSION}. Name another file, or upgrade."
            )
        if version == 0 and self._db.execute("SELECT count(*) FROM sqlite_master WHERE name != 'scores'").fetchone()[0]:
            self._db.close()
            raise FormatError(f"{self.path}: a database of something else, not a ledger; name another file")
        self._db.execute(f"PRAGMA busy_timeout = {WAIT_MS}")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        with self._transaction():
            self._db.execute(_TABLES)
            self._db.execute(f"PRAGMA user_version = {VERSION}")

    def _fault(self, error: sqlite3.Error) -> Exception:
        text = str(error)
        if "not a database" in text or "malformed" in text:
            return FormatError(f"{self.path}: not a ledger ({text}); name another file, or move this one away")
        return OutputError(f"{self.path}: the ledger cannot be used: {text}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
            except sqlite3.DatabaseError as error:
                raise self._fault(error) from None

    def find(self, key: Key) -> Scores | None:
        """The measurement with this key, if there is one."""
        with self._lock:
            try:
                row = self._db.execute(
                    "SELECT value, stderr, n, seconds, samples FROM scores WHERE key = ?", (key.digest,)
                ).fetchone()
            except sqlite3.DatabaseError as error:
                raise self._fault(error) from None
        if row is None:
            return None
        value, stderr, n, seconds, samples = row
        found = np.frombuffer(samples or b"", dtype="<f8")
        return Scores(value, math.nan if stderr is None else stderr, n, seconds, found)

    def record(self, key: Key, scores: Scores, *, label: str = "", recipe: Mapping[str, Any] | None = None) -> None:
        """Keep a measurement. One that is there already, of another process perhaps, stays as it is."""
        text = None if recipe is None else json.dumps(recipe, sort_keys=True)
        stderr = scores.stderr if math.isfinite(scores.stderr) else None
        row = (
            key.digest, key.subject, key.task, key.split, key.data, key.fidelity, scores.value, stderr, scores.n,
            scores.seconds, scores.samples.astype("<f8").tobytes(), label, text, eutectic.__version__,
            datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )  # fmt: skip
        with self._transaction():
            self._db.execute(f"INSERT OR IGNORE INTO scores VALUES ({', '.join('?' * len(row))})", row)

    def __len__(self) -> int:
        with self._lock:
            return self._db.execute("SELECT count(*) FROM scores").fetchone()[0]

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
