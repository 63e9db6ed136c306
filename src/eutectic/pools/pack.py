"""Writing a pool: the core first, then every tensor's parts, stretch by stretch and in threads; the manifest last."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from eutectic.errors import RecipeError
from eutectic.pools.elements import read_finite, read_part, read_values, rounded
from eutectic.pools.folder import PartFile, staged, write_manifest
from eutectic.pools.manifest import (
    CORE,
    SHARED,
    VERSION,
    Core,
    Entry,
    Expert,
    Manifest,
    Stored,
    check_name,
    expert_file,
)
from eutectic.pools.packing import Encoded, Packing, encode_span, measured_squares, spans_of, stored_values
from eutectic.pools.pool import Pool, cut, open_pool
from eutectic.pools.scheme import Part, Span
from eutectic.weights.checkpoint import Checkpoint, open_checkpoint
from eutectic.weights.digest import hash_file
from eutectic.weights.files import SourceFile
from eutectic.weights.statistics_folder import identity_of

__all__ = ["Side", "entry_of", "hashed", "write_expert", "write_pool"]

Side = Mapping[str, bytes]  # files beside the core's weights, by name
Report = Callable[[int], None]  # called with the bytes of sources that are done
WEIGHTS = "model.safetensors"
T = TypeVar("T")
R = TypeVar("R")


def write_pool(
    packing: Packing,
    out: Path,
    side: Side,
    *,
    store_base: bool = True,
    threads: int | None = None,
    log: Iterable[Entry] = (),
    action: str = "pack",
    about: Iterable[str] | None = None,
    replaces: bool = False,
    report: Report | None = None,
) -> Pool:
    """Write a pool's folder; it appears when all of it is there.

    Args:
        side: config.json and the like, for the core.
        store_base: keep the base in the pool; else only where it is. A scheme with a core of its own always keeps it.
        log, action, about: earlier lines of the log, and what this one says was done with which experts.
        replaces: `out` is a pool that this one takes the place of, in one step.

    Raises:
        OutputError: `out` is in the way, or cannot be written. NonFiniteError: a source holds NaN or infinity.
    """
    own_core = packing.scheme.core is not None
    for name in packing.experts:
        check_name(name)
    with staged(out, replaces=replaces) as folder:
        core, files = packing.base.checkpoint, {}
        if own_core or store_base:
            write_core(packing, folder / CORE, side, threads)
            core, files = open_checkpoint(folder / CORE), hashed(folder, f"{CORE}/")
        measured = _write_parts(packing, folder, core, threads, report)
        base = Core(
            source=packing.base.reference, name=packing.base.name, identity=packing.base.identity,
            stored=store_base and not own_core, licence=packing.base.licence, files={} if own_core else files,
        )  # fmt: skip
        kept = (
            Core(source=base.source, name=base.name, identity=identity_of(core), stored=True, files=files)
            if own_core
            else base
        )
        experts = {
            name: Expert(
                source=source.reference, name=source.name, identity=source.identity, licence=source.licence,
                file=_stored(folder, expert_file(name)) if packing.each else None, error=measured[name],
                settings=dict(packing.own[name]), absent=list(packing.absent.get(name, ())),
            )
            for name, source in packing.experts.items()
        }  # fmt: skip
        manifest = Manifest(
            pool=VERSION, eutectic=version("eutectic"), scheme=packing.scheme.name, settings=dict(packing.settings),
            tensors={name: dict(found) for name, found in packing.tensors.items()}, core=kept,
            base=base if own_core else None, shared=_stored(folder, SHARED) if packing.shared else None,
            experts=experts, log=[],
        )  # fmt: skip
        line = entry_of(manifest, action, list(about if about is not None else packing.experts))
        write_manifest(folder, manifest.model_copy(update={"log": [*log, line]}).text())
    return open_pool(out)


def entry_of(manifest: Manifest, action: str, about: list[str]) -> Entry:
    """A line of the log for a pool as it now is."""
    nbytes = sum(file.bytes for file in manifest.files.values())
    identities = {"core": manifest.core.identity, **{n: e.identity for n, e in manifest.experts.items()}}
    time = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Entry(time=time, action=action, experts=about, scheme=manifest.scheme, bytes=nbytes, identities=identities)


def write_core(packing: Packing, folder: Path, side: Side, threads: int | None) -> None:
    """The core as a model folder: the base's bytes, or what the scheme makes of all sources."""
    tensors = packing.base.checkpoint
    folder.mkdir(parents=True)
    file = PartFile(folder / WEIGHTS, {name: Part(ref.dtype, ref.shape) for name, ref in tensors.items()})
    make = packing.scheme.core

    def write(job: tuple[str, Span]) -> None:
        name, span = job
        ref = tensors[name]
        if make is None or name not in packing.changed:
            raw = np.frombuffer(ref.read(span.start, span.stop), dtype=np.uint8)
        else:
            experts = [
                read_finite(source.checkpoint[name], span.start, span.stop, f"expert {label}")
                for label, source in packing.experts.items()
            ]
            base = read_finite(ref, span.start, span.stop, "the base")
            raw = rounded(make(base, experts, packing.settings_of(name)[0]), ref.dtype)
        file.write(name, span.start, raw)

    jobs = ((name, span) for name, ref in tensors.items() for span in cut(ref.shape, "element"))
    try:
        for _ in _run(write, jobs, threads):
            pass
    finally:
        file.close()
    for name, content in side.items():
        (folder / name).write_bytes(content)


