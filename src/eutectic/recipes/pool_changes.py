"""Adding experts to a pool and removing them: each change is whole or has not been, and stands in the pool's log."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eutectic.errors import OutputError, RecipeError, SourceError, nearest
from eutectic.pools.folder import write_manifest
from eutectic.pools.manifest import FILE, Core, Expert, Manifest, expert_file
from eutectic.pools.pack import Side, entry_of, stored_file, write_expert, write_pool
from eutectic.pools.packing import Packing, Source, changes, prepare
from eutectic.pools.pool import Pool, open_pool
from eutectic.pools.scheme import settle
from eutectic.recipes.pooling import Report, named, open_reference
from eutectic.recipes.provenance import SIDE_FILES, read_files
from eutectic.weights.member import MemberPath

__all__ = ["add", "remove"]


def add(
    path: str | os.PathLike[str],
    expert: str | Mapping[str, Any],
    *,
    recompute: bool = False,
    threads: int | None = None,
    report: Report | None = None,
) -> Pool:
    """Add one expert (``NAME=REFERENCE``) to a pool.

    Where the others do not depend on it, its file is added and nothing else changes; else (scheme ``tall``, or
    `recompute`) all are packed again from their sources, which must still be what they were.

    Raises:
        RecipeError: there is one of that name. SourceError: a source is gone or has changed. OutputError: somebody else
        changes the pool.
    """
    folder = Path(path)
    ((name, reference),) = named([expert] if isinstance(expert, str) else expert).items()
    with _locked(folder):
        pool = open_pool(folder)
        if name in pool:
            raise RecipeError(f"{folder}: has a member {name!r} already; remove it first, or name this one otherwise")
        source = open_reference(reference)
        if isinstance(source.checkpoint.path, MemberPath) and source.checkpoint.path.folder.samefile(folder):
            raise RecipeError(
                f"{folder}: {reference} is a member of this pool, which could not be made again from itself; "
                "write it as a model with `eutectic pool get`, and add that"
            )
        if pool.scheme.extend is None or recompute:
            return _again(pool, [*pool], "add", [name], {name: source}, threads=threads, report=report)
        return _extended(pool, name, source, threads, report)


def _extended(pool: Pool, name: str, source: Source, threads: int | None, report: Report | None) -> Pool:
    facts, scheme = pool.manifest, pool.scheme
    core = Source(facts.core.source, facts.core.name, facts.core.licence, pool.core)
    plain = _prepare(pool, core, name, source)
    fresh = [tensor for tensor in plain.changed if scheme.choose is not None and tensor not in facts.tensors]
    if fresh:
        raise RecipeError(
            f"{name}: changes {fresh[0]!r}, of which the pool has nothing in common; --recompute packs all again"
        )
    target = pool.path / expert_file(name)
    partial = target.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    error: float | None = 0.0
    try:
        if plain.each:
            error = write_expert(plain, pool, partial, threads, report)
            partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
    kept = stored_file(pool.path, expert_file(name)) if plain.each else None
    entry = Expert(
        source=source.reference, name=source.name, identity=source.identity, licence=source.licence,
        file=kept, error=error, settings=dict(plain.own[name]),
        absent=list(plain.absent.get(name, ())),
    )  # fmt: skip
    return _rewritten(pool, facts.model_copy(update={"experts": {**facts.experts, name: entry}}), "add", [name])


def _prepare(pool: Pool, core: Source, name: str, source: Source) -> Packing:
    """What adding one expert to a pool would write: its difference to the core, with the pool's settings."""
    facts = pool.manifest
    _, own = settle(pool.scheme, {}, [name])
    plain = Packing(pool.scheme, core, {name: source}, facts.settings, own, (), facts.tensors)
    changed, absent = changes(core, plain.experts)
    return Packing(plain.scheme, core, plain.experts, plain.settings, own, changed, plain.tensors, absent)


