"""`plan` and `merge`: from a recipe, a recipe file or a lock file to a finished folder."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from eutectic.errors import OutputError, RecipeError, SourceError, VerificationError
from eutectic.recipes.adapter_plan import AdapterPlan
from eutectic.recipes.adapters import AdapterRun
from eutectic.recipes.executors import Executor, make_executor
from eutectic.recipes.lock import Lock, is_lock, load_lock
from eutectic.recipes.lora_output import Factored
from eutectic.recipes.opened import Opened
from eutectic.recipes.plan import Options, Plan, make_plan
from eutectic.recipes.profile import Clock, Profile
from eutectic.recipes.provenance import LOCK, fingerprint, lock_document, side_files
from eutectic.recipes.rates import Rates
from eutectic.recipes.schema import Recipe, load_recipe
from eutectic.recipes.semantics import one_thread
from eutectic.recipes.tree import check_parameters
from eutectic.recipes.yaml_text import dump_yaml
from eutectic.weights.checkpoint import PICKLE_SUFFIXES, read_json
from eutectic.weights.sink import JOURNAL, Sink, fingerprint_of, staging_of

__all__ = ["RecipeLike", "Watcher", "check_merge", "merge", "plan"]

RecipeLike = Recipe | str | os.PathLike[str] | Mapping[str, Any]
WEIGHTS = (".safetensors", *PICKLE_SUFFIXES)
LOCKED = {
    "seed": "--seed",
    "shard_bytes": "--out-shard-size",
    "allow_mismatch": "--allow-mismatch",
    "allow_nonfinite": "--allow-nonfinite",
    "torch_only": "--semantics-only",
    "device": "--device",
}  # options that a lock file fixes, and their flags
COMPILING_AFTER = 2.5  # seconds: loading compiled kernels takes less even on a busy machine, compiling them more


class Watcher:
    """What a merge tells whoever watches it. The default watches nothing."""

    def planned(self, plan: Plan) -> None:
        """The plan is made; nothing is written yet."""

    def compiling(self) -> None:
        """Kernels are being compiled for this machine, which happens once."""

    def moved(self, nbytes: int) -> None:
        """A tile moved this many bytes (read and written)."""

    def factored(self, modules: tuple[Factored, ...]) -> None:
        """Adapters are merged: every module with its rank and its error. Nothing is written yet."""


def plan(recipe: RecipeLike, options: Options | None = None, *, opened: Opened | None = None, **changes: Any) -> Plan:
    """What `merge` would do, from headers alone: tensors, bytes, memory, time. The plan is a lazy `Checkpoint`.

    Args:
        recipe: a path to a recipe (or its lock file), a mapping, or a `Recipe`.
        options: how to run it; `changes` replaces single fields, such as ``max_memory=2 << 30``.
        opened: sources shared with the plans of other recipes.

    Raises:
        RecipeError, SourceError, ResourceError: everything that can be known before a byte is merged.
    """
    found, lock = _read(recipe)
    return _plan(found, lock, replace(options or Options(), **changes), opened)


def _plan(recipe: Recipe, lock: Lock | None, options: Options, opened: Opened | None = None) -> Plan:
    if lock is None:
        return make_plan(recipe, options, opened)
    _check_options(options, lock)
    locked = lock.options.model_dump()
    if options.device_kind == lock.options.device:
        del locked["device"]  # which GPU of that kind is left to the caller
    made = make_plan(recipe, replace(options, **locked), opened)
    _check_sources(made, lock)
    return made


def _check_options(options: Options, lock: Lock) -> None:
    """Refuse options that contradict a lock file: to follow either of the two would be a surprise."""
    defaults = {field.name: field.default for field in fields(Options)}
    problems = []
    for name, flag in LOCKED.items():
        asked, then = getattr(options, name), getattr(lock.options, name)
        asked = options.device_kind if name == "device" else asked
        if asked not in (defaults[name], then):
            was, now = (str(value).lower() for value in (then, asked))
            problems.append(f"{flag}: {name} was {was} when the lock file was made, not {now}")
    if problems:
        cure = "a lock file rebuilds what it recorded; leave these flags out, or merge the recipe.yaml beside it:"
        raise RecipeError(cure, problems)


def merge(
    recipe: RecipeLike,
    out: str | os.PathLike[str] | None = None,
    options: Options | None = None,
    *,
    resume: bool = False,
    force: bool = False,
    watcher: Watcher | None = None,
    profile: Profile | None = None,
    **changes: Any,
) -> Plan | Path:
    """Merge checkpoints into the folder `out`, or return the lazy merged `Checkpoint` where `out` is None.

    Args:
        recipe: a path to a recipe (or its lock file), a mapping, or a `Recipe`.
        out: the folder to make; its parent is made if absent.
        options: memory, threads, seed and so on; `changes` replaces single fields.
        resume: continue a killed run; a finished `out` of the same recipe is returned as it is.
        force: replace `out` (a model folder) and drop anything unfinished.
        watcher: told about the plan and every tile.
        profile: measures where the time goes.

    Raises:
        EutecticError: see `eutectic.errors`; whatever happens, `out` is either whole or absent.
    """
    clock = profile.run if profile is not None else Clock()
    clock.enter("plan")
    found, lock = _read(recipe)
    text = lock.text if lock is not None else _text_of(recipe, found)
    made = _plan(found, lock, replace(options or Options(), **changes))
    if out is None:
        return made
    watcher = watcher or Watcher()
    ready = _prepare(made, out, resume=resume, force=force)
    if ready.finished:
        (ready.out / JOURNAL).unlink(missing_ok=True)  # of a run killed between its last two steps
        clock.enter("")
        return ready.out
    watcher.planned(made)
    expected = lock.output.tensors if lock is not None else None
    with closing(_work_of(made, watcher, profile)) as work:
        if isinstance(work, AdapterRun):
            _check_staged(staging_of(ready.out), ready.mark, resume=resume, force=force)
            if work.needs_kernels:
                clock.enter("kernels")
                _load_kernels(made, watcher)
            clock.enter("tiles")
            work.prepare()
            watcher.factored(work.report)
        with closing(
            Sink(ready.out, work.tensors, work.shards, ready.mark, resume=resume, force=force, fsync=made.options.fsync)
        ) as sink:
            work.run(sink)
            clock.enter("finish")
            if expected is not None:
                _compare(sink.digests, expected, sink.staging)
            _check_unchanged(made)
            files = work.files(text)
            files[LOCK] = _json(lock_document(made, work.shards, sink.digests, files, text))
            folder = sink.finish(files)
    clock.enter("")
    return folder


def _work_of(made: Plan, watcher: Watcher, profile: Profile | None) -> AdapterRun | _ModelRun:
    return AdapterRun(made, watcher.moved) if isinstance(made, AdapterPlan) else _ModelRun(made, watcher, profile)


class _ModelRun:
    """One execution of the plan of a model, by the executor that its options ask for."""

    def __init__(self, made: Plan, watcher: Watcher, profile: Profile | None) -> None:
        self.made, self.watcher = made, watcher
        self.clock = profile.run if profile is not None else Clock()
        self.tensors, self.shards = made.steps, made.shards
        self.executor = make_executor(made, watcher.moved, profile)
        self.close = self.executor.close

    def run(self, sink: Sink) -> None:
        """Merge and write every tensor that the sink does not hold yet."""
        self.clock.enter("kernels")
        _load_kernels(self.made, self.watcher)
        self.clock.enter("tiles")
        _run(self.made, self.executor, sink, self.watcher)

    def files(self, text: str) -> dict[str, bytes]:
        """The files beside the weights."""
        return side_files(self.made, self.shards, text)


def check_merge(
    recipe: RecipeLike,
    out: str | os.PathLike[str],
    options: Options | None = None,
    *,
    resume: bool = False,
    force: bool = False,
    **changes: Any,
) -> Plan:
    """The plan of a merge into `out`, after every check that `merge` makes before it writes a byte.

    Raises:
        EutecticError: what `merge` with the same arguments would raise before it writes.
    """
    made = plan(recipe, options, **changes)
    ready = _prepare(made, out, resume=resume, force=force)
    if not ready.finished:
        _work_of(made, Watcher(), None).close()
        _check_staged(staging_of(ready.out), ready.mark, resume=resume, force=force)
    return made


@dataclass(frozen=True)
class _Ready:
    """A target that may be written: the folder, the fingerprint of the run, and whether its result lies there."""

    out: Path
    mark: str
    finished: bool


def _prepare(made: Plan, out: str | os.PathLike[str], *, resume: bool, force: bool) -> _Ready:
    out = _real(out)
    mark = fingerprint(made)
    if out.exists() and resume and not force and _finished(out) == mark:
        return _Ready(out, mark, True)
    _check_target(made, out, force=force)
    made.check_room(out)
    return _Ready(out, mark, False)


def _check_staged(staging: Path, mark: str, *, resume: bool, force: bool) -> None:
    """Foretell what the sink will say to an earlier run's leftovers, without taking them over."""
    journal = staging / JOURNAL
    if not staging.exists():
        return
    if not journal.is_file():
        if not staging.is_dir() or any(staging.iterdir()):
            raise OutputError(f"{staging} is in the way and no merge of ours; move it, or choose another target")
        return
    if force and not resume:
        return
    if not resume:
        raise OutputError(f"{staging} holds an unfinished merge: --resume continues it, --force starts over")
    if fingerprint_of(staging) not in (None, mark):  # None, a torn line: the sink starts over
        raise OutputError(
            f"{staging} was started from another recipe, other sources or other options; "
            "--force starts over, or remove that folder"
        )


