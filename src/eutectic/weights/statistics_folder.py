"""A folder of statistics: what some methods need to know about a model besides its tensors, by the tensors' names.

stats.json          whose they are: the model's fingerprint, the data and its fingerprint; the kinds that are there
KIND.safetensors    float32. fisher, gradients: the tensor's shape; gram: [in, in]; activations: [2, in]

They belong to one model: `identity_of` tells it from another one by names, shapes, types and a few values of each
tensor. A folder is written beside its place and put there when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eutectic.errors import FormatError, OutputError, SourceError, nearest
from eutectic.weights.checkpoint import Checkpoint, open_checkpoint, read_json
from eutectic.weights.digest import hash_bytes
from eutectic.weights.dtypes import BY_NAME
from eutectic.weights.safetensors import build_header
from eutectic.weights.sink import staging_of, write_at
from eutectic.weights.tensor_ref import TensorRef

if TYPE_CHECKING:
    import numpy

__all__ = [
    "FILE", "KINDS", "KindFile", "Statistics", "check_kinds", "collect_command", "identity_of", "open_statistics",
    "staged", "write_facts", "write_kind",
]  # fmt: skip

FILE = "stats.json"
KINDS = ("fisher", "gram", "activations", "gradients")
VERSION = 1
PROBED = 16  # elements of each tensor, from its middle: headers of two fine-tunes are often the same


@dataclass(frozen=True)
class Statistics:
    """An opened folder: `model` and `data` are fingerprints, `facts` all of stats.json."""

    path: Path
    model: str
    data: str
    kinds: tuple[str, ...]
    facts: Mapping[str, Any]

    def tensors(self, kind: str) -> Checkpoint:
        """The tensors of one kind, by the names of the model's.

        Raises:
            SourceError: there are none of that kind.
        """
        if kind not in self.kinds:
            raise SourceError(f"{self.path}: holds {', '.join(self.kinds)}, not {kind}")
        return open_checkpoint(self.path / f"{kind}.safetensors")


def open_statistics(path: Path) -> Statistics:
    """Open a folder of statistics; no tensor is read.

    Raises:
        SourceError: there is none. FormatError: its description is malformed.
    """
    if not (path / FILE).is_file():
        raise SourceError(f"{path}: holds no statistics ({FILE}); `eutectic stats collect` writes such a folder")
    facts = read_json(path / FILE)
    if facts.get("statistics") != VERSION:
        raise FormatError(f"{path / FILE}: statistics of version {facts.get('statistics')!r}; this reads {VERSION}")
    kinds = facts.get("kinds")
    if not isinstance(kinds, list) or not kinds or not all(kind in KINDS for kind in kinds):
        raise FormatError(f"{path / FILE}: kinds must be some of {', '.join(KINDS)}; found {kinds!r:.80}")
    found = [facts[key].get("fingerprint") if isinstance(facts.get(key), dict) else None for key in ("model", "data")]
    if not all(isinstance(text, str) for text in found):
        raise FormatError(f"{path / FILE}: model and data need a fingerprint each")
    return Statistics(path, str(found[0]), str(found[1]), tuple(kinds), facts)


def identity_of(checkpoint: Mapping[str, TensorRef]) -> str:
    """A digest of a model's tensors: their names, shapes and types, and of each the elements in its middle."""
    parts = []
    for name, ref in sorted(checkpoint.items()):
        first = max(0, (ref.numel - PROBED) // 2)
        values = ref.read(first, min(first + PROBED, ref.numel)).hex()
        parts.append([name, list(ref.shape), ref.dtype.name, values])
    return hash_bytes(json.dumps(parts).encode())


def collect_command(model: str, kind: str, out: str = "FOLDER") -> str:
    """What to call where statistics are missing."""
    return f"eutectic stats collect {model} --kinds {kind} --data SUITE --task TASK --out {out}"


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write into; it becomes `out`, or is added to what is there, when all went well.

    Raises:
        OutputError: it cannot be made.
    """
    staging = staging_of(out.absolute())
    own = {FILE, *(f"{kind}.safetensors" for kind in KINDS)}
    try:
        if staging.exists() and not own.issuperset(file.name for file in staging.iterdir()):
            raise OutputError(f"{staging} holds something else, such as an unfinished merge; choose another folder")
        shutil.rmtree(staging, ignore_errors=True)  # what a killed run left
        staging.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"{staging} cannot be made: {error.strerror}") from None
    try:
        yield staging
        _publish(staging, out.absolute())
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _publish(staging: Path, out: Path) -> None:
    if not out.exists():
        staging.rename(out)
        return
    files = sorted(staging.iterdir(), key=lambda file: file.name == FILE)  # what names the others comes last
    for file in files:
        file.replace(out / file.name)


class KindFile:
    """A file of one kind, whose tensors are written as they come, as float32; a context manager."""

    def __init__(self, folder: Path, kind: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.folder = folder
        header, self._offsets = build_header({name: (BY_NAME["F32"], shape) for name, shape in shapes.items()})
        self._descriptor = os.open(folder / f"{kind}.safetensors", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        write_at(self._descriptor, memoryview(header), 0, folder)

    def write(self, tensors: Mapping[str, numpy.ndarray]) -> None:
        """Write some of the tensors."""
        for name in tensors:  # nothing here refers to an array while the next ones are calculated
            write_at(self._descriptor, _bytes(tensors[name]), self._offsets[name], self.folder)

    def __enter__(self) -> KindFile:
        return self

    def __exit__(self, *raised: object) -> None:
        try:
            os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)


def write_kind(
    folder: Path, kind: str, shapes: Mapping[str, tuple[int, ...]], groups: Iterator[Mapping[str, numpy.ndarray]]
) -> None:
    """Write the tensors of one kind as they come, in groups, as float32."""
    with KindFile(folder, kind, shapes) as file:
        for group in groups:
            file.write(group)


def _bytes(array: numpy.ndarray) -> memoryview:
    import numpy as np

    return np.ascontiguousarray(array, dtype=np.float32).reshape(-1).view(np.uint8).data


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write stats.json."""
    (folder / FILE).write_text(json.dumps({"statistics": VERSION, **facts}, indent=2) + "\n", encoding="utf-8")


def check_kinds(names: tuple[str, ...]) -> str:
    """What is wrong with a choice of kinds, or an empty string."""
    for name in names:
        if name not in KINDS:
            return f"no kind of statistics is called {name!r}{nearest(name, KINDS) or '; known: ' + ', '.join(KINDS)}"
    return "" if names else f"name a kind: {', '.join(KINDS)}"