def remove(
    path: str | os.PathLike[str],
    names: Sequence[str],
    *,
    keep_shared: bool = False,
    threads: int | None = None,
    report: Report | None = None,
) -> Pool:
    """Remove experts from a pool, from what the others share too.

    Where nothing shared depends on them, their files go. A sum or a shared expert (``tall``, ``twin``) is made again
    from the sources of those that stay, so it is what it would have been without them; `keep_shared` leaves it as it
    is, and with it what it holds of the removed ones.

    Raises:
        RecipeError: no such member, or none would stay. SourceError: a source is gone or has changed. OutputError:
        somebody else changes the pool.
    """
    folder = Path(path)
    names = list(dict.fromkeys(names))
    with _locked(folder):
        pool = open_pool(folder)
        for name in names:
            if name not in pool:
                hint = nearest(name, pool) or f"; its members are {', '.join(pool)}"
                raise RecipeError(f"{folder}: no member {name!r}{hint}")
        left = [name for name in pool if name not in names]
        if not left:
            raise RecipeError(f"{folder}: no member would stay; remove the folder instead")
        depends = pool.scheme.extend is None or pool.scheme.core is not None
        if depends and not keep_shared:
            return _again(pool, left, "remove", names, {}, threads=threads, report=report)
        facts = pool.manifest
        experts = {name: facts.experts[name] for name in left}
        found = _rewritten(pool, facts.model_copy(update={"experts": experts}), "remove", names)
        for name in names:
            (folder / expert_file(name)).unlink(missing_ok=True)
        return found


def _again(
    pool: Pool,
    stay: Sequence[str],
    action: str,
    about: list[str],
    more: Mapping[str, Source],
    *,
    threads: int | None,
    report: Report | None,
) -> Pool:
    """Pack the members that stay once more from their sources, with others, in place of the pool."""
    facts = pool.manifest
    base = _same(pool, facts.base, "base") if facts.base is not None else _core_source(pool)
    experts = {name: _same(pool, facts.experts[name], f"member {name}") for name in stay} | dict(more)
    settings: dict[str, Any] = dict(facts.settings)
    for key, parameter in pool.scheme.parameters.items():
        if parameter.of_expert:
            settings[key] = [
                facts.experts[n].settings[key] if n in facts.experts else parameter.default for n in experts
            ]
    packing = prepare(base, experts, facts.scheme, settings)
    side: Side = read_files(pool.core_folder, SIDE_FILES) if pool.core_folder.is_dir() else {}
    return write_pool(
        packing, pool.path, side, store_base=facts.core.stored, threads=threads, log=facts.log, action=action,
        about=about, replaces=True, report=report,
    )  # fmt: skip


def _core_source(pool: Pool) -> Source:
    core = pool.manifest.core
    return Source(core.source, core.name, core.licence, pool.core)


def _same(pool: Pool, fact: Core | Expert, what: str) -> Source:
    """The source that a member or the base was packed from, found to be the same."""
    cure = "bring it back (remove --keep-shared does without); the pool is as it was"
    try:
        source = open_reference(fact.source)
    except SourceError as error:
        raise SourceError(
            f"{pool.path}: its {what} was packed from {fact.source}, which is not there: {cure}"
        ) from error
    if source.identity != fact.identity:
        raise SourceError(f"{pool.path}: {fact.source}, from which its {what} was packed, has changed: {cure}")
    return source


def _rewritten(pool: Pool, manifest: Manifest, action: str, about: list[str]) -> Pool:
    """The pool with another manifest, put in place in one step."""
    line = entry_of(manifest, action, about)
    text = manifest.model_copy(update={"log": [*manifest.log, line]}).text()
    write_manifest(pool.path, text)
    return open_pool(pool.path)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Nobody else changes the pool meanwhile."""
    open_pool(folder)  # is one
    try:
        descriptor = os.open(folder / FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise OutputError(f"{folder} cannot be changed: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), os.stat(folder / FILE)):  # noqa: PTH116  replaced since
            raise BlockingIOError
        yield
    except BlockingIOError:
        raise OutputError(f"{folder} is being changed by another process; wait for it") from None
    finally:
        os.close(descriptor)