def _load_kernels(made: Plan, watcher: Watcher) -> None:
    from eutectic.ops.numba_blas import defer_blas
    from eutectic.recipes.executors.local import rehearse

    if made.options.executor != "local" and not made.wide:
        return  # no tile is merged in this process
    if any(kind.programs for kind in made.kinds):
        defer_blas()
    with one_thread(made.uses_torch), _told(watcher):
        ready: set[tuple[object, ...]] = set()
        for kind in made.kinds:
            for ref in kind.step.refs:
                if ref is not None:
                    ref.rehearse()
            for merge_ in kind.step.merges if kind.programs else ():
                program = kind.programs.get(merge_.index)
                known = (merge_.index, type(program))
                if program is not None and known not in ready:
                    rehearse(program, len(merge_.inputs))
                    ready.add(known)


def _run(made: Plan, executor: Executor, sink: Sink, watcher: Watcher) -> None:
    begun = time.perf_counter()
    todo = sum(step.nbytes for step in made.steps if step.name not in sink.digests)
    watcher.moved(2 * (made.nbytes - todo))
    executor.run(sink)
    if todo == made.nbytes:
        Rates.load().record(made.kind, made.shape.threads, made.bytes_read + made.nbytes, time.perf_counter() - begun)


@contextmanager
def _told(watcher: Watcher) -> Iterator[None]:
    """Tell the watcher when loading the kernels takes so long that they must be compiling."""
    timer = threading.Timer(COMPILING_AFTER, watcher.compiling)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _read(recipe: RecipeLike) -> tuple[Recipe, Lock | None]:
    """The recipe, and the lock file that it came from if it did."""
    if isinstance(recipe, Recipe):
        return recipe, None
    if isinstance(recipe, (str, os.PathLike)) and str(recipe).endswith(".json") and is_lock(Path(recipe)):
        return load_lock(Path(recipe))
    return load_recipe(recipe, check=check_parameters), None


