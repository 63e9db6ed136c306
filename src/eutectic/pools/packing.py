"""A pool about to be made: what takes part, what differs, how each tensor is kept, and how many bytes that is.

Nothing is written here; `pack.py` writes. What is known before: bytes to the last one, and the error from a sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from eutectic.errors import RecipeError, SourceError
from eutectic.ops.element_kernels import squares
from eutectic.pools.elements import read_finite, read_values, rounded
from eutectic.pools.folder import PartFile
from eutectic.pools.pool import cut
from eutectic.pools.scheme import Part, Parts, Scheme, Settings, Span, get_scheme, settle
from eutectic.weights.checkpoint import Checkpoint
from eutectic.weights.digest import hash_bytes
from eutectic.weights.dtypes import DType
from eutectic.weights.statistics_folder import identity_of
from eutectic.weights.tensor_ref import StoredTensor, TensorRef

__all__ = [
    "Encoded", "Estimate", "Packing", "Source", "differ", "encode_span", "estimate", "measured_squares", "prepare",
    "spans_of", "stored_values",
]  # fmt: skip

SAMPLE = 1 << 20  # elements of which the error is foretold
LARGE = 1 << 23  # elements of a tensor that is not among them
COMPARED = 1 << 20  # bytes compared at a time


@dataclass(frozen=True)
class Source:
    """A model that takes part: how it was named, what to call it in public, its licence, and its tensors."""

    reference: str
    name: str
    licence: str | None
    checkpoint: Checkpoint

    @cached_property
    def identity(self) -> str:
        """Tells its tensors from those of another model."""
        return identity_of(self.checkpoint)


@dataclass(frozen=True)
class Packing:
    """Everything that decides a pool's bytes. `changed` are the tensors that some expert changes, in the base's order.

    `settings` all have in common, `own` are of each expert, `tensors` of single tensors. `absent` are tensors of other
    types than floats that an expert has otherwise than the base, and that its rebuilt one takes from the base.
    """

    scheme: Scheme
    base: Source
    experts: Mapping[str, Source]
    settings: Mapping[str, Any]
    own: Mapping[str, Mapping[str, Any]]
    changed: tuple[str, ...]
    tensors: Mapping[str, Settings] = field(default_factory=dict)
    absent: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def settings_of(self, tensor: str) -> list[dict[str, Any]]:
        """The settings of a tensor, for each expert."""
        common = {**self.settings, **self.tensors.get(tensor, {})}
        return [{**common, **self.own[name]} for name in self.experts]

    def parts(self, tensor: str) -> tuple[Parts, Parts]:
        """What is stored of a tensor: shared, and of each expert."""
        ref = self.base.checkpoint[tensor]
        return self.scheme.parts(ref.shape, ref.dtype, len(self.experts), self.settings_of(tensor)[0])

    @cached_property
    def shared(self) -> dict[str, Part]:
        """The parts of the shared file."""
        return {f"{name}#{suffix}": part for name in self.changed for suffix, part in self.parts(name)[0].items()}

    @cached_property
    def each(self) -> dict[str, Part]:
        """The parts of every expert's file."""
        return {f"{name}#{suffix}": part for name in self.changed for suffix, part in self.parts(name)[1].items()}

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes by file, headers included: core, shared, and those of all experts."""
        core = {name: Part(ref.dtype, ref.shape) for name, ref in self.base.checkpoint.items()}
        return {
            "core": PartFile.size(core),
            "shared": PartFile.size(self.shared) if self.shared else 0,
            "experts": len(self.experts) * (PartFile.size(self.each) if self.each else 0),
        }

    @property
    def raw(self) -> int:
        """Bytes of the base and the experts as they are."""
        return self.base.checkpoint.nbytes + sum(source.checkpoint.nbytes for source in self.experts.values())


@dataclass(frozen=True)
class Encoded:
    """A stretch of a tensor: its parts, and of each expert the squared error and the squared norm of the delta."""

    shared: Mapping[str, np.ndarray]
    own: Sequence[Mapping[str, np.ndarray]]
    squares: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Estimate:
    """What a scheme would cost: bytes, their share of those of all models, and the relative error from a sample."""

    scheme: str
    nbytes: int
    share: float
    error: float


def prepare(base: Source, experts: Mapping[str, Source], scheme: str, settings: Mapping[str, Any]) -> Packing:
    """Check that the models fit, find what differs, and settle how each tensor is kept.

    Raises:
        RecipeError: no expert, or settings that the scheme refuses.
        SourceError: a tensor is missing, of another shape, or not of the base.
    """
    chosen = get_scheme(scheme)
    if not experts:
        raise RecipeError("a pool needs an expert at least")
    common, own = settle(chosen, settings, list(experts))
    changed, absent = _changed(base, experts)
    packing = Packing(chosen, base, experts, common, own, changed, absent=absent)
    return _choose(packing)


def _choose(packing: Packing) -> Packing:
    if packing.scheme.choose is None:
        return packing
    found = {name: source.checkpoint for name, source in packing.experts.items()}
    tensors = packing.scheme.choose(packing.base.checkpoint, found, packing.changed, packing.settings)
    return Packing(
        packing.scheme, packing.base, packing.experts, packing.settings, packing.own, packing.changed, tensors,
        packing.absent,
    )  # fmt: skip


def _changed(base: Source, experts: Mapping[str, Source]) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """The tensors of floats that some expert changes; of each expert those of other types that it has otherwise."""
    for label, source in experts.items():
        _check_fit(base, label, source)
    changed: list[str] = []
    absent: dict[str, list[str]] = {label: [] for label in experts}
    for name, ref in base.checkpoint.items():
        different = [label for label, source in experts.items() if differ(ref, source.checkpoint[name])]
        if different and ref.dtype.floating:
            changed.append(name)
        else:
            for label in different:
                absent[label].append(name)
    return tuple(changed), {label: tuple(names) for label, names in absent.items() if names}


def _check_fit(base: Source, label: str, source: Source) -> None:
    own, other = base.checkpoint, source.checkpoint
    missing = [name for name in own if name not in other]
    more = [name for name in other if name not in own]
    if missing or more:
        what, name = ("lacks", missing[0]) if missing else ("has", more[0])
        where = "which the base has" if missing else "which the base lacks"
        raise SourceError(f"expert {label} ({source.reference}) {what} the tensor {name!r}, {where}")
    for name, ref in own.items():
        if ref.shape != other[name].shape:
            raise SourceError(
                f"expert {label} ({source.reference}): {name!r} is {list(other[name].shape)}, in the base "
                f"{list(ref.shape)}; a pool keeps fine-tunes of one base"
            )
        if ref.dtype.floating != other[name].dtype.floating:
            raise SourceError(f"expert {label}: {name!r} is {other[name].dtype}, in the base {ref.dtype}")


def differ(one: TensorRef, other: TensorRef) -> bool:
    """Whether two tensors of one shape hold other values; reading stops at the first difference."""
    if one is other:
        return False
    if _place(one) is not None and _place(one) == _place(other):
        return False
    if one.dtype != other.dtype:
        return any(
            not np.array_equal(read_values(one, at, to), read_values(other, at, to))
            for at, to in _pieces(one.numel, COMPARED // 4)
        )
    return any(one.read(at, to) != other.read(at, to) for at, to in _pieces(one.numel, COMPARED // one.dtype.size))


def _place(ref: TensorRef) -> tuple[Any, int] | None:
    return (ref.file.path, ref.offset) if isinstance(ref, StoredTensor) else None


def _pieces(numel: int, step: int) -> Iterator[tuple[int, int]]:
    for at in range(0, numel, step):
        yield at, min(at + step, numel)


def encode_span(
    packing: Packing, tensor: str, span: Span, core: TensorRef | np.ndarray, totals: Sequence[Any] | None
) -> Encoded:
    """Encode a stretch, and measure what decoding it gives. `core` is the core's tensor, or its values of the span."""
    scheme, settings, dtype = packing.scheme, packing.settings_of(tensor), packing.base.checkpoint[tensor].dtype
    refs = [source.checkpoint[tensor] for source in packing.experts.values()]
    experts = [
        read_finite(ref, span.start, span.stop, f"expert {label}")
        for label, ref in zip(packing.experts, refs, strict=True)
    ]
    base = read_finite(packing.base.checkpoint[tensor], span.start, span.stop, "the base")
    wide = np.float64 if dtype.name == "F64" else np.float32
    experts = [values.astype(wide, copy=False) for values in experts]
    if isinstance(core, np.ndarray):
        here = core
    else:
        here = base if scheme.core is None else read_values(core, span.start, span.stop)
    if scheme.reads == "tensors":
        shared, own = scheme.encode(span, core, refs, settings, totals)
    else:
        shared, own = scheme.encode(span, here, experts, settings, totals)
    shared_parts, own_parts = packing.parts(tensor)
    kept = {key: stored_values(shared[key], part) for key, part in shared_parts.items()}
    found, measured = [], []
    for expert, arrays, chosen in zip(experts, own, settings, strict=True):
        mine = {key: stored_values(arrays[key], part) for key, part in own_parts.items()}
        near = scheme.decode(span, here, {k: v for k, (_, v) in kept.items()},
                             {k: v for k, (_, v) in mine.items()}, chosen)  # fmt: skip
        measured.append(measured_squares(base, expert, near, dtype))
        found.append({key: raw for key, (raw, _) in mine.items()})
    return Encoded({key: raw for key, (raw, _) in kept.items()}, found, measured)


