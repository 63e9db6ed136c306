"""One architecture, two ways of writing it down: a checkpoint read in the names and the layout of another.

transformers 5 reads and writes names of both its own and earlier versions; experts lie apart, one matrix each, or
together in one tensor [experts, out, in]. Names are translated as patterns, their numbers replaced by ``#``: by rules
that add or take away a part, until a pattern of the other checkpoint is met. Nothing is read and nothing is copied.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from eutectic.weights.checkpoint import Checkpoint
from eutectic.weights.flat_views import Joined, stretch
from eutectic.weights.tensor_ref import TensorRef

__all__ = ["Presented", "presented_as"]

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
_SWAPS = (
    ("language_model.model.", "model.language_model."),  # models with towers, before and since transformers 5
    ("language_model.lm_head.", "lm_head."),
    ("model.", "model.language_model."),
    ("vision_tower.vision_model.", "vision_tower."),
    ("model.vision_tower.vision_model.", "model.vision_tower."),
)  # starts of names
_INNER = (("block_sparse_moe", "mlp"), ("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
_PREFIXES = ("model", "transformer", "backbone")  # of a network inside one with a head, besides its model_type
_FUSED, _DOWN = "gate_up_proj", "down_proj"
_WORDS = {"gate": ("gate_proj", "w1"), "up": ("up_proj", "w3"), "down": ("down_proj", "w2")}
_KINDS = {word: kind for kind, words in _WORDS.items() for word in words}
_APART = re.compile(rf"(.*\.experts\.)#\.({'|'.join(_KINDS)})\.weight")
_TOGETHER = re.compile(rf"(.*\.experts\.)({_FUSED}|{_DOWN})")


_Find = Callable[[str], str | None]


class Presented(Checkpoint):
    """A checkpoint read in another's names: `renamed` tensors have other names, `experts` are joined or cut."""

    renamed: int = 0
    experts: int = 0


class _Fused(NamedTuple):
    """Where the matrix of one expert goes: the tensor of all experts, whose it is, and which of them."""

    target: str
    expert: int
    kind: str


def presented_as(checkpoint: Checkpoint, reference: Checkpoint) -> Checkpoint:
    """`checkpoint` in the names and the expert layout of `reference`, or itself where there is nothing to translate."""
    if checkpoint.keys() == reference.keys():
        return checkpoint
    known = {_pattern(name) for name in reference}
    prefixes = (
        *_PREFIXES,
        *(kind for c in (checkpoint, reference) if isinstance(kind := c.config.get("model_type"), str)),
    )
    seen: dict[str, str | None] = {}

    def find(pattern: str) -> str | None:
        if pattern in known:
            return pattern
        if pattern not in seen:
            seen[pattern] = _search(pattern, known, prefixes)
        return seen[pattern]

    tensors: dict[str, TensorRef] = {}
    parts: dict[str, dict[tuple[int, str], tuple[str, TensorRef]]] = {}
    renamed = experts = 0
    for name, ref in checkpoint.items():
        pattern = _pattern(name)
        if pattern in known:
            tensors[name] = ref
        elif (fused := _fused(name, pattern, find)) is not None:
            parts.setdefault(fused.target, {})[fused.expert, fused.kind] = (name, ref)
        elif cut := dict(_cut(name, pattern, ref, find)):
            tensors.update(cut)
            experts += len(cut)
        else:
            target = find(pattern)
            new = name if target is None else _numbered(target, name)
            if new != name and new not in checkpoint and new not in tensors:
                tensors[new] = stretch(ref, new, ref.shape)
                renamed += 1
            else:
                tensors[name] = ref
    for target, found in parts.items():
        joined = _join(target, found)
        tensors.update(joined)
        experts += len(found) if target in joined else 0
    if not renamed and not experts:
        return checkpoint
    made = Presented(
        tensors, path=checkpoint.path, config=checkpoint.config, headers=checkpoint.headers,
        held_bytes=checkpoint.held_bytes, components=checkpoint.components,
    )  # fmt: skip
    made.renamed, made.experts = renamed, experts
    return made


