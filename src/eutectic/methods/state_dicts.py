"""Merging state dicts in memory: any device, autograd-safe, no files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eutectic.errors import MethodError, SourceError
from eutectic.methods import get_method
from eutectic.methods.dense import dense_counterpart
from eutectic.methods.method import Method
from eutectic.ops.random import Draws
from eutectic.weights.layout import is_log_space

if TYPE_CHECKING:
    import torch

__all__ = ["merge_state_dicts"]

StateDict = Mapping[str, "torch.Tensor"]


def merge_state_dicts(
    models: Sequence[StateDict] | Mapping[str, StateDict],
    method: str | Method,
    *,
    base: StateDict | None = None,
    parameters: Mapping[str, Any] | None = None,
    seed: int = 0,
    vocabulary: Collection[str] = (),
    statistics: Sequence[StateDict] | None = None,
) -> dict[str, torch.Tensor]:
    """Merge state dicts tensor by tensor; the same numbers as a recipe gives on files.

    Args:
        models: the sources, in order (a mapping's values; its keys may name per-source parameters).
        method: a name (``"ties"``) or a `Method`.
        base: the base's state dict, where the method needs one.
        parameters: as in a recipe: ``{"weight": [0.3, 0.7], "lambda": 1.0}``; per-source values are a list in
            the order of `models`, or a mapping from their keys, or one number for all.
        seed: for stochastic methods.
        vocabulary: names of tensors with a row per token (embeddings, output heads), which methods that work on
            singular directions average. A recipe knows them by config.json's vocab_size.
        statistics: for methods that need them (`fisher`, `regmean`), a mapping from names to tensors for each of the
            models; a name that none of them has is averaged.

    Log-space tensors (by their names) are merged without leaving entries out, as in a recipe.

    Returns:
        A new dict with the names and dtypes of the base (or first model); tensors that are not floating point are
        the base's (or first model's) own.

    Raises:
        MethodError: unknown method, or parameters that it refuses.
        SourceError: names or shapes differ.

    >>> import torch
    >>> a, b = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    >>> merge_state_dicts([a, b], "linear", parameters={"weight": [1, 3]})
    {'w': tensor([0.7500, 0.7500])}
    """
    chosen = get_method(method) if isinstance(method, str) else method
    keys = list(models) if isinstance(models, Mapping) else list(range(len(models)))
    sources = list(models.values()) if isinstance(models, Mapping) else list(models)
    given = {
        name: [value[key] for key in keys] if isinstance(value, Mapping) else value
        for name, value in (parameters or {}).items()
    }
    if chosen.base == "first" and base is not None:
        sources, base = [base, *sources], None
    fewest, most = chosen.sources
    if len(sources) < fewest or (most is not None and len(sources) > most):
        raise MethodError(f"{chosen.name} merges {chosen.count_in_words()}, not {len(sources)}")
    if chosen.base == "required" and base is None:
        raise MethodError(f"{chosen.name} needs a base: merge_state_dicts(..., base=...)")
    settled, faults = chosen.settle(given, len(sources))
    if faults:
        raise MethodError(f"{chosen.name} refuses its parameters", [f"{name}: {why}" for name, why in faults])
    chosen.check_statistics(len(sources), statistics)
    reference = base if base is not None else sources[0]
    _check_names(reference, sources)
    floating = [name for name, tensor in reference.items() if tensor.is_floating_point()]
    merged = dict(reference)
    whole = [name for name in floating if chosen.sparsifies and is_log_space(name)]
    if settled.get("scope") == "model":
        rest = [name for name in floating if name not in whole]
        merged |= _merge_whole(chosen, reference, sources, rest, base, settled, seed)
        floating = whole
    for name in floating:
        tensors, start = [source[name] for source in sources], None if base is None else base[name]
        one, values = chosen, settled
        if name in whole:
            one, values = dense_counterpart(chosen, settled, len(sources))
        elif name in vocabulary:
            one, values = chosen.by_token(settled, len(sources))
        known = None if statistics is None else [found.get(name) for found in statistics]
        if known is not None:
            one.check_statistics(len(sources), known)
        merged[name] = _merge_one(one, tensors, start, values, seed, name, known)
    return merged


def _merge_one(
    method: Method,
    tensors: list[torch.Tensor],
    base: torch.Tensor | None,
    settled: Mapping[str, Any],
    seed: int,
    name: str,
    statistics: Sequence[torch.Tensor | None] | None = None,
) -> torch.Tensor:
    from eutectic.ops.rounding import round_once

    result = method.apply(tensors, base, settled, Draws(seed, name), statistics)
    return round_once(result, (tensors[0] if base is None else base).dtype)


def _merge_whole(
    method: Method,
    reference: StateDict,
    sources: list[StateDict],
    names: list[str],
    base: StateDict | None,
    settled: Mapping[str, Any],
    seed: int,
) -> dict[str, torch.Tensor]:
    """One vector out of all tensors, as methods of model scope define it."""
    import torch

    def flat(model: StateDict) -> torch.Tensor:
        return torch.cat([model[name].reshape(-1).to(torch.float32) for name in names])

    vector = _merge_one(method, [flat(s) for s in sources], None if base is None else flat(base), settled, seed, "")
    parts = vector.split([reference[name].numel() for name in names])
    return {
        name: part.reshape(reference[name].shape).to(reference[name].dtype)
        for name, part in zip(names, parts, strict=True)
    }


def _check_names(reference: StateDict, sources: list[StateDict]) -> None:
    for at, source in enumerate(sources):
        odd = set(reference) ^ set(source)
        if odd:
            name = min(odd)
            where = f"model {at}" if name in source else "the reference"
            raise SourceError(
                f"{name!r} is only in {where} ({len(odd)} names differ); merge models of one architecture"
            )
        for name, tensor in source.items():
            if tensor.shape != reference[name].shape:
                raise SourceError(
                    f"{name!r}: shape {list(tensor.shape)} in model {at}, "
                    f"{list(reference[name].shape)} in the reference"
                )
