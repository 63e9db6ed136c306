"""Packing a pool from references, as recipes name models. The algorithms are in `eutectic.pools`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eutectic.errors import RecipeError, SourceError
from eutectic.pools.manifest import check_name
from eutectic.pools.pack import write_pool
from eutectic.pools.packing import Source, prepare
from eutectic.pools.pool import Pool
from eutectic.recipes.opening import absent, open_source
from eutectic.recipes.provenance import SIDE_FILES, licence_of, public_name, read_files
from eutectic.recipes.references import resolve_model
from eutectic.weights.adapter_delta import Changes
from eutectic.weights.files import is_folder

__all__ = ["Report", "named", "open_reference", "pack", "side_of"]

Report = Callable[[int], None]


def open_reference(reference: str | os.PathLike[str]) -> Source:
    """A model to be packed: a folder, a file, a URL, a model of the hub, with an adapter (``base+adapter``) or not.

    Raises:
        SourceError: it is not there, or is an adapter without a model.
    """
    text = os.fspath(reference)
    place, adapter = resolve_model(text)
    for wanted in (place, adapter):
        if isinstance(wanted, Path) and not wanted.exists():
            raise absent(text, wanted)
    checkpoint, _ = open_source(place, adapter, as_stored=False)
    if isinstance(checkpoint, Changes):
        raise SourceError(f"{text}: an adapter without its model; name both, as BASE+{text}")
    places = [found for found in (place, adapter) if found is not None]
    names = [public_name(found)[0] for found in places]
    licences = {licence_of(found) for found in places}
    where = "+".join(str(p.absolute() if isinstance(p, Path) else p.pinned()) for p in places)
    return Source(where, "+".join(names), licences.pop() if len(licences) == 1 else None, checkpoint)


def named(references: Sequence[str] | Mapping[str, Any]) -> dict[str, str]:
    """Names of experts and their references, from ``NAME=REFERENCE`` or references whose last part is the name.

    Raises:
        RecipeError: a name that cannot be one, or that two experts have.

    >>> named(["runs/fr", "german=runs/42"])
    {'fr': 'runs/fr', 'german': 'runs/42'}
    """
    if isinstance(references, Mapping):
        return {check_name(name): os.fspath(reference) for name, reference in references.items()}
    found: dict[str, str] = {}
    for text in map(os.fspath, references):
        name, mark, reference = text.partition("=")
        if not mark or "/" in name or os.path.exists(text):  # noqa: PTH110  (never raises)
            name, reference = Path(text.rpartition("+")[2] or text).name.removesuffix(".safetensors"), text
            name = name.rpartition("#")[2]
        if not reference:
            raise RecipeError(f"{text!r} names no model; an expert is PATH or NAME=PATH")
        if check_name(name) in found:
            raise RecipeError(f"two experts are called {name!r}; name them apart with NAME=PATH")
        found[name] = reference
    return found


def pack(
    base: str | os.PathLike[str],
    experts: Sequence[str] | Mapping[str, Any],
    out: str | os.PathLike[str],
    *,
    scheme: str = "tall",
    store_base: bool = True,
    threads: int | None = None,
    report: Report | None = None,
    **settings: Any,
) -> Pool:
    """Pack a base and its experts into one folder from which each expert comes back.

    Args:
        base, experts: references as recipes have them; experts by name, or ``NAME=REFERENCE``.
        out: the folder, which must not exist.
        scheme: how experts are kept: ``tall``, ``bitdelta``, ``rmm`` or ``twin``; `settings` are its own.
        store_base: False keeps only where the base lies.
        threads: default one for each core.
        report: called with the bytes of sources that are done.

    Returns:
        The pool, a mapping from names to lazy checkpoints.

    Raises:
        RecipeError: names, a scheme or settings that cannot be. SourceError: models that do not fit together.
        OutputError: `out` is in the way, or cannot be written.

    >>> pool = eutectic.pack("base", ["fr", "de"], "languages", scheme="bitdelta")      # doctest: +SKIP
    >>> eutectic.open("languages#fr")                                                   # doctest: +SKIP
    """
    source = open_reference(base)
    found = {name: open_reference(reference) for name, reference in named(experts).items()}
    packing = prepare(source, found, scheme, settings)
    return write_pool(packing, Path(out), side_of(source), store_base=store_base, threads=threads, report=report)


def side_of(source: Source) -> dict[str, bytes]:
    """config.json, the tokenizer and the like of a model; none of a lone weight file."""
    path = source.checkpoint.path
    if path is None or not is_folder(path):
        return {}
    if "" not in source.checkpoint.components:
        raise SourceError(f"{source.reference}: a pipeline of several models; pack each of them")
    files = dict(read_files(path, SIDE_FILES))
    if "config.json" in files and json.loads(files["config.json"]) != source.checkpoint.config:
        files["config.json"] = (json.dumps(source.checkpoint.config, indent=2) + "\n").encode()  # of the dense model
    return files
