"""Names that differ only in their numbers, told in one line: ``model.layers.{0..23}.mlp.up_proj.weight``.

Ranges are written as the shell's braces: ``{0..23}``, ``{3..47..4}`` (every fourth), ``{0,2,7}``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Pattern", "Stack", "collapse", "find_stacks"]

# A number that is a whole part of a name: model.layers.12.mlp, block_3.conv, model-00001-of-00004; not conv1.
_NUMBER = re.compile(r"(?:(?<=[./_:-])|^)([0-9]{1,9})(?=[./_:-]|$)")
_ANY_NUMBER = re.compile(r"([0-9]+)")
MOST_LISTED = 6  # numbers or ranges spelled out inside one pair of braces


@dataclass(frozen=True)
class Pattern:
    """A group of names: `text` is the pattern, `names` its members, `span` how many names the braces describe.

    ``span > len(names)`` when some combinations do not exist (an expert that only some layers have).
    """

    text: str
    names: tuple[str, ...]
    span: int

    @property
    def count(self) -> str:
        """How many: ``"24"``, or ``"20 of 24"``."""
        return str(len(self.names)) if len(self.names) == self.span else f"{len(self.names)} of {self.span}"


@dataclass(frozen=True)
class Stack:
    """Numbered parts under one prefix: layers, experts. `tensors` counts the tensors inside."""

    prefix: str
    first: int
    last: int
    count: int
    tensors: int


def collapse(names: Iterable[str], key: Callable[[str], Hashable] = lambda name: None) -> list[Pattern]:
    """Group `names` that differ only in numbers and agree in ``key(name)``, in natural order.

    >>> [p.text for p in collapse(["h.0.w", "h.1.w", "h.2.w", "h.0.b", "h.2.b", "wte"])]
    ['h.{0,2}.b', 'h.{0..2}.w', 'wte']
    """
    groups: dict[Hashable, list[str]] = {}
    pieces: dict[str, list[str]] = {}
    for name in sorted(names, key=natural_key):
        pieces[name] = _NUMBER.split(name)
        groups.setdefault((tuple(pieces[name][::2]), key(name)), []).append(name)
    found = []
    for members in groups.values():
        slots = [list(dict.fromkeys(column)) for column in zip(*(pieces[n][1::2] for n in members), strict=True)]
        words = pieces[members[0]][::2]
        text = words[0] + "".join(_brace(slot) + word for slot, word in zip(slots, words[1:], strict=True))
        found.append(Pattern(text, tuple(members), math.prod(map(len, slots))))
    return sorted(found, key=lambda pattern: natural_key(pattern.names[0]))


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sorts ``layer.2`` before ``layer.10``: a number sorts by its length without leading zeros, then its digits."""
    parts = _ANY_NUMBER.split(name)
    for index in range(1, len(parts), 2):
        parts[index] = parts[index].lstrip("0")
    return [(len(part) if index % 2 else 0, part) for index, part in enumerate(parts)]


def _brace(texts: list[str]) -> str:
    if len(texts) == 1:
        return texts[0]
    texts = sorted(texts, key=int)
    values = list(map(int, texts))
    steps = {after - before for before, after in pairwise(values)}
    if len(steps) == 1 and len(values) > 2:
        step = steps.pop()
        return f"{{{texts[0]}..{texts[-1]}{f'..{step}' if step > 1 else ''}}}"
    runs: list[list[str]] = []
    for text, value in zip(texts, values, strict=True):
        if runs and value - int(runs[-1][-1]) == 1:
            runs[-1].append(text)
        else:
            runs.append([text])
    shown = [f"{run[0]}..{run[-1]}" if len(run) > 2 else ",".join(run) for run in runs]
    if len(shown) > MOST_LISTED:
        shown = [*shown[: MOST_LISTED - 2], "...", shown[-1]]
    return "{" + ",".join(shown) + "}"


def find_stacks(names: Iterable[str]) -> list[Stack]:
    """The numbered stacks in `names`, those with most tensors first; inner ones as ``model.layers.*.mlp.experts``.

    >>> find_stacks(["h.0.w", "h.1.w", "h.2.w"])
    [Stack(prefix='h', first=0, last=2, count=3, tensors=3)]
    """
    numbers: dict[str, set[int]] = {}
    tensors: dict[str, int] = {}
    for name in names:
        pieces = _NUMBER.split(name)
        prefix = ""
        for word, number in zip(pieces[0::2], pieces[1::2], strict=False):
            prefix += word
            stack = prefix.rstrip("./_:-")
            numbers.setdefault(stack, set()).add(int(number))
            tensors[stack] = tensors.get(stack, 0) + 1
            prefix += "*"
    stacks = [
        Stack(prefix, min(found), max(found), len(found), tensors[prefix])
        for prefix, found in numbers.items()
        if len(found) > 1
    ]
    return sorted(stacks, key=lambda stack: -stack.tensors)