def _text_of(recipe: RecipeLike, found: Recipe) -> str:
    """The recipe as its author wrote it, or as YAML where it was never text."""
    if isinstance(recipe, (str, os.PathLike)) and str(recipe).endswith((".yaml", ".yml")):
        return Path(recipe).read_text(encoding="utf-8")
    return dump_yaml(found.canonical())


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=1) + "\n").encode()


def _finished(out: Path) -> str | None:
    """The fingerprint of a finished folder."""
    lock = out / LOCK
    return read_json(lock).get("fingerprint") if lock.is_file() else None


def _real(out: str | os.PathLike[str]) -> Path:
    """The folder that `out` means: where a link points, the result comes there."""
    path = Path(out).absolute()
    try:
        return path.resolve() if path.is_symlink() else path
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        why = error.strerror if isinstance(error, OSError) else error
        raise OutputError(f"{path} cannot be made: {why}") from None


def _check_target(made: Plan, out: Path, *, force: bool) -> None:
    """Refuse a target that exists, that is or holds a source, or that is plainly not a model folder."""
    for leaf in (*made.tree.sources, *made.tree.statistics):
        path = leaf.checkpoint.path
        folders = {file.path.parent.resolve() for file in leaf.checkpoint.headers if isinstance(file.path, Path)}
        if isinstance(path, Path):
            folders.add((path if path.is_dir() else path.parent).resolve())
        here = out.resolve()
        inside = isinstance(path, Path) and path.is_dir() and bool(folders & set(here.parents))
        if inside or any(here == source or here in source.parents for source in folders):
            raise OutputError(f"{out} is, holds or lies inside the source {leaf.label}; choose another target")
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"{out} exists and is not a folder; choose another target")
    if any(out.iterdir()):
        if not force:
            raise OutputError(
                f"{out} exists. --force replaces it, --resume accepts it if it is this very merge, finished; "
                "or choose another target."
            )
        if not any(entry.name == LOCK or entry.suffix in WEIGHTS for entry in out.iterdir()):
            raise OutputError(f"{out} does not look like a model folder; --force will not delete it")