def _write_parts(
    packing: Packing, folder: Path, core: Checkpoint, threads: int | None, report: Report | None
) -> dict[str, float | None]:
    """Write the shared file and those of the experts; each expert's relative error."""
    shared = PartFile(folder / SHARED, packing.shared) if packing.shared else None
    each = {n: PartFile(folder / expert_file(n), packing.each) for n in packing.experts} if packing.each else {}

    def encode(job: _Job) -> tuple[_Job, Encoded]:
        found = encode_span(packing, job.tensor, job.span, core[job.tensor], job.totals)
        shared_parts, own_parts = packing.parts(job.tensor)
        for suffix, part in shared_parts.items():
            assert shared is not None
            shared.write(f"{job.tensor}#{suffix}", part.stretch(job.span)[0], found.shared[suffix])
        for file, arrays in zip(each.values(), found.own, strict=True):
            for suffix, part in own_parts.items():
                file.write(f"{job.tensor}#{suffix}", part.stretch(job.span)[0], arrays[suffix])
        return job, found

    squares: dict[str, list[tuple[float, float]]] = {name: [] for name in packing.experts}
    try:
        for job, found in _run(
            encode, _jobs(packing, core, threads), threads, alone=packing.scheme.encodes == "tensor"
        ):
            for name, pair in zip(packing.experts, found.squares, strict=True):
                squares[name].append(pair)
            if report is not None:
                size = packing.base.checkpoint[job.tensor].dtype.size
                report(job.span.numel * size * (len(packing.experts) + 1))
    finally:
        for file in (*([shared] if shared else []), *each.values()):
            file.close()
    return {name: relative(pairs) for name, pairs in squares.items()}


def relative(pairs: Iterable[tuple[float, float]]) -> float | None:
    """The norm of what is missed over that of the change, from squares; None where something is missed of no change."""
    found = list(pairs)
    missed, change = math.fsum(one for one, _ in found), math.fsum(one for _, one in found)
    return math.sqrt(missed / change) if change else None if missed else 0.0


@dataclass(frozen=True)
class _Job:
    tensor: str
    span: Span
    totals: list[Any] | None


def _jobs(packing: Packing, core: Checkpoint, threads: int | None) -> Iterator[_Job]:
    for tensor in packing.changed:
        totals = totals_of(packing, tensor, core, threads)
        for span in spans_of(packing, tensor):
            yield _Job(tensor, span, totals)


