"""`Method`: a pure function over tensors, with declared facts. Everything else is derived from the two.

A method is written once, in torch, as ``f(tensors, *, base, <parameters>, draws) -> tensor``; the decorator
`merge_method` reads its parameters from the signature. The engine reads the facts to choose tiles, passes and
threads; the laws in the tests read them to know what must hold. `lower` names the fast twin, if there is one.
"""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from eutectic.errors import MethodError, nearest
from eutectic.ops.random import Draws

if TYPE_CHECKING:
    import torch

    from eutectic.ops.program import Program

__all__ = ["Method", "Parameter", "PerSource", "Range", "Setting", "each", "merge_method"]

T = TypeVar("T")
_PER_SOURCE = "per source"
PerSource = Annotated[Sequence[T], _PER_SOURCE]
"""A parameter with one value per source: ``weight: PerSource[float]``. A scalar means the same for all."""


def each(value: T) -> Sequence[T]:
    """The default of a `PerSource` parameter: this value for each source (a cast, for type checkers)."""
    return typing.cast("Sequence[T]", value)


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both included: ``density: Annotated[float, Range(0, 1)]``."""

    low: float = -math.inf
    high: float = math.inf

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method, as its signature declares it. `name` is the recipe's (``lambda``)."""

    name: str
    python: str
    types: tuple[type, ...]
    choices: tuple[Any, ...]
    range: Range
    per_source: bool
    default: Any
    meaning: str

    @property
    def required(self) -> bool:
        """Whether a recipe must give it."""
        return self.default is inspect.Parameter.empty

    def fault(self, value: Any) -> str:
        """What is wrong with a value, or an empty string."""
        if value in self.choices and any(value is c or type(value) is type(c) for c in self.choices):
            return ""
        if bool in self.types and isinstance(value, bool):
            return ""
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if float in self.types and number:
            if not math.isfinite(value):
                return f"must be finite, not {value}"
            inside = self.range.low <= value <= self.range.high
            return "" if inside else f"must lie in {self.range}, not {value:g}"
        if int in self.types and isinstance(value, int) and not isinstance(value, bool):
            inside = self.range.low <= value <= self.range.high
            return "" if inside else f"must lie in {self.range}, not {value}"
        return f"must be {self.expected}, not {value!r:.60}"

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        words = {bool: "true or false", float: "a number", int: "a whole number", str: "text"}
        parts = [words[t] for t in self.types if t in words] + [repr(c) for c in self.choices]
        return " or ".join(parts)


@dataclass(frozen=True)
class Setting:
    """What a fast twin is made for: parameters (per-source ones as lists), sources, the tensor's identity and shape.

    `anchored` says whether row 0 is a base (always so where the method requires one).
    """

    parameters: Mapping[str, Any]
    sources: int
    tensor: str
    seed: int
    shape: tuple[int, ...] = ()
    anchored: bool = False

    @property
    def row(self) -> int:
        """Elements of one row: all that share a first index; the whole tensor if it has fewer than two axes."""
        return max(1, math.prod(self.shape[1:] if len(self.shape) > 1 else self.shape))