def _check_sources(made: Plan, lock: Lock) -> None:
    """Say which source changed since the lock file was written."""
    from eutectic.recipes.provenance import source_records

    full = any(file.blake3 for record in lock.sources for file in record.files)
    was = {(record.path, file.name): file for record in lock.sources for file in record.files}
    changed = []
    for record in source_records(made, full=full):
        for file in record["files"]:
            then = was.get((record["path"], file["name"]))
            if then is None:
                changed.append(f"{record['path']}: {file['name']} is new")
            elif (then.bytes, then.header) != (file["bytes"], file["header"]) or then.blake3 not in (
                None,
                file.get("blake3"),
            ):
                changed.append(f"{record['path']}: {file['name']} changed")
    if changed:
        raise SourceError("\n".join(["the sources are not those of the lock file:", *(f"  - {c}" for c in changed)]))


def _check_unchanged(made: Plan) -> None:
    """Refuse to publish a merge whose sources were rewritten while they were read."""
    for leaf in (*made.tree.sources, *made.tree.statistics):
        for file in leaf.checkpoint.headers:
            file.check_unchanged()


def _compare(digests: Mapping[str, str], expected: Mapping[str, str], staging: Path) -> None:
    """Refuse to publish a rebuild whose bytes differ from the lock file's."""
    different = [name for name, digest in digests.items() if expected.get(name) != digest]
    if different or len(digests) != len(expected):
        shown = ", ".join(different[:5]) + (", ..." if len(different) > 5 else "")
        raise VerificationError(
            f"the rebuilt tensors differ from the lock file in {len(different)} of {len(expected)}: {shown}. "
            "A source's values changed although its header did not, or another version made the lock file. "
            f"The result stays unpublished in {staging}."
        )
