"""`eutectic inspect`: what a checkpoint holds. Reads headers only; loads neither torch nor numpy."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click

import eutectic
from eutectic.cli.output import emit_json, json_option
from eutectic.cli.patterns import Pattern, collapse, find_stacks, natural_key
from eutectic.weights.checkpoint import Checkpoint
from eutectic.weights.layout import layout_of, ties_heads
from eutectic.weights.quantized.scheme import READERS, scheme_of
from eutectic.weights.tensor_ref import StoredTensor, TensorRef

__all__ = ["describe", "inspect"]

LARGEST = 3  # tensors named as the largest


@click.command()
@click.argument("path", type=click.Path())
@click.option("--tensors", "list_tensors", is_flag=True, help="List every tensor instead of patterns.")
@json_option
def inspect(path: str, list_tensors: bool, as_json: bool) -> None:
    """Show what PATH holds: a model folder, one weight file, or a recipe (unmerged);
    a URL or a name of the hub stands for a model, too.

    Parameters, bytes, types, files, layers, and all tensors with names that differ only in numbers
    collapsed into one line. Only headers are read, so any size of model takes a moment.
    """
    checkpoint = eutectic.open(path)
    facts = describe(checkpoint, list_tensors=list_tensors)
    if as_json:
        emit_json("inspect", facts)
        return
    from eutectic.cli.inspect_report import print_inspection

    print_inspection(facts)


def describe(checkpoint: Checkpoint, *, list_tensors: bool = False) -> dict[str, Any]:
    """Everything that `inspect` knows about a checkpoint, as plain data (the body of its JSON)."""
    config = checkpoint.config
    found: dict[str, Any] = {
        "path": None if checkpoint.path is None else str(checkpoint.path),
        "architectures": _architectures(config),
        "model_type": config.get("model_type"),
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
