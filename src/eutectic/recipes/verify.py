"""`verify`: hash a finished folder again and compare it with what was recorded when it was written."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from eutectic.errors import FormatError, SourceError
from eutectic.recipes.lock import read_lock
from eutectic.recipes.provenance import LOCK
from eutectic.weights import digest
from eutectic.weights.checkpoint import open_checkpoint

__all__ = ["Verification", "verify"]


@dataclass(frozen=True)
class Verification:
    """What was checked, and one sentence for each difference found."""

    tensors: int
    files: int
    nbytes: int
    problems: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether everything is as it was written."""
        return not self.problems


def verify(out: str | os.PathLike[str], progress: Callable[[int], None] | None = None) -> Verification:
    """Compare every tensor and side file of a merged folder with its lock file.

    Raises:
        SourceError: there is no folder or no lock file, so there is nothing to compare with.
    """
    out = Path(out)
    if out.name == LOCK:
        out = out.parent
    if not (out / LOCK).is_file():
        raise SourceError(f"{out}: no {LOCK}; only folders that `eutectic merge` wrote can be verified")
    lock = read_lock(out / LOCK).output
    if lock.digest != digest.NAME:
        raise FormatError(f"{out / LOCK}: its digests are {lock.digest!r}, this version knows {digest.NAME}")
    problems: list[str] = []
    recorded, nbytes = lock.tensors, 0
    try:
        checkpoint = open_checkpoint(out)
    except SourceError as error:
        return Verification(len(recorded), 0, 0, (str(error),))
    headers = {checkpoint.name_of(file): digest.hash_bytes(raw) for file, raw in checkpoint.headers.items()}
    there = {path.relative_to(out).as_posix() for path in out.rglob("*.safetensors")}
    for name in sorted(lock.headers.keys() | headers.keys() | there):
        if name not in lock.headers:
            problems.append(f"{name}: was not there when the folder was written")
        elif headers.get(name) != lock.headers[name]:
            problems.append(f"{name}: its header (names, shapes, types) differs from what was written")
    for name, expected in recorded.items():
        tensor = checkpoint.get(name)
        if tensor is None:
            problems.append(f"{name}: missing")
            continue
        if digest.hash_tensor(tensor) != expected:
            problems.append(f"{name}: its bytes differ from what was written")
        nbytes += tensor.nbytes
        if progress is not None:
            progress(tensor.nbytes)
    problems += [f"{name}: was not there when the folder was written" for name in checkpoint if name not in recorded]
    files = lock.files
    for name, expected in files.items():
        path = out / name
        if not path.is_file():
            problems.append(f"{name}: missing")
        elif digest.hash_bytes(path.read_bytes()) != expected:
            problems.append(f"{name}: changed since it was written")
    return Verification(len(recorded), len(files), nbytes, tuple(problems))