def totals_of(packing: Packing, tensor: str, core: Checkpoint, threads: int | None) -> list[Any] | None:
    """What the scheme sums over a tensor before it encodes: in the order of its stretches, so always the same bits."""
    total = packing.scheme.total
    if total is None:
        return None
    settings = packing.settings_of(tensor)

    def one(span: Span) -> list[np.ndarray]:
        here = read_values(core[tensor], span.start, span.stop)
        return [
            total(span, here, read_values(source.checkpoint[tensor], span.start, span.stop), own)
            for source, own in zip(packing.experts.values(), settings, strict=True)
        ]

    found: list[Any] | None = None
    for part in _run(one, iter(spans_of(packing, tensor)), threads):
        found = part if found is None else [a + b for a, b in zip(found, part, strict=True)]
    return found


def _run(work: Callable[[T], R], jobs: Iterator[T], threads: int | None, *, alone: bool = False) -> Iterator[R]:
    """Results in the order of the jobs, a few at a time; `alone` one by one: linear algebra has threads of its own."""
    most = 1 if alone else threads or os.cpu_count() or 1
    if most == 1:
        yield from map(work, jobs)
        return
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(most) as workers:
        for job in jobs:
            waiting.append(workers.submit(work, job))
            if len(waiting) > 2 * most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def write_expert(
    packing: Packing, pool: Pool, file: Path, threads: int | None = None, report: Report | None = None
) -> float | None:
    """Write the file of the one expert of `packing`, given what `pool` has stored; its relative error.

    Raises:
        RecipeError: it changes a tensor of which the pool stores nothing shared, so that all must be packed again.
    """
    extend = packing.scheme.extend
    assert extend is not None
    for tensor in packing.changed:
        wanted = packing.parts(tensor)[0]
        if any(f"{tensor}#{suffix}" not in pool.shared for suffix in wanted):
            raise RecipeError(f"{tensor!r} is changed by this expert alone; pack all experts again")
    written = PartFile(file, packing.each)
    (name,) = packing.experts
    source = packing.experts[name].checkpoint

    def encode(job: _Job) -> tuple[float, float]:
        tensor, span = job.tensor, job.span
        shared_parts, own_parts = packing.parts(tensor)
        shared = {
            suffix: read_part(pool.shared[f"{tensor}#{suffix}"], *part.stretch(span))
            for suffix, part in shared_parts.items()
        }
        core, ref = pool.core[tensor], source[tensor]
        here, values = read_values(core, span.start, span.stop), read_finite(ref, span.start, span.stop, name)
        (settings,), total = packing.settings_of(tensor), None if job.totals is None else job.totals[0]
        handles = packing.scheme.reads == "tensors"
        arrays = extend(span, core if handles else here, shared, ref if handles else values, settings, total)
        mine = {suffix: stored_values(arrays[suffix], part) for suffix, part in own_parts.items()}
        for suffix, part in own_parts.items():
            written.write(f"{tensor}#{suffix}", part.stretch(span)[0], mine[suffix][0])
        near = packing.scheme.decode(span, here, shared, {k: v for k, (_, v) in mine.items()}, settings)
        if report is not None:
            report(span.numel * core.dtype.size * 2)
        return measured_squares(here, values.astype(here.dtype, copy=False), near, core.dtype)

    try:
        alone = packing.scheme.encodes == "tensor"
        return relative(_run(encode, _jobs(packing, pool.core, threads), threads, alone=alone))
    finally:
        written.close()


def hashed(folder: Path, start: str) -> dict[str, Stored]:
    """The files below ``folder/start``, by their names there."""
    below = folder / start
    names = sorted(path.relative_to(below).as_posix() for path in below.rglob("*") if path.is_file())
    return {name: _stored(folder, start + name) for name in names}


def _stored(folder: Path, name: str) -> Stored:
    file = SourceFile(folder / name)
    return Stored(bytes=file.size, blake3=hash_file(file))
