"""`Pool`: an opened pool; its members are lazy checkpoints. Opening reads the manifest and headers only."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from eutectic.errors import FormatError, SourceError, nearest
from eutectic.pools.elements import read_part, read_values, rounded
from eutectic.pools.manifest import CORE, SHARED, Manifest, expert_file, read_manifest
from eutectic.pools.scheme import Part, Parts, Scheme, Span, get_scheme
from eutectic.weights.checkpoint import Checkpoint, open_checkpoint
from eutectic.weights.member import MemberPath
from eutectic.weights.statistics_folder import identity_of
from eutectic.weights.tensor_ref import TensorRef

__all__ = ["MemberTensor", "Pool", "cut", "member_facts", "open_member", "open_pool"]

BLOCK = 1 << 17  # elements that are worked on at a time, where the scheme allows it: they stay in the caches
HELD = 8  # whole parts kept, of the tensors read last


class Pool(Mapping[str, Checkpoint]):
    """The experts of a pool by name, each a lazy `Checkpoint`.

    `core` is what they are differences to; `scheme` how these are stored; `manifest` is pool.json.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self.scheme = get_scheme(manifest.scheme)

    def __getitem__(self, name: str) -> Checkpoint:
        """One expert, rebuilt when it is read.

        Raises:
            KeyError: there is no such member. SourceError, FormatError: the pool is damaged, or its core has changed.
        """
        return self._member(name)

    def __iter__(self) -> Any:
        return iter(self.manifest.experts)

    def __len__(self) -> int:
        return len(self.manifest.experts)

    def __repr__(self) -> str:
        return f"Pool({str(self.path)!r}, {self.scheme.name}, {', '.join(self)})"

    @cached_property
    def core(self) -> Checkpoint:
        """The core, found to be the one that the pool was made with.

        Raises:
            SourceError: it is not there any more, or another one is.
        """
        facts, place = self.manifest.core, self.core_folder
        if not facts.stored and not place.exists():
            raise SourceError(
                f"{self.path}: its base {facts.source} is not there; bring it back, or pack again with the base stored"
            )
        found = open_checkpoint(place)
        if identity_of(found) != facts.identity:
            what = "is damaged" if facts.stored else "has changed since the pool was made"
            raise SourceError(f"{self.path}: its base {place} {what}; the experts are differences to the old one")
        return found

    @property
    def core_folder(self) -> Path:
        """Where the core lies: in the pool, or where it was packed from."""
        return self.path / CORE if self.manifest.core.stored else Path(self.manifest.core.source)

    @cached_property
    def shared(self) -> Checkpoint:
        """What the experts have in common besides the core."""
        return open_checkpoint(self.path / SHARED) if self.manifest.shared is not None else Checkpoint({})

    def own(self, name: str) -> Checkpoint:
        """What is stored for one expert alone."""
        stored = self.manifest.experts[name].file is not None
        return open_checkpoint(self.path / expert_file(name)) if stored else Checkpoint({})

    def _member(self, name: str) -> Checkpoint:
        if name not in self.manifest.experts:
            raise KeyError(name)
        own = self.own(name)
        held = _Held()
        settings = {**self.manifest.settings, **self.manifest.experts[name].settings}
        tensors = dict(self.core.items())
        for tensor, parts in _by_tensor(own).items():
            if tensor not in tensors:
                raise FormatError(f"{self.path / expert_file(name)}: {tensor!r} is no tensor of the base")
            core = tensors[tensor]
            common = self._shared_parts.get(tensor, {})
            chosen = {**settings, **self.manifest.tensors.get(tensor, {})}
            stored = _Stored(self.scheme, core, common, parts, chosen, len(self))
            stored.check(self.path, name)
            tensors[tensor] = MemberTensor(core, stored, held)
        return Checkpoint(
            tensors,
            path=MemberPath(self.path.absolute(), name),
            config=self.core.config,
            headers={**self.core.headers, **self.shared.headers, **own.headers},
            held_bytes=self.core.held_bytes,
            components=self.core.components,
        )

    @cached_property
    def _shared_parts(self) -> dict[str, dict[str, TensorRef]]:
        return _by_tensor(self.shared)


def open_pool(path: Path) -> Pool:
    """Open a pool's folder.

    Raises:
        SourceError: there is none. FormatError: its manifest is malformed. RecipeError: its scheme is unknown here.
    """
    return Pool(path, read_manifest(path))


def open_member(path: Path, name: str) -> Checkpoint:
    """The member ``path#name``.

    Raises:
        SourceError: the pool has no such member; see `open_pool` for the rest.
    """
    pool = open_pool(path)
    if name not in pool:
        raise SourceError(f"{path}: no member {name!r}{nearest(name, pool) or '; its members are ' + ', '.join(pool)}")
    return pool[name]


def member_facts(path: Path, name: str) -> tuple[Path, str | None]:
    """The folder whose config.json and tokenizer are those of a member, and the licence that it was packed with."""
    pool = open_pool(path)
    folder, expert = pool.core_folder, pool.manifest.experts.get(name)
    return folder if folder.is_dir() else folder.parent, expert.licence if expert is not None else None


