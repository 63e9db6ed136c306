"""What laws are tried on: calls of a method, and the strategies that draw them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from eutectic.errors import MissingDependencyError
from eutectic.methods.method import Method, Parameter
from eutectic.ops.random import Draws

if TYPE_CHECKING:
    import torch
    from hypothesis.strategies import SearchStrategy

__all__ = ["Case", "cases", "load_hypothesis", "noise", "tensors"]

SHAPES = ((), (0,), (1,), (5,), (2, 3), (3, 1, 4))
MOST_SOURCES = 4


@dataclass(frozen=True, eq=False)
class Case:
    """One call of a method: its tensors, its parameters, and the seed of everything random."""

    tensors: list[torch.Tensor]
    base: torch.Tensor | None
    parameters: Mapping[str, Any]
    seed: int = 0
    order: tuple[int, ...] | None = None
    """Which source stands where, for statistics to follow it; None: as they were drawn."""

    def merge(
        self, method: Method, changes: Mapping[str, Any] | None = None, draws: Draws | None = None
    ) -> torch.Tensor:
        """Call the method, with some parameters changed."""
        parameters = {**self.parameters, **(changes or {})}
        side = {} if method.needs is None else {"statistics": self.statistics(method.needs)}
        return method(self.tensors, base=self.base, draws=draws or Draws(self.seed, "tensor"), **side, **parameters)

    def statistics(self, kind: str) -> list[torch.Tensor | None]:
        """Made-up statistics of each source: a Gram matrix of few inputs, or squares in the tensor's shape."""
        order = range(len(self.tensors)) if self.order is None else self.order
        return [_made_up(kind, tuple(self.tensors[0].shape), 500 + source) for source in order]

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Case:
        """The case with every tensor changed alike."""
        base = None if self.base is None else change(self.base)
        return replace(self, tensors=[change(tensor) for tensor in self.tensors], base=base)

    @property
    def inputs(self) -> list[torch.Tensor]:
        """All tensors, the base first if there is one."""
        return self.tensors if self.base is None else [self.base, *self.tensors]

    @property
    def size(self) -> float:
        """The largest magnitude of any input."""
        return max((float(tensor.abs().max()) for tensor in self.inputs if tensor.numel()), default=0.0)

    def random(self) -> random.Random:
        """Random numbers of this case."""
        return random.Random(self.seed)


def _made_up(kind: str, shape: tuple[int, ...], seed: int) -> torch.Tensor | None:
    if kind != "gram":
        return noise(shape, seed) ** 2
    if len(shape) < 2 or not math.prod(shape):
        return None
    width = math.prod(shape[1:])
    rows = noise((width // 2 + 1, width), seed)
    return rows.T @ rows / len(rows)


def tensors(shape: tuple[int, ...] = (5,)) -> SearchStrategy[torch.Tensor]:
    """A float32 tensor of multiples of 1/16 up to 8: many are equal or zero, and sums are exact in any order."""
    import torch

    st = load_hypothesis()[1]
    count = math.prod(shape)

    def tensor(found: tuple[int, bytes]) -> torch.Tensor:
        step, numbers = found
        return torch.tensor([(byte if byte < 128 else 128 - byte) // step * step / 16 for byte in numbers]).reshape(
            shape
        )

    return st.tuples(st.sampled_from((1, 16)), st.binary(min_size=count, max_size=count)).map(tensor)


def cases(method: Method, parameters: Mapping[str, Any], *, rough: bool = False) -> SearchStrategy[Case]:
    """Calls of a method with these parameters; required ones that are absent are drawn.

    Tensors are those of `tensors`, or normal numbers if `rough`.
    """
    st = load_hypothesis()[1]
    given = {recipe_name(method, name): value for name, value in parameters.items()}
    lengths = {len(value) for name, value in given.items() if isinstance(value, (list, tuple))}
    fewest, most = method.sources

    @st.composite
    def case(draw: Any) -> Case:
        count = lengths.copy().pop() if lengths else draw(st.integers(fewest, most or max(fewest, MOST_SOURCES)))
        shape = draw(st.sampled_from(SHAPES))
        values = dict(given)
        for name, parameter in method.parameters.items():
            if parameter.required and name not in values:
                one = _values(parameter)
                values[name] = draw(st.lists(one, min_size=count, max_size=count) if parameter.per_source else one)
        seed = draw(st.integers(0, 2**16))
        inputs = count + (method.base == "required" or (method.base == "optional" and draw(st.booleans())))
        found = [noise(shape, seed + at) if rough else draw(tensors(shape)) for at in range(inputs)]
        return Case(found[:count], found[count] if inputs > count else None, values, seed)

    return case()


def _values(parameter: Parameter) -> SearchStrategy[Any]:
    """Valid values of a parameter: eighths of its range, or positive eighths up to 2."""
    st = load_hypothesis()[1]
    if parameter.choices:
        return st.sampled_from(parameter.choices)
    if bool in parameter.types:
        return st.booleans()
    low, high = parameter.range.low, parameter.range.high
    if float not in parameter.types:
        return st.integers(math.ceil(max(low, 1)), math.floor(min(high, max(low, 1) + 7)))
    if not (math.isfinite(low) and math.isfinite(high)):
        low, high = (low, low + 2) if math.isfinite(low) else (high - 2, high) if math.isfinite(high) else (0, 2)
    return st.integers(1, 8).map(lambda eighths: low + (high - low) * eighths / 8)


def load_hypothesis() -> tuple[Any, Any]:
    try:
        import hypothesis
        from hypothesis import strategies
    except ImportError:
        raise MissingDependencyError("eutectic.testing needs hypothesis; pip install hypothesis") from None
    return hypothesis, strategies


def recipe_name(method: Method, name: str) -> str:
    return next((p.name for p in method.parameters.values() if p.python == name), name)


def noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
