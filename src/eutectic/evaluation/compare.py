"""What differs between two checkpoints: names, shapes, types, configuration, and (streamed) values.

Tensors are read side by side in pieces of 1 MiB, so memory stays bounded whatever the model's size. A pair of
tensors of one type is first compared byte by byte; only a pair that differs is decoded and measured, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eutectic.evaluation.distance import Distance, comparable, measure
from eutectic.weights.checkpoint import Checkpoint
from eutectic.weights.layers import layer_of
from eutectic.weights.tensor_ref import TensorRef

__all__ = ["ABSENT", "Comparison", "ConfigDifference", "LayerDistance", "Pair", "compare", "layer_distances"]

PIECE = 1 << 20  # bytes read of each tensor at a time
DEEPEST = 8  # levels of config.json that are told apart; below, values are compared whole


class _Absent:
    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()  # stands for a key that one side does not have


@dataclass(frozen=True)
class Pair:
    """The tensors of one name in A and B; `distance` is empty where their values were not measured."""

    a: TensorRef
    b: TensorRef
    distance: Distance = field(default_factory=Distance)

    @property
    def name(self) -> str:
        return self.a.name


@dataclass(frozen=True)
class ConfigDifference:
    """A key of config.json (dotted where nested) with its two values; `ABSENT` where a side lacks it."""

    key: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`. `identical` tells whether nothing at all was found.

    `common` counts the names in both. Of these, `mismatched` holds the pairs of another shape or another type,
    `changed` those whose values differ (worst first); `equal` counts those whose values agree (a pair may be
    mismatched in type and yet equal in values), `incomparable` names those of types without common values.
    `config_in` says which sides have a config.json; it is compared where both have one.
    """

    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()
    mismatched: tuple[Pair, ...] = ()
    config: tuple[ConfigDifference, ...] = ()
    config_in: tuple[bool, bool] = (True, True)
    common: int = 0
    values: bool = True
    equal: int = 0
    changed: tuple[Pair, ...] = ()
    incomparable: tuple[str, ...] = ()

    @property
    def identical(self) -> bool:
        """True if names, shapes, types, configuration and (where asked for) values all agree."""
        return not (self.only_a or self.only_b or self.mismatched or self.config or self.changed)

    @property
    def overall(self) -> Distance:
        """The distance over all elements of the tensors in `changed` (not of those that are equal)."""
        return sum((pair.distance for pair in self.changed), Distance())


@dataclass(frozen=True)
class LayerDistance:
    """A layer of A, or a tensor outside of layers: how many of its tensors were compared, how many differ, how far."""

    name: str
    tensors: int
    different: int
    distance: Distance


def layer_distances(a: Checkpoint, b: Checkpoint, found: Comparison) -> list[LayerDistance]:
    """The distances of `found`, summed by layer, layers in their order; of equal tensors only the count is told."""
    changed = {pair.name: pair.distance for pair in found.changed}
    left_out = set(found.incomparable)
    order: dict[str, int] = {}
    layers: dict[tuple[int, int, str], list[str]] = {}
    for name in a:
        if name in b and a[name].shape == b[name].shape and name not in left_out:
            layer = layer_of(name)
            label = f"{layer.stack}{layer.number}" if layer else name
            first = order.setdefault(layer.stack if layer else name, len(order))
            layers.setdefault((first, layer.number if layer else 0, label), []).append(name)
    return [
        LayerDistance(
            label,
            len(names),
            sum(name in changed for name in names),
            sum((changed[name] for name in names if name in changed), Distance()),
        )
        for (_, _, label), names in sorted(layers.items())
    ]


