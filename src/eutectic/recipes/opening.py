"""One source of a recipe, opened: a stored model, one with an adapter, an adapter alone, quantised or not."""

from __future__ import annotations

from pathlib import Path

from eutectic.errors import SourceError
from eutectic.recipes.schema import Recipe
from eutectic.weights.adapter import open_adapted
from eutectic.weights.adapter_delta import open_changes
from eutectic.weights.checkpoint import Checkpoint, open_checkpoint
from eutectic.weights.files import Place
from eutectic.weights.lora import is_lone_adapter
from eutectic.weights.quantized.dequantise import open_dequantised
from eutectic.weights.quantized.scheme import scheme_of
from eutectic.weights.quantized.tensor import DequantisedTensor

__all__ = ["absent", "open_source", "real"]


def open_source(path: Place, adapter: Place | None, *, as_stored: bool) -> tuple[Checkpoint, str | None]:
    """A source, and how it is stored where it is quantised and read as the dense model that it stands for."""
    if adapter is None and is_lone_adapter(path):
        return open_changes(path), None
    checkpoint = open_checkpoint(path)
    scheme = None if as_stored and adapter is None else scheme_of(checkpoint)
    words = None
    if scheme is not None:
        checkpoint = open_dequantised(checkpoint)
        coded = any(isinstance(ref, DequantisedTensor) for ref in checkpoint.values())
        words = scheme.words if coded else f"no codes, though config.json says {scheme.words}"
    return checkpoint if adapter is None else open_adapted(checkpoint, adapter), words


def absent(reference: str, wanted: Path, recipe: Recipe | None = None) -> SourceError:
    """What to say of a path that is not there."""
    what = reference if str(wanted) in (reference, str(Path(reference))) else f"{reference}: {wanted}"
    if wanted.is_absolute():
        return SourceError(f"{what}: no such folder or file")
    beside = f" or in {recipe.folder}" if recipe is not None and recipe.folder else ""
    return SourceError(
        f"{what}: no such folder or file in the current directory{beside}. A model of the hub is named by org/name "
        "or org/name@revision."
    )


def real(place: Place) -> Place:
    """The place itself, behind links."""
    return place.resolve() if isinstance(place, Path) else place
