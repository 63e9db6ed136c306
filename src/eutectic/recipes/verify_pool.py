"""Whether a pool is as it was written, and its base where it was."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from eutectic.errors import FormatError, SourceError
from eutectic.pools.manifest import EXPERTS
from eutectic.pools.pool import Pool, open_pool
from eutectic.weights.digest import hash_file
from eutectic.weights.files import SourceFile

__all__ = ["Checked", "verify_pool"]


@dataclass(frozen=True)
class Checked:
    """What was checked of a pool, and one sentence for each fault."""

    files: int
    nbytes: int
    problems: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether the pool is as it was written."""
        return not self.problems


def verify_pool(path: str | os.PathLike[str]) -> Checked:
    """Compare every file of a pool with what was recorded when it was written, and find its base.

    Raises:
        SourceError, FormatError: no pool, or a manifest that cannot be read.
    """
    folder = Path(path)
    pool = open_pool(folder)
    problems, nbytes = [], 0
    for name, stored in pool.manifest.files.items():
        if not (folder / name).is_file():
            problems.append(f"{name}: missing")
            continue
        file = SourceFile(folder / name)
        nbytes += file.size
        if file.size != stored.bytes:
            problems.append(f"{name}: {file.size} bytes, not {stored.bytes}")
        elif hash_file(file) != stored.blake3:
            problems.append(f"{name}: its bytes differ from what was written")
    known = set(pool.manifest.files)
    here = {f"{EXPERTS}/{entry.name}" for entry in (folder / EXPERTS).glob("*")}
    cure = "a killed change may have left it; remove it"
    problems += [f"{name}: is no part of the pool: {cure}" for name in sorted(here - known)]
    if not problems:
        problems += _faults(pool)
    return Checked(len(pool.manifest.files), nbytes, tuple(problems))


def _faults(pool: Pool) -> list[str]:
    """What keeps members from being opened."""
    found = []
    try:
        for name in pool:
            pool[name]  # opens the core too, and refuses another one
    except (SourceError, FormatError) as error:
        found.append(str(error))
    return found