def compare(
    a: Checkpoint, b: Checkpoint, *, values: bool = True, report: Callable[[int], None] | None = None
) -> Comparison:
    """Compare checkpoint `b` with checkpoint `a`.

    Args:
        values: also read and compare the tensors' values; otherwise headers alone.
        report: called with the number of A's bytes done since the last call (for a progress bar).

    >>> import numpy, tempfile
    >>> from eutectic.weights.checkpoint import open_checkpoint
    >>> from eutectic.weights.safetensors import write_safetensors
    >>> folder = tempfile.mkdtemp()
    >>> write_safetensors(f"{folder}/a.safetensors", {"w": numpy.array([3.0, 4.0])})
    >>> write_safetensors(f"{folder}/b.safetensors", {"w": numpy.array([3.0, 4.5])})
    >>> found = compare(open_checkpoint(f"{folder}/a.safetensors"), open_checkpoint(f"{folder}/b.safetensors"))
    >>> found.identical, found.changed[0].distance.relative_l2
    (False, 0.1)
    """
    common = [name for name in a if name in b]
    equal, changed, incomparable = 0, [], []
    if values:
        buffers = np.empty((2, PIECE), dtype=np.uint8)
        for name in common:
            if a[name].shape != b[name].shape:
                _skip(a[name], report)
            elif not comparable(a[name].dtype.name, b[name].dtype.name):
                incomparable.append(name)
                _skip(a[name], report)
            elif (found := _compare_values(a[name], b[name], buffers, report)) is None:
                equal += 1
            else:
                changed.append(Pair(a[name], b[name], found))
    return Comparison(
        only_a=tuple(name for name in a if name not in b),
        only_b=tuple(name for name in b if name not in a),
        mismatched=tuple(Pair(a[n], b[n]) for n in common if a[n].shape != b[n].shape or a[n].dtype != b[n].dtype),
        config=tuple(_compare_configs(a.config, b.config)) if a.config and b.config else (),
        config_in=(bool(a.config), bool(b.config)),
        common=len(common),
        values=values,
        equal=equal,
        changed=tuple(sorted(changed, key=lambda pair: -pair.distance.severity)),
        incomparable=tuple(incomparable),
    )


# ---------------------------------------------------------------- values


def _skip(tensor: TensorRef, report: Callable[[int], None] | None) -> None:
    if report:
        report(tensor.nbytes)


def _compare_values(
    a: TensorRef, b: TensorRef, buffers: np.ndarray, report: Callable[[int], None] | None
) -> Distance | None:
    """None if the values are equal, else how much they differ."""
    done = 0
    if a.dtype == b.dtype:
        for start, raw_a, raw_b in _pieces(a, b, buffers):
            if not np.array_equal(raw_a, raw_b):
                break
            done = start * a.dtype.size + len(raw_a)
            if report:
                report(len(raw_a))
        else:
            return None
    total = Distance()
    for start, raw_a, raw_b in _pieces(a, b, buffers):
        total += measure(raw_a, raw_b, a.dtype.name, b.dtype.name)
        if report and start * a.dtype.size >= done:
            report(len(raw_a))
    return total if total.different else None


def _pieces(a: TensorRef, b: TensorRef, buffers: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Pairs of raw pieces (uint8 views of `buffers`, overwritten by the next pair) with their first element."""
    step = PIECE // max(a.dtype.size, b.dtype.size)
    for start in range(0, a.numel, step):
        stop = min(start + step, a.numel)
        raw_a = buffers[0, : (stop - start) * a.dtype.size]
        raw_b = buffers[1, : (stop - start) * b.dtype.size]
        a.read_into(raw_a.data, start, stop)
        b.read_into(raw_b.data, start, stop)
        yield start, raw_a, raw_b


# ---------------------------------------------------------------- configuration


def _compare_configs(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[ConfigDifference]:
    flat_a, flat_b = dict(_flatten(a)), dict(_flatten(b))
    for key in sorted(flat_a.keys() | flat_b.keys()):
        left, right = flat_a.get(key, ABSENT), flat_b.get(key, ABSENT)
        if not _same(left, right):
            yield ConfigDifference(key, left, right)


def _flatten(config: Mapping[str, Any], prefix: str = "", depth: int = 1) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict) and value and depth < DEEPEST:
            yield from _flatten(value, f"{prefix}{key}.", depth + 1)
        else:
            yield f"{prefix}{key}", value


def _same(a: Any, b: Any) -> bool:
    """Equal as JSON means it: 1 and 1.0 are, 1 and true are not, NaN and NaN are."""
    return (a == b and isinstance(a, bool) == isinstance(b, bool)) or repr(a) == repr(b)