@dataclass(frozen=True)
class Method:
    """A named merge method. Call it on plain tensors: ``ties([a, b], base=c, density=0.2)``.

    Facts:
        space: "weight" (combines tensors) or "delta" (combines differences to the base).
        scope: how much of a tensor one output element depends on: "element", "row", "tensor" or "model".
        base: "required" (the point that deltas start from), "optional" (deltas where one is given, else the tensors
            themselves), "first" (counts as the first source) or "unused" (only lends its config and tokenizer).
        sources: fewest and most sources (None: any number), the base not counted unless base is "first".
        symmetric: the order of sources does not matter. stochastic: depends on the seed.
        idempotent: merging copies of one tensor (and base) gives that tensor back, at default parameters.
        sparsifies: entries of a delta may be left out; tensors where none may (log-space ones) are merged by
            `methods/dense.py` instead. Needs base "required".
        differentiable: gradients are finite everywhere (those of singular directions are not, where values are equal).
        vocabulary: the method that merges tensors with a row per token (embeddings, output heads) in place of this
            one; it gets those of this one's parameters that it has.
        needs: the kind of statistics (see `eutectic stats collect`) that it has of each source: the function gets them
            as `statistics`, one tensor per source, or None for all where there are none of that tensor. Needs scope
            "tensor", and no fast twin.
        ignored: parameter names accepted for compatibility, without effect.
        paper: defaults that change under ``semantics: paper``. departures: where mergekit and the paper differ.
        lower: the fast twin. work_bytes: what the torch function allocates besides float32 inputs, the result
            included; without it, two float32 copies of every input and result are reckoned with.
    """

    name: str
    function: Callable[..., torch.Tensor]
    summary: str
    reference: str
    parameters: Mapping[str, Parameter]
    space: Literal["weight", "delta"] = "weight"
    scope: Literal["element", "row", "tensor", "model"] = "element"
    base: Literal["required", "optional", "first", "unused"] = "unused"
    sources: tuple[int, int | None] = (1, None)
    symmetric: bool = True
    stochastic: bool = False
    idempotent: bool = True
    sparsifies: bool = False
    differentiable: bool = True
    vocabulary: Method | None = None
    needs: str | None = None
    ignored: tuple[str, ...] = ()
    paper: Mapping[str, Any] = field(default_factory=dict)
    departures: tuple[str, ...] = ()
    lower: Callable[[Setting], Program | None] | None = None
    work_bytes: Callable[[Setting], int] | None = None

    def __post_init__(self) -> None:
        for name in ("__doc__", "__name__", "__module__"):  # so that help() and doctest see the function
            object.__setattr__(self, name, getattr(self.function, name, None))
        if self.sparsifies and self.base != "required":
            raise MethodError(f'{self.name}: sparsifies leaves entries of deltas out, so it needs base="required"')
        if self.needs is not None and (self.scope != "tensor" or self.lower is not None):
            raise MethodError(f'{self.name}: a method that needs statistics has scope="tensor" and no fast twin')
        object.__setattr__(self, "__wrapped__", self.function)

    def __call__(
        self,
        tensors: Sequence[torch.Tensor],
        *,
        base: torch.Tensor | None = None,
        draws: Draws | None = None,
        statistics: Sequence[torch.Tensor | None] | None = None,
        **parameters: Any,
    ) -> torch.Tensor:
        """Merge tensors of one shape: float32 (or wider) arithmetic, the first tensor's dtype, autograd-safe.

        `statistics` has one tensor for each source, or None for all, where the method `needs` some.
        """
        tensors = list(tensors)
        if self.base == "first" and base is not None:
            tensors, base = [base, *tensors], None
        self._check_tensors(tensors, base)
        self.check_statistics(len(tensors), statistics)
        by_recipe_name = {self._recipe_name(name): value for name, value in parameters.items()}
        settled, faults = self.settle(by_recipe_name, len(tensors))
        if faults:
            raise MethodError(f"{self.name} refuses its parameters", [f"{n}: {why}" for n, why in faults])
        from eutectic.ops.rounding import round_once

        return round_once(self.apply(tensors, base, settled, draws or Draws(), statistics), tensors[0].dtype)

    def apply(
        self,
        tensors: Sequence[torch.Tensor],
        base: torch.Tensor | None,
        settled: Mapping[str, Any],
        draws: Draws,
        statistics: Sequence[torch.Tensor | None] | None = None,
    ) -> torch.Tensor:
        """The function itself on settled parameters: at least float32 in, the same out, nothing checked."""
        import torch

        def wide(tensor: torch.Tensor) -> torch.Tensor:
            return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)

        keywords = {self.parameters[name].python: value for name, value in settled.items()}
        if self.base in ("required", "optional"):
            keywords["base"] = None if base is None else wide(base)
        if self.stochastic:
            keywords["draws"] = draws
        if self.needs is not None:
            keywords["statistics"] = [None if found is None else wide(found) for found in statistics or ()]
        return self.function([wide(tensor) for tensor in tensors], **keywords)

    def settle(
        self, given: Mapping[str, Any], sources: int, semantics: str = "mergekit"
    ) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """Parameters as the function takes them (defaults filled in, per-source ones as lists), and all faults."""
        settled: dict[str, Any] = {}
        faults: list[tuple[str, str]] = []
        for name in given:
            faults += self.unknown(name)
        for name, parameter in self.parameters.items():
            default = self.paper.get(name, parameter.default) if semantics == "paper" else parameter.default
            value = given.get(name, default)
            if value is inspect.Parameter.empty:
                faults.append(
                    (name, f"{self.name} needs the parameter {name}: {parameter.meaning or parameter.expected}")
                )
                continue
            if not parameter.per_source:
                values = [value]
            elif isinstance(value, (list, tuple)):
                values = list(value)
                if len(values) != sources:
                    faults.append((name, f"has {len(values)} values for {sources} sources"))
                    continue
            else:
                values = [value] * sources
            found = [why for why in map(parameter.fault, values) if why]
            faults += [(name, why) for why in dict.fromkeys(found)]
            settled[name] = values if parameter.per_source else value
        return settled, faults

    def by_token(self, settled: Mapping[str, Any], sources: int) -> tuple[Method, dict[str, Any]]:
        """What merges tensors with a row per token, and its parameters: those of this method that it has."""
        if self.vocabulary is None:
            return self, dict(settled)
        shared = {name: value for name, value in settled.items() if name in self.vocabulary.parameters}
        return self.vocabulary, self.vocabulary.settle(shared, sources)[0]

    def unknown(self, name: str) -> list[tuple[str, str]]:
        """The fault of a parameter that the method neither takes nor ignores, or an empty list."""
        known = [*self.parameters, *self.ignored]
        if name in known:
            return []
        takes = f"; it takes {', '.join(known)}" if known else "; it takes none"
        return [(name, f"{self.name} has no parameter {name!r}{nearest(name, known) or takes}")]

    def _recipe_name(self, python: str) -> str:
        return next((p.name for p in self.parameters.values() if p.python == python), python)

    def _check_tensors(self, tensors: Sequence[torch.Tensor], base: torch.Tensor | None) -> None:
        fewest, most = self.sources
        if len(tensors) < fewest or (most is not None and len(tensors) > most):
            raise MethodError(f"{self.name} merges {self.count_in_words()}, not {len(tensors)}")
        if self.base == "required" and base is None:
            raise MethodError(f"{self.name} needs a base: {self.name}(tensors, base=...)")
        shapes = {tuple(tensor.shape) for tensor in ([*tensors, base] if base is not None else tensors)}
        if len(shapes) > 1:
            raise MethodError(f"{self.name} needs tensors of one shape, not {sorted(shapes)}")

    def check_statistics(self, sources: int, statistics: Sequence[Any] | None) -> None:
        """Refuse a call without the statistics that the method needs, or with some that it does not."""
        if self.needs is None:
            if statistics is not None:
                raise MethodError(f"{self.name} needs no statistics")
            return
        if statistics is None or len(statistics) != sources:
            given = "none" if statistics is None else len(statistics)
            wanted = f"the {self.needs} of each of {sources} sources as statistics"
            raise MethodError(f"{self.name} needs {wanted}, not {given}")
        lacking = [at for at, found in enumerate(statistics) if found is None]
        if 0 < len(lacking) < sources:
            raise MethodError(f"{self.name} needs statistics of every source or of none; source {lacking[0]} has none")

    def count_in_words(self) -> str:
        """How many sources it takes: "exactly 2 sources", "at least 1 source"."""
        fewest, most = self.sources
        plural = "" if (most or fewest) == 1 else "s"
        if fewest == most:
            return f"exactly {fewest} source{plural}"
        return f"at least {fewest} source{plural}" + (f" and at most {most}" if most is not None else "")


