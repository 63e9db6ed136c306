"""Statistics beside a source: whether they are its own, whether they fit a tensor, and their values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eutectic.errors import NonFiniteError, RecipeError, SourceError
from eutectic.recipes.references import resolve
from eutectic.weights.adapter_delta import Changes
from eutectic.weights.checkpoint import Checkpoint
from eutectic.weights.keymap import Presented
from eutectic.weights.statistics_folder import collect_command, identity_of, open_statistics
from eutectic.weights.tensor_ref import TensorRef

if TYPE_CHECKING:
    import torch

    from eutectic.recipes.match import Step
    from eutectic.recipes.schema import Recipe
    from eutectic.recipes.tree import Merge

__all__ = ["covers", "read_statistics", "statistics_of"]


def statistics_of(
    folder: str, model: str, kind: str, stored: Checkpoint, named: Checkpoint, recipe: Recipe
) -> Checkpoint:
    """The tensors of one kind in the folder that a recipe names beside a model (as `stored`, and as it is read).

    Raises:
        RecipeError: the folder lacks the kind, or belongs to another model. SourceError: it holds no statistics.
    """
    path = resolve(folder, recipe)
    if not isinstance(path, Path):
        raise RecipeError(f"{folder}: statistics are read from a folder of this machine")
    if isinstance(stored, Changes):
        raise RecipeError(f"{model} is an adapter; statistics belong to models: merge it into its base first")
    if isinstance(named, Presented) and (named.renamed or named.experts):
        raise RecipeError(
            f"{model}: its tensors are read under the names of the first model, which its statistics do not know; "
            "save both models in one layout first"
        )
    found = open_statistics(path)
    if kind not in found.kinds:
        raise RecipeError(
            f"{folder} holds {', '.join(found.kinds)}, not {kind}; with the same --data, --task and --limit as before "
            f"`{collect_command(model, kind, folder)}` adds it"
        )
    if found.model != identity_of(stored):
        name = found.facts["model"].get("name")
        raise RecipeError(
            f"{folder} holds statistics of another model than {model} (they were collected on {name}); "
            f"`{collect_command(model, kind)}` makes its own"
        )
    return found.tensors(kind)


def covers(merge: Merge, name: str, shape: tuple[int, ...], refs: Sequence[TensorRef | None]) -> bool:
    """Whether there are statistics for a tensor that needs some; those of all sources or of none, and fitting.

    Raises:
        SourceError: some sources lack them, or their shape is no such statistic's.
    """
    if not merge.statistics:
        return True
    found = [(leaf, refs[leaf.index]) for leaf in merge.statistics]
    lacking = [leaf.label for leaf, ref in found if ref is None]
    if len(lacking) == len(found):
        return False
    if lacking:
        raise SourceError(f"{name}: {', '.join(lacking)} has no {merge.method.needs} of it, the other sources have")
    wanted = (math.prod(shape[1:]),) * 2 if merge.method.needs == "gram" else shape
    for leaf, ref in found:
        if ref is not None and ref.shape != wanted and merge.method.needs in ("fisher", "gram", "gradients"):
            raise SourceError(
                f"{name} {list(shape)}: {leaf.label} has a {leaf.statistics} of {list(ref.shape)}, not {list(wanted)}"
            )
    return True


def read_statistics(merge: Merge, step: Step, device: torch.device) -> list[torch.Tensor | None]:
    """The statistics of each source for one tensor (None where there are none of it).

    Raises:
        NonFiniteError: they hold NaN or infinity.
    """
    import torch

    found: list[torch.Tensor | None] = []
    for leaf in merge.statistics:
        ref = step.refs[leaf.index]
        tensor = None if ref is None else ref.to_torch()
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(f"{leaf.label}: the {leaf.statistics} of {step.name!r} holds NaN or infinity")
        found.append(None if tensor is None else tensor.to(device))
    return found
