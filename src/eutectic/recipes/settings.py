"""Parameters of a merge, tensor by tensor: precedence, gradients over layers, filters by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from eutectic.errors import RecipeError
from eutectic.methods.method import Method, Parameter
from eutectic.recipes.values import Case, Parameters, Scalar, Value

__all__ = ["Settings", "matches", "scalars_of", "value_at"]

_ABSENT: Any = object()


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def matches(pattern: str | None, name: str) -> bool:
    """Whether a filter takes a tensor: a part of its name, ``re:`` and an expression, ``*`` or nothing for all.

    >>> matches("mlp", "h.0.mlp.w"), matches("re:h[.][0-3][.]", "h.7.w"), matches(None, "w")
    (True, False, True)
    """
    if pattern is None or pattern == "*":
        return True
    if pattern.startswith("re:"):
        return _compiled(pattern[3:]).search(name) is not None
    return pattern in name


def value_at(value: Value, name: str, t: float) -> Scalar | None:
    """A parameter's value for one tensor at position `t` of its layers; None where no filter takes the tensor.

    Numbers of a gradient are interpolated: (1 - f) v_i + f v_{i+1} with i + f = t (n - 1); other values are not.

    >>> value_at((0.0, 1.0, 0.0), "w", 0.25)
    0.5
    >>> value_at((Case(value=1, filter="mlp"), Case(value=0)), "h.0.attn.w", 0.0)
    0
    """
    if not isinstance(value, tuple):
        return value
    if isinstance(value[0], Case):
        chosen = next((case for case in value if isinstance(case, Case) and matches(case.filter, name)), None)
        return None if chosen is None else value_at(chosen.value, name, t)
    numbers = all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in value)
    place = t * (len(value) - 1)
    at = int(place)
    if not numbers:
        return value[at]  # pyright: ignore[reportReturnType]  a gradient, not cases
    rest = place - at
    low, high = value[at], value[min(at + 1, len(value) - 1)]
    return (1 - rest) * low + rest * high if rest else low  # pyright: ignore


def scalars_of(value: Value) -> Iterator[Scalar]:
    """Every scalar in a parameter's value."""
    if isinstance(value, tuple):
        for item in value:
            yield from scalars_of(item.value if isinstance(item, Case) else item)
    else:
        yield value


def filters_of(value: Value) -> Iterator[str]:
    """Every filter in a parameter's value that could fail to take a tensor."""
    if isinstance(value, tuple):
        yield from (item.filter for item in value if isinstance(item, Case) and item.filter not in (None, "*"))


@dataclass(frozen=True, eq=False)
class Settings:
    """The parameters of one merge: `own` of each source, `shared` of slice, module and recipe, the nearest first."""

    method: Method
    semantics: str
    own: tuple[Parameters, ...]
    shared: tuple[Parameters, ...]
    place: str = ""
    unused: set[tuple[str, str]] = field(default_factory=set)
    """Filters that took no tensor yet, as (parameter, filter): whoever has asked for every tensor refuses them."""

    def __post_init__(self) -> None:
        for values in (*self.own, *self.shared):
            self.unused.update((name, pattern) for name, value in values.items() for pattern in filters_of(value))

    @cached_property
    def varies(self) -> bool:
        """Whether tensors may differ in their parameters."""
        return any(isinstance(value, tuple) for values in (*self.own, *self.shared) for value in values.values())

    def at(self, name: str, t: float) -> dict[str, Any]:
        """The settled parameters of one tensor.

        Raises:
            RecipeError: the tensor gets no value of a parameter that needs one, or one that the method refuses.
        """
        self.unused.difference_update([entry for entry in self.unused if matches(entry[1], name)])
        given: dict[str, Any] = {}
        for parameter in self.method.parameters.values():
            if parameter.per_source and any(parameter.name in own for own in self.own):
                default = self._default(parameter)
                found = [self._find(parameter.name, (own, *self.shared), name, t) for own in self.own]
                values = [default if value is _ABSENT else value for value in found]
                if not any(value is parameter.default and parameter.required for value in values):
                    given[parameter.name] = values
            elif (value := self._find(parameter.name, self.shared, name, t)) is not _ABSENT:
                given[parameter.name] = value
        settled, faults = self.method.settle(given, len(self.own), self.semantics)
        if faults:
            where = f"{self.place}: " if self.place else ""
            problems = [f"{where}{parameter}: {why}" for parameter, why in faults]
            raise RecipeError(f"{name} gets parameters that {self.method.name} refuses", problems)
        return settled

    def _default(self, parameter: Parameter) -> Any:
        paper = self.semantics == "paper"
        return self.method.paper.get(parameter.name, parameter.default) if paper else parameter.default

    def _find(self, parameter: str, levels: Sequence[Parameters], name: str, t: float) -> Any:
        for level in levels:
            if parameter in level and (value := value_at(level[parameter], name, t)) is not None:
                return value
        return _ABSENT