def cut(shape: tuple[int, ...], scope: str, most: int = BLOCK) -> list[Span]:
    """A tensor in stretches of about `most` elements, as `Scheme` promises them for a scope."""
    whole = Span(shape, 0, int(np.prod(shape, dtype=np.int64)))
    if scope == "tensor":
        return [whole] if whole.numel else []
    unit = 8 * (whole.row if scope == "row" else 1)
    step = max(unit, most // unit * unit)
    return [Span(shape, at, min(at + step, whole.numel)) for at in range(0, whole.numel, step)]


class MemberTensor(TensorRef):
    """One tensor of an expert: decoded in stretches when it is read, rounded once to the core's type."""

    def __init__(self, core: TensorRef, stored: _Stored, held: _Held) -> None:
        self.name, self.shape, self.dtype = core.name, core.shape, core.dtype
        self.core, self.stored, self.held = core, stored, held

    @property
    def lies_in(self) -> TensorRef:
        return self.core.lies_in

    def work_bytes(self, elements: int) -> int:
        most = min(self.numel, self._step)
        shared, own = self.stored.parts
        share = most / max(1, self.numel)
        wide = sum(part.nbytes * 3 for part in (*shared.values(), *own.values()))
        return int(most * (2 * self.core.dtype.size + 12) + wide * share) + self.core.work_bytes(most)

    def rehearse(self) -> None:
        self.core.rehearse()
        if self.numel:
            buffer = bytearray(min(8, self.numel) * self.dtype.size)
            self.read_into(memoryview(buffer), 0, min(8, self.numel))

    @property
    def _step(self) -> int:
        spans = cut(self.shape, self.stored.scheme.decodes)
        return spans[0].numel if spans else 0

    def read_into(self, buffer: memoryview, start: int, stop: int) -> None:
        size, step = self.dtype.size, self._step
        unit = 8 if self.stored.scheme.decodes == "element" else 8 * Span(self.shape, 0, 0).row
        first = start // unit * unit if self.stored.scheme.decodes != "tensor" else 0
        for at in range(first, stop, step):
            span = Span(self.shape, at, min(at + step, -(-stop // unit) * unit, self.numel))
            raw = self._decode(span if self.stored.scheme.decodes != "tensor" else Span(self.shape, 0, self.numel))
            low, high = max(at, start), min(span.stop, stop)
            buffer[(low - start) * size : (high - start) * size] = raw.data[(low - at) * size : (high - at) * size]

    def _decode(self, span: Span) -> np.ndarray:
        core = read_values(self.core, span.start, span.stop)
        shared, own = self.stored.read(span, self.held)
        return rounded(self.stored.scheme.decode(span, core, shared, own, self.stored.settings), self.dtype)


class _Stored:
    """What is stored of one tensor of one expert: where it lies, and what it should be."""

    def __init__(
        self,
        scheme: Scheme,
        core: TensorRef,
        shared: Mapping[str, TensorRef],
        own: Mapping[str, TensorRef],
        settings: Mapping[str, Any],
        count: int,
    ) -> None:
        self.scheme, self.core, self.shared, self.own = scheme, core, shared, own
        self.settings, self.count = settings, count

    @cached_property
    def parts(self) -> tuple[Parts, Parts]:
        """The parts by the scheme's account."""
        return self.scheme.parts(self.core.shape, self.core.dtype, self.count, self.settings)

    def read(self, span: Span, held: _Held) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The entries of every part that belong to a stretch."""
        shared, own = self.parts
        return (
            {suffix: held.read(self.shared[suffix], part, span) for suffix, part in shared.items()},
            {suffix: held.read(self.own[suffix], part, span) for suffix, part in own.items()},
        )

    def check(self, path: Path, name: str) -> None:
        """Refuse parts that are absent, or not of the kind and size that the settings say."""
        for parts, found, file in zip(self.parts, (self.shared, self.own), (SHARED, expert_file(name)), strict=True):
            for suffix, part in parts.items():
                ref, what = found.get(suffix), f"{path / file}: {self.core.name}#{suffix}"
                if ref is None:
                    raise FormatError(f"{what} is missing; is the file that of another pool?")
                if ref.dtype != part.dtype or ref.shape != part.shape:
                    raise FormatError(
                        f"{what} is {list(ref.shape)} of {ref.dtype}, not {list(part.shape)} of {part.dtype}"
                    )


class _Held:
    """Whole parts, those of the tensors read last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[int, np.ndarray] = {}

    def read(self, ref: TensorRef, part: Part, span: Span) -> np.ndarray:
        """The entries that belong to a stretch."""
        if part.along != "whole":
            return read_part(ref, *part.stretch(span))
        with self._lock:
            if id(ref) not in self._kept:
                self._kept[id(ref)] = read_part(ref, 0, part.numel)
                for oldest in list(self._kept)[:-HELD]:
                    del self._kept[oldest]
            return self._kept[id(ref)]


def _by_tensor(parts: Mapping[str, TensorRef]) -> dict[str, dict[str, TensorRef]]:
    """Stored arrays ``TENSOR#PART`` by tensor, then by part."""
    found: dict[str, dict[str, TensorRef]] = {}
    for key, ref in parts.items():
        tensor, _, suffix = key.rpartition("#")
        found.setdefault(tensor, {})[suffix] = ref
    return found
