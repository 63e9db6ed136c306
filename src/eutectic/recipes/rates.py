"""How fast merges ran on this machine: bytes moved per second, by kind, remembered between runs."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Rates"]

# Bytes read and written per second and thread of the machine in benchmarks/reports, before this one has been measured.
FIRST_GUESS = 1.0e9
FIRST_GUESS_TORCH = 1.0e8
LEAST_BYTES = 64 << 20  # shorter runs measure start-up


def _path() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "eutectic" / "rates.json"


@dataclass
class Rates:
    """Measured bytes per second by (kind, threads)."""

    measured: dict[str, float] = field(default_factory=dict)

    @classmethod
    def load(cls) -> Rates:
        """What earlier runs on this machine measured; an unreadable file counts as none."""
        try:
            found = json.loads(_path().read_text())
        except (OSError, ValueError, OverflowError):
            return cls()
        if not isinstance(found, dict):
            return cls()
        return cls({k: float(v) for k, v in found.items() if isinstance(v, (int, float)) and v > 0})

    def of(self, kind: str, threads: int) -> tuple[float, str]:
        """Bytes per second, and where the figure comes from."""
        rate = self.measured.get(f"{kind}/{threads}")
        if rate:
            return rate, "measured here"
        guess = FIRST_GUESS_TORCH if kind.startswith("torch:") else FIRST_GUESS
        return guess * threads, "a first guess; this machine has not merged this way yet"

    def record(self, kind: str, threads: int, nbytes: int, seconds: float) -> None:
        """Remember a finished run. A cache folder that cannot be written is no reason to fail a merge."""
        if nbytes < LEAST_BYTES or seconds <= 0:
            return
        self.measured[f"{kind}/{threads}"] = nbytes / seconds
        path = _path()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            staged = path.with_suffix(f".{os.getpid()}")
            staged.write_text(json.dumps(self.measured, indent=1, sort_keys=True))
            staged.replace(path)
        except OSError:
            return
