"""`Scheme`: how a pool stores the difference between an expert and its core. Pure functions over arrays, and facts.

A scheme splits the tensors of all experts that differ from the core's into *shared* parts, stored once, and *own*
parts, stored for each expert. `pack.py` calls `encode` with a stretch of one tensor at a time and measures what
`decode` makes of it; `pool.py` calls `decode` for the stretch that is read. Neither knows more of a scheme than its
facts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from eutectic.errors import RecipeError, nearest
from eutectic.weights.dtypes import BY_NAME, DType

if TYPE_CHECKING:
    import numpy as np

__all__ = ["SCHEMES", "Parameter", "Part", "Parts", "Scheme", "Span", "get_scheme", "settle"]

# name: where the scheme lives, imported when it is used
SCHEMES = {
    "tall": "eutectic.pools.masks:TALL",
    "bitdelta": "eutectic.pools.bitdelta:BITDELTA",
    "rmm": "eutectic.pools.basis:RMM",
    "twin": "eutectic.pools.twin:TWIN",
}

Scope = Literal["element", "row", "tensor"]
Along = Literal["element", "bit", "row", "whole"]
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """One stored array of a tensor. `along` says which stretch of it belongs to a stretch of the tensor.

    ``element``: one entry for each element, in order; ``bit``: one bit, little-endian in bytes, the last one padded
    with zeros; ``row``: its first axis is the tensor's rows; ``whole``: all of it, always.
    """

    dtype: DType
    shape: tuple[int, ...]
    along: Along = "element"

    @property
    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self.numel * self.dtype.size

    def stretch(self, span: Span) -> tuple[int, int]:
        """The entries that belong to a stretch of the tensor."""
        if self.along == "whole":
            return 0, self.numel
        if self.along == "row":
            wide = math.prod(self.shape[1:])
            return span.start // span.row * wide, -(-span.stop // span.row) * wide
        return (span.start // 8, -(-span.stop // 8)) if self.along == "bit" else (span.start, span.stop)

    def widened(self, raw: np.ndarray) -> np.ndarray:
        """Its entries from their bytes: float64 of float64, float32 of other floats, else as they are."""
        import numpy as np

        if not self.dtype.floating or self.dtype.name in ("F64", "F32"):
            return raw.view(np.float64 if self.dtype.name == "F64" else self.dtype.numpy)
        from eutectic.ops.element_kernels import widened

        values = np.empty(raw.size // self.dtype.size, dtype=np.float32)
        widened(raw, self.dtype.code, values)
        return values

    @classmethod
    def bits(cls, shape: tuple[int, ...]) -> Part:
        """One bit for each element of a tensor."""
        return cls(BY_NAME["U8"], (-(-math.prod(shape) // 8),), "bit")


Parts = Mapping[str, Part]


@dataclass(frozen=True)
class Span:
    """Elements start .. stop of a tensor of `shape`, flat: from a multiple of 8 on, by the scope whole rows."""

    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def numel(self) -> int:
        """Elements of the stretch."""
        return self.stop - self.start

    @property
    def row(self) -> int:
        """Elements of a row: all axes but the first."""
        return max(1, math.prod(self.shape[1:]))


@dataclass(frozen=True)
class Parameter:
    """One setting of a scheme: its default, what it is; `of_expert` where each expert may have a value of its own."""

    default: float | int | str
    summary: str
    choices: tuple[str, ...] = ()
    least: float = -math.inf
    most: float = math.inf
    of_expert: bool = False

    def check(self, name: str, value: Any) -> Any:
        """The value, of the default's kind.

        Raises:
            RecipeError: it is of another kind, or out of range.
        """
        if isinstance(self.default, str):
            if value not in self.choices:
                hint = nearest(str(value), self.choices)
                raise RecipeError(f"{name}: {value!r} is none of {', '.join(self.choices)}{hint}")
            return value
        whole = isinstance(self.default, int)
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not fits or not math.isfinite(value) or (whole and value != int(value)):
            raise RecipeError(f"{name}: {value!r} is not a {'whole ' if whole else ''}number")
        if not self.least <= value <= self.most:
            raise RecipeError(f"{name}: {value!r} lies outside {self.least:g} to {self.most:g}")
        return int(value) if whole else float(value)


@dataclass(frozen=True)
class Scheme:
    """A way to store experts.

    Args:
        name, summary, reference: what `eutectic pool` says of it; reference is the paper.
        parameters: its settings, by name.
        parts: ``parts(shape, dtype, count, settings) -> (shared, own)``: what is stored for a tensor that `count`
            experts change, by suffix, known before anything is read. dtype is the core's.
        encode: ``encode(span, core, experts, settings, totals) -> (shared, [own of each expert])``. core and experts
            are flat arrays, float32 (float64 of float64 tensors); settings and totals are one for each expert. Every
            part is an array of exactly the entries that belong to `span`, in any float type where the part is float
            (the writer rounds it once), else of the part's own type.
        decode: ``decode(span, core, shared, own, settings) -> flat array`` of the expert's values, unrounded. shared
            and own hold, flat, the entries that belong to `span`. It must not depend on how a tensor is cut: the same
            bits for every stretch, so no matrix product whose order of summation follows the shape of the stretch.
        encodes, decodes: what a stretch must hold: any multiple of 8 elements, whole rows (8 at a time), or the tensor.
        total: ``total(span, core, expert, settings) -> array`` summed over a tensor before it is encoded, where
            `encode` must know something of the whole tensor and yet works on stretches.
        extend: ``extend(span, core, shared, expert, settings, total) -> own`` of one more expert, given what is stored.
            Where there is none, the experts depend on one another: adding or removing one recomputes all of them.
        core: ``core(base, experts, settings) -> values`` of a core that is not the base, element by element from flat
            arrays of all sources; the pool then stores it, and needs no base.
        reads: what `encode` and `extend` get of core and experts: ``values``, or ``tensors``: the handles, for a scheme
            that knows more of an adapter than its values.
        choose: ``choose(core, experts, names, settings) -> {tensor: settings}`` settings that differ from tensor to
            tensor, chosen by looking at the experts; core and experts are checkpoints.
    """

    name: str
    summary: str
    reference: str
    parameters: Mapping[str, Parameter]
    parts: Callable[[tuple[int, ...], DType, int, Settings], tuple[Parts, Parts]]
    encode: Callable[..., tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]]
    decode: Callable[..., np.ndarray]
    encodes: Scope = "element"
    decodes: Scope = "element"
    reads: Literal["values", "tensors"] = "values"
    total: Callable[..., np.ndarray] | None = None
    extend: Callable[..., dict[str, np.ndarray]] | None = None
    core: Callable[..., np.ndarray] | None = None
    choose: Callable[..., Mapping[str, Settings]] | None = None


def get_scheme(name: str) -> Scheme:
    """The scheme of a name.

    Raises:
        RecipeError: there is none.
    """
    if name not in SCHEMES:
        hint = nearest(name, SCHEMES) or f"; the schemes are {', '.join(SCHEMES)}"
        raise RecipeError(f"no scheme of pools is called {name!r}{hint}")
    module, _, attribute = SCHEMES[name].partition(":")
    return getattr(import_module(module), attribute)


def settle(scheme: Scheme, given: Settings, experts: Sequence[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """All settings of a scheme, those not given by default; and those of each expert, where they are its own.

    A setting of experts may be one value, or one for each of them, in order.

    Raises:
        RecipeError: a setting that the scheme has not, or a value that it refuses.
    """
    unknown = [name for name in given if name not in scheme.parameters]
    if unknown:
        hint = nearest(unknown[0], scheme.parameters)
        known = ", ".join(scheme.parameters) or "none"
        raise RecipeError(f"scheme {scheme.name} has no setting {unknown[0]!r}{hint or f'; it has: {known}'}")
    common: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {expert: {} for expert in experts}
    for name, parameter in scheme.parameters.items():
        value = given.get(name, parameter.default)
        if not parameter.of_expert:
            common[name] = parameter.check(name, value)
            continue
        values = list(value) if isinstance(value, (list, tuple)) else [value] * len(experts)
        if len(values) == 1:
            values *= len(experts)
        if len(values) != len(experts):
            raise RecipeError(f"{name}: {len(values)} values for {len(experts)} experts; give one, or one for each")
        for expert, single in zip(experts, values, strict=True):
            own[expert][name] = parameter.check(name, single)
    return common, own
