"""The values that a recipe's keys take: parameters, element types, paths; each checked with our own words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer
from pydantic_core import PydanticCustomError

from eutectic.errors import nearest
from eutectic.recipes.faults import shown
from eutectic.weights.dtypes import dtype_of

__all__ = ["DTYPES", "DTypeName", "Parameters", "PathText", "Scalar", "Text", "Values", "canonical_values"]

Scalar = bool | int | float | str
DTYPES = ("bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")


class Parameters(Mapping[str, Scalar]):
    """Immutable parameters by name.

    >>> Parameters({"weight": 0.5})["weight"]
    0.5
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Scalar] | None = None) -> None:
        self._values: dict[str, Scalar] = dict(values or {})

    def __getitem__(self, name: str) -> Scalar:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return f"Parameters({self._values!r})"


def canonical_values(values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Parameters in alphabetical order, equal numbers made one.

    >>> canonical_values({"weight": 1.0, "density": 0.5, "rescale": True})
    {'density': 0.5, 'rescale': True, 'weight': 1}
    """
    return {name: _canonical_number(values[name]) for name in sorted(values)}


def _canonical_number(value: Scalar) -> Scalar:
    """Whole floats below 2**53 turn int; larger ints turn float where that is exact."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, int) and abs(value) >= 2**53:
        return float(value) if int(float(value)) == value else value
    return value


def _fault(sentence: str) -> PydanticCustomError:
    """An error whose sentence follows the name of the key (`faults.sentence_of`)."""
    return PydanticCustomError("eutectic", "{sentence}", {"sentence": sentence})


def _check_scalar(value: Any) -> Any:
    later = "which Eutectic does not support yet; give one value"
    if value is None:
        raise _fault("has no value; give it one, or remove the key")
    if isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
        raise _fault(f"is one of mergekit's lists of filters, {later}")
    if isinstance(value, (list, tuple)):
        raise _fault(f"is one of mergekit's gradients over layers, {later}")
    if isinstance(value, Mapping) and "value" in value:
        raise _fault(f"is one of mergekit's filters, {later}")
    if not isinstance(value, (bool, int, float, str)):
        raise _fault(f"must be a number, true, false or text; found {shown(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise _fault(f"must be a finite number; found {shown(value)}")
    return value


def _check_dtype(value: Any) -> Any:
    if value is None or value == "auto":
        return None
    known = dtype_of(value) if isinstance(value, str) else None
    if known is None or known.torch not in DTYPES:
        hint = nearest(value, DTYPES) if isinstance(value, str) else ""
        raise _fault(f"must be one of {', '.join(DTYPES)}; found {shown(value)}{hint}")
    return known.torch


def _check_path(value: str) -> str:
    if not value.isprintable():
        raise _fault(f"must be a path without control characters; found {shown(value)}")
    return value


Text = Annotated[str, Field(pattern=r"\S")]
PathText = Annotated[Text, AfterValidator(_check_path)]
DTypeName = Annotated[str | None, BeforeValidator(_check_dtype), Field(examples=[*DTYPES])]
Values = Annotated[
    Mapping[str, Annotated[Scalar, BeforeValidator(_check_scalar)]],
    BeforeValidator(lambda value: {} if value is None else value),
    AfterValidator(Parameters),
    PlainSerializer(dict),
]