def merge_method(
    *, name: str | None = None, summary: str = "", reference: str = "", **facts: Any
) -> Callable[[Callable[..., torch.Tensor]], Method]:
    """Turn a function on tensors into a `Method`; its keyword-only arguments become the recipe's parameters.

    A trailing underscore (``lambda_``) is dropped in the recipe. ``base``, ``draws`` and ``statistics`` are none.

    >>> @merge_method(summary="largest entry", symmetric=True)
    ... def largest(tensors, *, weight: PerSource[float] = each(1.0)):
    ...     import torch
    ...     return torch.stack([w * t for w, t in zip(weight, tensors)]).amax(0)
    >>> largest.parameters["weight"].per_source
    True
    """

    def wrap(function: Callable[..., torch.Tensor]) -> Method:
        known = {f for f in Method.__dataclass_fields__ if f not in ("name", "function", "parameters")}
        for fact in facts:
            if fact not in known:
                raise MethodError(f"{function.__name__}: unknown fact {fact!r}{nearest(fact, known)}")
        parameters = _read_signature(function)
        line = summary or (function.__doc__ or "").strip().partition("\n")[0]
        return Method(name or function.__name__, function, line, reference, parameters, **facts)

    return wrap


def _read_signature(function: Callable[..., Any]) -> dict[str, Parameter]:
    found: dict[str, Parameter] = {}
    for argument in inspect.signature(function).parameters.values():
        if argument.kind is not argument.KEYWORD_ONLY or argument.name in ("base", "draws", "statistics"):
            continue
        where = f"{function.__name__}(..., {argument.name})"
        if argument.annotation is argument.empty:
            raise MethodError(f"{where}: give it a type, such as float or PerSource[float]")
        hint = argument.annotation
        if isinstance(hint, str):
            hint = eval(hint, {**function.__globals__})  # the author's own annotation, as get_type_hints does
        name = argument.name.removesuffix("_")
        found[name] = _parameter(name, argument.name, hint, argument.default, where)
    return found


def _parameter(name: str, python: str, hint: Any, default: Any, where: str) -> Parameter:
    notes: list[Any] = []
    while typing.get_origin(hint) is Annotated:
        inner, *more = typing.get_args(hint)
        notes += more
        hint = inner
    per_source = _PER_SOURCE in notes
    if per_source:
        (hint,) = typing.get_args(hint)
        while typing.get_origin(hint) is Annotated:
            inner, *more = typing.get_args(hint)
            notes += more
            hint = inner
    types: list[type] = []
    choices: list[Any] = []
    members = (
        typing.get_args(hint)
        if typing.get_origin(hint) not in (None, Literal) and not isinstance(hint, type)
        else (hint,)
    )
    for member in members:
        if typing.get_origin(member) is Literal:
            choices += typing.get_args(member)
        elif member in (bool, int, float):
            types.append(member)
        else:
            raise MethodError(f"{where}: {member!r} is not a parameter type; use float, int, bool or Literal[...]")
    bounds = next((note for note in notes if isinstance(note, Range)), Range())
    meaning = next((note for note in notes if isinstance(note, str) and note != _PER_SOURCE), "")
    return Parameter(name, python, tuple(types), tuple(choices), bounds, per_source, default, meaning)