def _pattern(name: str) -> str:
    return _NUMBER.sub("#", name)


def _numbered(pattern: str, name: str) -> str:
    """A pattern with the numbers of a name, in order."""
    numbers = iter(_NUMBER.findall(name))
    return re.sub("#", lambda _: next(numbers), pattern)


def _search(pattern: str, known: set[str], prefixes: tuple[str, ...]) -> str | None:
    """The known pattern that the fewest rules, two at most, make of this one; None where there is none, or several."""
    reached = {pattern}
    for _ in range(2):
        reached |= {other for one in reached for other in _rewritten(one, prefixes)}
        hits = {one for one in reached if one in known and one.count("#") == pattern.count("#")}
        if hits:
            return hits.pop() if len(hits) == 1 else None
    return None


def _rewritten(pattern: str, prefixes: tuple[str, ...]) -> Iterator[str]:
    for pair in _SWAPS:
        for old, new in (pair, pair[::-1]):
            if pattern.startswith(old):
                yield new + pattern.removeprefix(old)
    for pair in _INNER:
        for old, new in (pair, pair[::-1]):
            if f".{old}" in pattern:
                yield pattern.replace(f".{old}", f".{new}")
    for prefix in prefixes:
        yield f"{prefix}.{pattern}"
        if pattern.startswith(f"{prefix}."):
            yield pattern.removeprefix(f"{prefix}.")


# ---------------------------------------------------------------- experts


def _fused(name: str, pattern: str, find: _Find) -> _Fused | None:
    """Where the reference keeps the experts together: the place of one expert's matrix."""
    apart = _APART.fullmatch(pattern)
    if apart is None:
        return None
    kind = _KINDS[apart[2]]
    together = apart[1] + (_DOWN if kind == "down" else _FUSED)
    target = find(together)
    if target is None:
        return None
    *layer, expert = _NUMBER.findall(name)
    return _Fused(_numbered(target, ".".join(layer)), int(expert), kind)


def _join(target: str, found: Mapping[tuple[int, str], tuple[str, TensorRef]]) -> dict[str, TensorRef]:
    """The tensor of all experts; its parts as they are where one is missing, or of another shape or type."""
    kinds = ("gate", "up") if target.endswith(_FUSED) else ("down",)
    count = 1 + max(expert for expert, _ in found)
    order = [(expert, kind) for expert in range(count) for kind in kinds]
    apart = dict(found.values())
    refs = list(apart.values())
    whole = all(key in found for key in order) and len({(ref.shape, ref.dtype, ref.native) for ref in refs}) == 1
    if not whole or len(refs[0].shape) != 2:
        return apart
    out, width = refs[0].shape
    return {target: Joined(target, (count, len(kinds) * out, width), [found[key][1] for key in order])}


def _cut(name: str, pattern: str, ref: TensorRef, find: _Find) -> Iterator[tuple[str, TensorRef]]:
    """Where the reference keeps the experts apart: the matrices of all of them."""
    together = _TOGETHER.fullmatch(pattern)
    if together is None or len(ref.shape) != 3:
        return
    kinds = ("gate", "up") if together[2] == _FUSED else ("down",)
    targets = [
        next((t for word in _WORDS[kind] if (t := find(f"{together[1]}#.{word}.weight"))), None) for kind in kinds
    ]
    count, rows, width = ref.shape
    if None in targets or rows % len(kinds):
        return
    shape = (rows // len(kinds), width)
    for at in range(count * len(kinds)):
        expert, kind = divmod(at, len(kinds))
        new = _numbered(str(targets[kind]), ".".join((*_NUMBER.findall(name), str(expert))))
        yield new, stretch(ref, new, shape, at * shape[0] * width)
