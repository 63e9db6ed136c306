"""`eutectic inspect`: what a folder is, what it holds, what to beware of. numpy is loaded for values only."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import eutectic
from eutectic.cli.candidates import Listing
from eutectic.cli.output import emit_json, json_option, progress
from eutectic.cli.patterns import Pattern, collapse, find_stacks, natural_key
from eutectic.evaluation.folder import Folder, declared_base, kind_of, look
from eutectic.evaluation.hazards import Hazard, hazards
from eutectic.weights.checkpoint import Checkpoint
from eutectic.weights.layout import layout_of, ties_heads
from eutectic.weights.quantized.scheme import READERS, scheme_of
from eutectic.weights.tensor_ref import StoredTensor, TensorRef

if TYPE_CHECKING:
    from eutectic.evaluation.kinship import Kinship

__all__ = ["describe", "inspect"]

LARGEST = 3  # tensors named as the largest


@click.command(cls=Listing)
@click.argument("path", type=click.Path())
@click.option("--tensors", "list_tensors", is_flag=True, help="List every tensor instead of patterns.")
@click.option("--values", is_flag=True, help="Read the values too: NaN, infinity, zeros, range.")
@click.option(
    "--among", "candidates", multiple=True, metavar="PATH...",
    help="Models that PATH may come from: every path up to the next option.",
)  # fmt: skip
@click.option("--base", metavar="PATH", help="The model that PATH was trained from; deltas are taken from it.")
@json_option
def inspect(
    path: str, list_tensors: bool, values: bool, candidates: tuple[str, ...], base: str | None, as_json: bool
) -> None:
    """Show what PATH is and holds: a model folder, one weight file, or a recipe (unmerged); an adapter, a family of
    experts; a URL or a name of the hub stands for a model, too.

    Parameters, bytes, types, files, layers, parts, what may go wrong in a merge, and all tensors with names that
    differ only in numbers collapsed into one line. Only headers are read, so any size of model takes a moment.

    With --among or --base values are read, streamed: how far PATH is from each, which is the likely base, and the
    cosines of their deltas to it.
    """
    from eutectic.cli import inspect_report

    folder = look(Path(path)) if Path(path).is_dir() else None
    if folder is not None and folder.weights is None:
        if values or candidates or base:
            raise click.UsageError(f"{path} is a {folder.kind}, which has no values of its own; inspect a model in it")
        facts = describe_members(path, folder)
        if as_json:
            emit_json("inspect", facts)
        else:
            inspect_report.print_members(facts)
        return
    checkpoint = eutectic.open(path if folder is None else folder.weights)
    facts = describe(checkpoint, list_tensors=list_tensors)
    if folder is not None:
        facts |= {"path": path, "kind": folder.kind, "adapter": dict(folder.facts), "hazards": []}
    if values:
        _add_values(checkpoint, facts)
    if candidates or base:
        facts["kinship"] = _kinship(checkpoint, candidates, base)
    if as_json:
        emit_json("inspect", facts)
    else:
        inspect_report.print_inspection(facts)


def describe(checkpoint: Checkpoint, *, list_tensors: bool = False) -> dict[str, Any]:
    """Everything that headers and the files beside them tell of a checkpoint, as plain data (the body of the JSON)."""
    config = checkpoint.config
    found: dict[str, Any] = {
        "path": None if checkpoint.path is None else str(checkpoint.path),
        "kind": kind_of(checkpoint),
        "architectures": _architectures(config),
        "model_type": config.get("model_type"),
        "declared": [{"name": name, "file": file} for name, file in declared_base(checkpoint)],
        "quantisation": _quantisation(checkpoint),
        "tied_embeddings": ties_heads(config),
        "output_head": next((name for name in checkpoint if name.endswith("lm_head.weight")), None),
        "tensor_count": len(checkpoint),
        "parameters": checkpoint.numel,
        "bytes": checkpoint.nbytes,
        "dtypes": _dtypes(checkpoint),
        "files": _files(checkpoint),
        "layers": [
            {"prefix": s.prefix, "first": s.first, "last": s.last, "count": s.count} for s in find_stacks(checkpoint)
        ],
        "parts": _parts(checkpoint),
        "hazards": [_hazard_entry(hazard) for hazard in hazards(checkpoint)],
        "largest": [_tensor_entry(tensor) for tensor in _largest(checkpoint)],
        "patterns": [
            {
                "pattern": pattern.text,
                "count": len(pattern.names),
                "span": pattern.span,
                "shape": list(checkpoint[pattern.names[0]].shape),
                "dtype": str(checkpoint[pattern.names[0]].dtype),
                "parameters": sum(checkpoint[name].numel for name in pattern.names),
                "bytes": sum(checkpoint[name].nbytes for name in pattern.names),
            }
            for pattern in _patterns(checkpoint)
        ],
    }
    if list_tensors:
        found["tensors"] = [_tensor_entry(tensor) for tensor in checkpoint.values()]
    return found


def describe_members(path: str, folder: Folder) -> dict[str, Any]:
    """A family as plain data: what it is, and each model in it with its size, or why it has none."""
    from eutectic.errors import EutecticError

    members = []
    for name, place in folder.members.items():
        entry: dict[str, Any] = {"name": name, "path": str(place)}
        inner = look(place) if place.is_dir() else None
        try:
            opened = eutectic.open(place if inner is None or inner.weights is None else inner.weights)
            entry |= {"tensors": len(opened), "parameters": opened.numel, "bytes": opened.nbytes}
            entry["dtypes"] = [dtype["dtype"] for dtype in _dtypes(opened)]
        except EutecticError as error:
            entry["error"] = str(error).splitlines()[0]
        members.append(entry)
    return {"path": path, "kind": folder.kind, "title": folder.title, "facts": dict(folder.facts), "members": members}


# ---------------------------------------------------------------- values


def _add_values(checkpoint: Checkpoint, facts: dict[str, Any]) -> None:
    from eutectic.evaluation.values import value_hazards, values_of

    with progress("reading", checkpoint.nbytes) as advance:
        found = values_of(checkpoint, advance)
    facts["values"] = [vars(entry) for entry in found]
    facts["hazards"] = [*facts["hazards"], *map(_hazard_entry, value_hazards(found))]


def _kinship(checkpoint: Checkpoint, candidates: tuple[str, ...], base: str | None) -> dict[str, Any]:
    from eutectic.cli.candidates import labelled
    from eutectic.evaluation.kinship import find_kin

    models, base_label = labelled(candidates, base)
    with progress("comparing", checkpoint.nbytes) as advance:
        found: Kinship = find_kin(checkpoint, models, base=base_label, report=advance)
    return {
        "verdict": found.verdict,
        "base": found.base,
        "given": found.given,
        "candidates": [vars(kin) for kin in found.kin],
    }


# ---------------------------------------------------------------- facts


def _architectures(config: dict[str, Any]) -> list[str]:
    names = config.get("architectures", [config["_class_name"]] if "_class_name" in config else None)
    return [str(name) for name in names] if isinstance(names, list) else []


def _quantisation(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """How the weights are coded, as config.json or the names say; whether a merge reads them as dense ones."""
    scheme = scheme_of(checkpoint)
    if scheme is None:
        return None
    understood = scheme.method in READERS
    return {"method": scheme.method, "bits": scheme.bits, "words": scheme.words, "understood": understood}


def _dtypes(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    tensors, parameters, nbytes = Counter[str](), Counter[str](), Counter[str]()
    for tensor in checkpoint.values():
        tensors[str(tensor.dtype)] += 1
        parameters[str(tensor.dtype)] += tensor.numel
        nbytes[str(tensor.dtype)] += tensor.nbytes
    return [
        {"dtype": name, "tensors": tensors[name], "parameters": parameters[name], "bytes": size}
        for name, size in nbytes.most_common()
    ]


def _parts(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    layout = layout_of(checkpoint)
    counts = Counter(part.role for part in layout.values())
    return [{"role": role, "tensors": counts[role], "parameters": n} for role, n in layout.elements.items()]


def _files(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    tensors = Counter(t.file.path for t in checkpoint.values() if isinstance(t, StoredTensor))
    return [
        {"name": checkpoint.name_of(file), "bytes": file.size, "tensors": tensors[file.path]}
        for file in checkpoint.headers
    ]


def _hazard_entry(hazard: Hazard) -> dict[str, Any]:
    return {"kind": hazard.kind, "message": hazard.message, "tensors": list(hazard.tensors)}


def _largest(checkpoint: Checkpoint) -> list[TensorRef]:
    return sorted(checkpoint.values(), key=lambda tensor: (-tensor.nbytes, natural_key(tensor.name)))[:LARGEST]


def _patterns(checkpoint: Checkpoint) -> list[Pattern]:
    return collapse(checkpoint, key=lambda name: (checkpoint[name].shape, checkpoint[name].dtype))


def _tensor_entry(tensor: TensorRef) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": tensor.name, "shape": list(tensor.shape), "dtype": str(tensor.dtype)}
    entry |= {"parameters": tensor.numel, "bytes": tensor.nbytes}
    if isinstance(tensor, StoredTensor):
        entry["file"] = tensor.file.path.name
    return entry
