"""The values that a recipe's keys take: parameters, element types, paths; each checked with our own words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from eutectic.errors import nearest
from eutectic.recipes.faults import shown
from eutectic.weights.dtypes import dtype_of

__all__ = [
    "DTYPES",
    "Case",
    "DTypeName",
    "LayerRange",
    "Parameters",
    "PathText",
    "Scalar",
    "Text",
    "Value",
    "Values",
    "canonical_values",
    "fault",
]

Scalar = bool | int | float | str
DTYPES = ("bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")


@dataclass(frozen=True, slots=True)
class Case:
    """One entry of a list of filters: the value of every tensor that the filter takes (None: of all)."""

    value: Scalar | tuple[Scalar, ...]
    filter: str | None = None


Value = Scalar | tuple[Scalar, ...] | tuple[Case, ...]
"""One value; a gradient over the layers; or filters by tensor name, of which the first that matches counts."""


class Parameters(Mapping[str, Value]):
    """Immutable parameters by name.

    >>> Parameters({"weight": 0.5})["weight"]
    0.5
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Value] | None = None) -> None:
        self._values: dict[str, Value] = dict(values or {})

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return f"Parameters({self._values!r})"


def canonical_values(values: Mapping[str, Value]) -> dict[str, Any]:
    """Parameters in alphabetical order as plain data, equal numbers made one.

    >>> canonical_values({"weight": 1.0, "density": (0.5, 1.0), "t": (Case(1.0, "mlp"), Case(0))})
    {'density': [0.5, 1], 't': [{'filter': 'mlp', 'value': 1}, {'value': 0}], 'weight': 1}
    """
    return {name: _canonical_value(values[name]) for name in sorted(values)}


def _canonical_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_canonical_value(item) for item in value]
    if isinstance(value, Case):
        named = {} if value.filter is None else {"filter": value.filter}
        return {**named, "value": _canonical_value(value.value)}
    return _canonical_number(value)


def _canonical_number(value: Scalar) -> Scalar:
    """Whole floats below 2**53 turn int; larger ints turn float where that is exact."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, int) and abs(value) >= 2**53:
        return float(value) if int(float(value)) == value else value
    return value


def fault(sentence: str) -> PydanticCustomError:
    """An error whose sentence follows the name of the key (`faults.sentence_of`)."""
    return PydanticCustomError("eutectic", "{sentence}", {"sentence": sentence})


def _read_value(value: Any) -> Any:
    """A parameter's value from plain data: a scalar, a gradient, or filters."""
    if isinstance(value, Case):
        return (value,)
    if isinstance(value, Mapping) and "value" in value:
        return (_read_case(value, ""),)
    if not isinstance(value, (list, tuple)):
        return _read_scalar(value, "")
    if not value:
        raise fault("is an empty list; give it values, or remove the key")
    entries = [f" in entry {at} of its list" for at in range(1, len(value) + 1)]
    if any(isinstance(item, (Case, Mapping)) for item in value):
        return tuple(_read_case(item, where) for item, where in zip(value, entries, strict=True))
    return tuple(_read_scalar(item, where) for item, where in zip(value, entries, strict=True))


def _read_case(entry: Any, where: str) -> Case:
    if isinstance(entry, Case):
        return entry
    if not isinstance(entry, Mapping):
        raise fault(f"mixes filters and values: write {{value: {shown(entry)}}}{where}")
    unknown = [key for key in entry if key not in ("filter", "value")]
    if unknown:
        raise fault(f"has the unknown key {shown(unknown[0])}{where}; known here: filter, value")
    if "value" not in entry:
        raise fault(f"needs a value{where}: {{filter: mlp, value: 0.5}}")
    pattern, value = entry.get("filter"), entry["value"]
    if not (pattern is None or (isinstance(pattern, str) and pattern)):
        raise fault(f"has a filter that is not a part of a tensor's name{where}; found {shown(pattern)}")
    if pattern is not None and pattern.startswith("re:"):
        try:
            re.compile(pattern[3:])
        except (re.error, RecursionError, OverflowError) as error:
            raise fault(f"has a filter that is no regular expression{where}: {shown(pattern)}: {error}") from None
    if isinstance(value, (list, tuple)):
        if not value:
            raise fault(f"has an empty gradient{where}")
        return Case(tuple(_read_scalar(item, where) for item in value), pattern)
    return Case(_read_scalar(value, where), pattern)


def _read_scalar(value: Any, where: str) -> Scalar:
    if value is None:
        raise fault(f"has no value{where}; give it one, or remove the {'entry' if where else 'key'}")
    if not isinstance(value, (bool, int, float, str)):
        raise fault(f"must be a number, true, false or text; found {shown(value)}{where}")
    if isinstance(value, float) and not math.isfinite(value):
        raise fault(f"must be a finite number; found {shown(value)}{where}")
    return value


def _read_range(value: Any) -> tuple[int, int]:
    """A layer range from plain data: first layer and the one behind the last."""
    match value:
        case [int() as first, int() as stop] if not isinstance(first, bool) and not isinstance(stop, bool):
            if 0 <= first < stop:
                return first, stop
            raise fault(f"must go upward from a layer, such as [0, 16]; found [{first}, {stop}]")
    raise fault(f"must be two whole numbers such as [0, 16]; found {shown(value)}")


def _check_dtype(value: Any) -> Any:
    if value is None or value == "auto":
        return None
    known = dtype_of(value) if isinstance(value, str) else None
    if known is None or known.torch not in DTYPES:
        hint = nearest(value, DTYPES) if isinstance(value, str) else ""
        raise fault(f"must be one of {', '.join(DTYPES)}; found {shown(value)}{hint}")
    return known.torch


def _check_path(value: str) -> str:
    if not value.isprintable():
        raise fault(f"must be a path without control characters; found {shown(value)}")
    return value


Text = Annotated[str, Field(pattern=r"\S")]
PathText = Annotated[Text, AfterValidator(_check_path)]
DTypeName = Annotated[str | None, BeforeValidator(_check_dtype), Field(examples=[*DTYPES])]
_SCALAR: dict[str, Any] = {"anyOf": [{"type": kind} for kind in ("boolean", "number", "string")]}
_GRADIENT: dict[str, Any] = {"anyOf": [_SCALAR, {"type": "array", "minItems": 1, "items": _SCALAR}]}
_CASE: dict[str, Any] = {
    "type": "object",
    "properties": {"filter": {"type": "string"}, "value": _GRADIENT},
    "required": ["value"],
    "additionalProperties": False,
}
_VALUE: dict[str, Any] = {
    "description": "One value; a gradient over the layers; or filters by tensor name (a part of it, or re:...).",
    "anyOf": [*_GRADIENT["anyOf"], _CASE, {"type": "array", "minItems": 1, "items": _CASE}],
}
_RANGE = {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "integer", "minimum": 0}}
LayerRange = Annotated[tuple[int, int], PlainValidator(_read_range), WithJsonSchema(_RANGE)]
if TYPE_CHECKING:
    Values = Parameters
else:
    Values = Annotated[
        Mapping[str, Annotated[Any, PlainValidator(_read_value), WithJsonSchema(_VALUE)]],
        BeforeValidator(lambda value: {} if value is None else value),
        AfterValidator(Parameters),
        PlainSerializer(canonical_values),
    ]