def measured_squares(base: np.ndarray, expert: np.ndarray, near: np.ndarray, dtype: DType) -> tuple[float, float]:
    """The squared error of what is rebuilt, as it is rounded, and the squared norm of the change."""
    if dtype.size == 1:  # fp8: rounded here, as the kernel knows halves only
        near = Part(dtype, near.shape).widened(rounded(near, dtype))
    if dtype.name == "F32":
        near = near.astype(np.float32, copy=False)
    return squares(base, expert, near, dtype.code)


def stored_values(values: np.ndarray, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of a part's entries as they are stored, and the numbers that reading them gives."""
    raw = rounded(np.ascontiguousarray(values).reshape(-1), part.dtype)
    return raw, part.widened(raw)


def estimate(base: Source, experts: Mapping[str, Source], scheme: str, settings: Mapping[str, Any]) -> Estimate:
    """What a scheme would cost: its bytes, and its error on a sample of the tensors.

    Bytes are exact; where how a tensor is kept depends on its values, they are those of the sample, scaled up.

    Raises:
        RecipeError, SourceError: as `prepare`.
    """
    chosen = get_scheme(scheme)
    common, own = settle(chosen, settings, list(experts))
    changed, absent = _changed(base, experts)
    whole = Packing(chosen, base, experts, common, own, changed, absent=absent)
    picked = _choose(Packing(chosen, base, experts, common, own, _sampled(whole), absent=absent))
    pairs = [pair for name in picked.changed for pair in _sampled_squares(picked, name)]
    missed, change = math.fsum(one for one, _ in pairs), math.fsum(one for _, one in pairs)
    sizes = (whole if chosen.choose is None else picked).nbytes
    if chosen.choose is not None:
        elements = [sum(base.checkpoint[name].numel for name in part.changed) for part in (whole, picked)]
        scaled = {key: round(sizes[key] * elements[0] / max(1, elements[1])) for key in ("shared", "experts")}
        sizes = {**sizes, **scaled}
    nbytes = sum(sizes.values())
    return Estimate(scheme, nbytes, nbytes / whole.raw, math.sqrt(missed / change) if change else 0.0)


def _sampled(packing: Packing) -> tuple[str, ...]:
    """Some tensors, by a digest of their names, until there are enough elements; very large ones are left out."""
    sizes = {name: packing.base.checkpoint[name].numel for name in packing.changed}
    small = [name for name in sizes if sizes[name] <= LARGE] or sorted(sizes, key=lambda name: sizes[name])[:1]
    names, count = set[str](), 0
    for name in sorted(small, key=lambda name: hash_bytes(name.encode())):
        names.add(name)
        count += sizes[name]
        if count >= SAMPLE:
            break
    return tuple(name for name in packing.changed if name in names)


def _sampled_squares(packing: Packing, tensor: str) -> Iterator[tuple[float, float]]:
    ref = packing.base.checkpoint[tensor]
    span = Span(ref.shape, 0, ref.numel)
    if not span.numel:
        return
    core: TensorRef | np.ndarray = ref
    totals = None
    values = [read_values(s.checkpoint[tensor], 0, ref.numel) for s in packing.experts.values()]
    if packing.scheme.core is not None:
        made = packing.scheme.core(read_values(ref, 0, ref.numel), values, packing.settings_of(tensor)[0])
        core = Part(ref.dtype, ref.shape).widened(rounded(made, ref.dtype))
    if packing.scheme.total is not None:
        near = core if isinstance(core, np.ndarray) else read_values(core, 0, ref.numel)
        each = zip(values, packing.settings_of(tensor), strict=True)
        totals = [packing.scheme.total(span, near, expert, own) for expert, own in each]
    yield from encode_span(packing, tensor, span, core, totals).squares


def spans_of(packing: Packing, tensor: str) -> list[Span]:
    """The stretches that a tensor is encoded in."""
    return cut(packing.base.checkpoint[tensor].shape, packing.scheme.encodes)
