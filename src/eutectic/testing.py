"""The laws of merge methods, for authors of methods: which ones must hold follows from the declared facts.

    from eutectic.testing import check_method

    def test_mine():
        check_method(mine, weight=[0.5, 0.25], density=0.5)

`check_method` searches for a counter-example to every law that the method's facts promise, with hypothesis
(``pip install hypothesis``), always the same way. `LAWS` holds the laws by name; each can be run alone.
`Case` is what a law is tried on; `tensors` and `cases` are the strategies that it is drawn from.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from eutectic.errors import MethodError, MissingDependencyError
from eutectic.methods.method import Method, Parameter, Setting
from eutectic.ops.program import Program, Tile
from eutectic.ops.random import Draws

if TYPE_CHECKING:
    import torch
    from hypothesis.strategies import SearchStrategy

__all__ = ["LAWS", "Case", "Law", "cases", "check_method", "laws_of", "tensors"]

EXAMPLES = 20
SHAPES = ((), (0,), (1,), (5,), (2, 3), (3, 1, 4))
FLOATS = ("bfloat16", "float16", "float32", "float64")
EPSILON = 2.0**-23  # of float32: the arithmetic that every method may use
MOST_SOURCES = 4


@dataclass(frozen=True, eq=False)
class Case:
    """One call of a method: its tensors, its parameters, and the seed of everything random."""

    tensors: list[torch.Tensor]
    base: torch.Tensor | None
    parameters: Mapping[str, Any]
    seed: int = 0

    def merge(
        self, method: Method, changes: Mapping[str, Any] | None = None, draws: Draws | None = None
    ) -> torch.Tensor:
        """Call the method, with some parameters changed."""
        parameters = {**self.parameters, **(changes or {})}
        return method(self.tensors, base=self.base, draws=draws or Draws(self.seed, "tensor"), **parameters)

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


@dataclass(frozen=True)
class Law:
    """A statement, the methods that promise it, and the check: `check(method, case)` asserts that it holds.

    Called as ``law(method, **parameters)`` it looks for a counter-example, whether or not the method promises it.
    """

    name: str
    statement: str
    promised: Callable[[Method], bool]
    check: Callable[[Method, Case], None]
    rough: bool = False

    def __call__(self, method: Method, /, **parameters: Any) -> None:
        """Raise AssertionError that names the law and the smallest counter-example found."""
        hypothesis, _ = _hypothesis()

        def holds(case: Case) -> None:
            found, cause = "", None
            try:
                self.check(method, case)
            except AssertionError as broken:
                found = str(broken)
            except Exception as error:
                found, cause = f"it raises {type(error).__name__}: {error}", error
            if found:
                head = f"{method.name} breaks the law {self.name!r} ({self.statement})"
                raise AssertionError(f"{head}:\n  {found}\n  on {case}") from cause

        options = hypothesis.settings(
            max_examples=EXAMPLES,
            phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
            deadline=None,
            database=None,
            derandomize=True,
            report_multiple_bugs=False,
        )
        options(hypothesis.given(cases(method, parameters, rough=self.rough))(holds))()


LAWS: dict[str, Law] = {}


def check_method(method: Method, /, **parameters: Any) -> tuple[str, ...]:
    """Check every law that a method's facts promise; returns their names.

    Args:
        method: what `merge_method` made.
        parameters: as in a call of the method. Lists fix the number of sources; required parameters that are left
            out are drawn. Give a stochastic method parameters under which it draws (such as ``density=0.5``).

    Raises:
        AssertionError: a law is broken; the message names it and the smallest counter-example found.
        MissingDependencyError: hypothesis is not installed.
    """
    names = laws_of(method)
    for name in names:
        LAWS[name](method, **parameters)
    return names


def laws_of(method: Method) -> tuple[str, ...]:
    """Names of the laws that a method's facts promise."""
    return tuple(name for name, law in LAWS.items() if law.promised(method))


# ---------------------------------------------------------------- what laws are tried on


def tensors(shape: tuple[int, ...] = (5,)) -> SearchStrategy[torch.Tensor]:
    """A float32 tensor of multiples of 1/16 up to 8: many are equal or zero, and sums are exact in any order."""
    import torch

    st = _hypothesis()[1]
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
    st = _hypothesis()[1]
    given = {_recipe_name(method, name): value for name, value in parameters.items()}
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
        found = [_noise(shape, seed + at) if rough else draw(tensors(shape)) for at in range(inputs)]
        return Case(found[:count], found[count] if inputs > count else None, values, seed)

    return case()


def _values(parameter: Parameter) -> SearchStrategy[Any]:
    """Valid values of a parameter: eighths of its range, or positive eighths up to 2."""
    st = _hypothesis()[1]
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


def _hypothesis() -> tuple[Any, Any]:
    try:
        import hypothesis
        from hypothesis import strategies
    except ImportError:
        raise MissingDependencyError("eutectic.testing needs hypothesis; pip install hypothesis") from None
    return hypothesis, strategies


def _recipe_name(method: Method, name: str) -> str:
    return next((p.name for p in method.parameters.values() if p.python == name), name)


# ---------------------------------------------------------------- the laws


def _law(
    statement: str, promised: Callable[[Method], bool] = lambda method: True, *, rough: bool = False
) -> Callable[[Callable[[Method, Case], None]], Law]:
    def wrap(check: Callable[[Method, Case], None]) -> Law:
        name = check.__name__.lstrip("_")
        LAWS[name] = Law(name, statement, promised, check, rough)
        return LAWS[name]

    return wrap


@_law("the result has the first tensor's type and the inputs' shape")
def _kept(method: Method, case: Case) -> None:
    import torch

    for name in FLOATS:
        dtype = getattr(torch, name)
        merged = case.map(lambda tensor, dtype=dtype: tensor.to(dtype)).merge(method)
        assert merged.dtype == dtype, f"{name} in, {merged.dtype} out"
        assert merged.shape == case.tensors[0].shape, f"the result has shape {list(merged.shape)}"


@_law("the inputs are left as they are, and the same call gives the same bits")
def _pure(method: Method, case: Case) -> None:
    before = [tensor.clone() for tensor in case.inputs]
    first, second = case.merge(method), case.merge(method)
    for at, (old, new) in enumerate(zip(before, case.inputs, strict=True)):
        assert _same_bits(old, new), f"input {at} is changed to {new.tolist()}"
    assert _same_bits(first, second), f"{first.tolist()}, then {second.tolist()}"


@_law("another seed gives another result if the method is stochastic, and the same result if it is not")
def _seeded(method: Method, case: Case) -> None:
    noise = iter(_noise((len(case.inputs), 4096), case.seed))
    large = case.map(lambda tensor: next(noise))
    if not method.stochastic:
        assert _same_bits(large.merge(method), replace(large, seed=case.seed + 1).merge(method)), "the seed matters"
        return
    merged = large.merge(method)
    others = {
        "the seed": Draws(case.seed + 1, "tensor"),
        "the tensor's name": Draws(case.seed, "another"),
        "the place of a tile": Draws(case.seed, "tensor", 65536),
    }
    for what, draws in others.items():
        assert not _same_bits(merged, large.merge(method, draws=draws)), f"{what} does not matter"


@_law("inputs that are zero or of magnitudes from 2^-40 to 2^20 give finite results")
def _finite(method: Method, case: Case) -> None:
    import torch

    scaled = case.map(lambda tensor: tensor * 2.0 ** case.random().randint(-36, 17))
    mixed = case.map(lambda tensor: tensor * torch.tensor(_powers(tensor.numel(), case)).reshape(tensor.shape))
    for tried in (case, scaled, mixed, case.map(torch.zeros_like)):
        merged = tried.merge(method)
        assert merged.isfinite().all(), f"{merged.tolist()} from {tried}"


@_law("gradients reach the inputs, are finite, and are the derivative", rough=True)
def _differentiable(method: Method, case: Case) -> None:
    smooth = case.map(lambda tensor: tensor.double())
    if not smooth.tensors[0].numel():
        return
    pull, *ways = _noise((1 + len(smooth.inputs), *smooth.tensors[0].shape), case.seed + 1000).double()

    def measure(inputs: list[torch.Tensor]) -> torch.Tensor:
        base = None if case.base is None else inputs[0]
        return (
            replace(smooth, tensors=inputs[len(inputs) - len(case.tensors) :], base=base).merge(method) * pull
        ).sum()

    gradients = _gradients(measure, smooth.inputs)
    found = sum(float((gradient * way).sum()) for gradient, way in zip(gradients, ways, strict=True))
    step = 1e-6
    ahead, behind = (
        float(measure([tensor + sign * step * way for tensor, way in zip(smooth.inputs, ways, strict=True)]))
        for sign in (1, -1)
    )
    wanted = (ahead - behind) / (2 * step)
    assert abs(found - wanted) <= 1e-4 * (1 + abs(wanted)), f"the gradient says {found:g}, the difference {wanted:g}"
    first = smooth.inputs[0]
    for where, one in (("sources are the base", first), ("all is zero", first * 0)):
        gradients = _gradients(measure, [one] * len(smooth.inputs))
        assert all(gradient.isfinite().all() for gradient in gradients), f"not finite where {where}"


@_law("copies of one tensor, whatever the base, give it back at default parameters", lambda method: method.idempotent)
def _idempotent(method: Method, case: Case) -> None:
    needed = {name: case.parameters[name] for name, p in method.parameters.items() if p.required}
    copy = case.tensors[0]
    merged = replace(case, tensors=[copy] * len(case.tensors), parameters=needed).merge(method)
    _assert_close(merged, copy, 4 * EPSILON * case.size)


@_law("the order of the sources does not matter", lambda method: method.symmetric)
def _symmetric(method: Method, case: Case) -> None:
    order = list(range(len(case.tensors)))
    case.random().shuffle(order)
    values = {
        name: [value[at] for at in order] if isinstance(value, (list, tuple)) else value
        for name, value in case.parameters.items()
    }
    merged, again = (
        case.merge(method),
        replace(case, tensors=[case.tensors[at] for at in order], parameters=values).merge(method),
    )
    settled = ~_jumps(method, case)
    _assert_close(again[settled], merged[settled], 32 * EPSILON * max(case.size, _size(merged)), f"order {order}: ")


@_law(
    "zero weights give the base, or are refused",
    lambda m: m.space == "delta" and m.base == "required" and "weight" in m.parameters,
)
def _zero_weights(method: Method, case: Case) -> None:
    assert case.base is not None
    try:
        merged = case.merge(method, {"weight": 0.0})
    except MethodError:
        return
    assert (merged == case.base).all(), f"{merged.tolist()} for the base {case.base.tolist()}"


@_law("a tensor cut anywhere merges to the same bits", lambda method: method.scope in ("element", "row"), rough=True)
def _tiles(method: Method, case: Case) -> None:
    import torch

    whole = case if case.tensors[0].shape else case.map(lambda tensor: tensor.reshape(1))
    if method.scope == "element":
        whole = whole.map(lambda tensor: tensor.reshape(-1))
    rows, numel = whole.tensors[0].shape[0], whole.tensors[0].numel()
    cuts = [0, *sorted(case.random().randint(0, rows) for _ in range(2)), rows]
    parts = [
        whole.map(lambda tensor, cut=slice(first, last): tensor[cut]).merge(
            method, draws=Draws(case.seed, "tensor", first * numel // max(1, rows))
        )
        for first, last in pairwise(cuts)
    ]
    merged = torch.cat(parts)
    expected = whole.merge(method)
    assert _same_bits(merged, expected), f"cut at {cuts[1:-1]}: {merged.tolist()}, not {expected.tolist()}"


@_law(
    "one number means the same for all sources",
    lambda method: any(parameter.per_source for parameter in method.parameters.values()),
)
def _scalars(method: Method, case: Case) -> None:
    for name, parameter in method.parameters.items():
        if parameter.per_source:
            value = case.parameters.get(name, parameter.default)
            one = value[0] if isinstance(value, (list, tuple)) else value
            single = case.merge(method, {name: one})
            listed = case.merge(method, {name: [one] * len(case.tensors)})
            assert _same_bits(single, listed), f"{name}={one}: {single.tolist()}; as a list: {listed.tolist()}"


@_law("values that a parameter cannot take are refused by name, and so are inputs that do not fit")
def _faults(method: Method, case: Case) -> None:
    def refused(what: str, name: str, tried: Case, changes: Mapping[str, Any] | None = None) -> None:
        try:
            tried.merge(method, changes)
        except MethodError as error:
            assert name in str(error), f"{what} is refused without naming {name}: {error}"
        else:
            raise AssertionError(f"{what} is accepted")

    count, first = len(case.tensors), case.tensors[0]
    refused("an unknown parameter", "no_such_parameter", case, {"no_such_parameter": 1})
    for name, parameter in method.parameters.items():
        for value in (*_wrong(parameter), *([[0.5] * (count + 1)] if parameter.per_source else [])):
            refused(f"{name}={value!r}", name, case, {name: value})
        if parameter.required:
            without = {key: value for key, value in case.parameters.items() if key != name}
            refused(f"a call without {name}", name, replace(case, parameters=without))
    scalar = {name: value[0] if isinstance(value, (list, tuple)) else value for name, value in case.parameters.items()}
    fewest, most = method.sources
    refused(f"{fewest - 1} sources", method.name, replace(case, tensors=[first] * (fewest - 1), parameters=scalar))
    if most is not None:
        refused(f"{most + 1} sources", method.name, replace(case, tensors=[first] * (most + 1), parameters=scalar))
    if method.base == "required":
        refused("a call without a base", "base", replace(case, base=None))
    if len(case.inputs) > 1:
        longer = first.reshape(-1).repeat(2) if first.numel() > 1 else first.new_zeros(3)
        refused("a tensor of another shape", "shape", replace(case, tensors=[*case.tensors[:-1], longer]))


@_law("the fast twin gives the same numbers as the torch function", lambda method: method.lower is not None)
def _twin(method: Method, case: Case) -> None:
    assert method.lower is not None
    settled, _ = method.settle(case.parameters, len(case.tensors))
    shape, anchored = tuple(case.tensors[0].shape), case.base is not None
    program = method.lower(Setting(settled, len(case.tensors), "tensor", case.seed, shape, anchored))
    if program is None:  # torch alone knows how with these parameters
        return
    expected, merged = case.merge(method), _run_program(program, case)
    assert (merged == expected).all(), f"the twin gives {merged.tolist()}, torch {expected.tolist()}"


# ---------------------------------------------------------------- what the laws use


def _run_program(program: Program, case: Case) -> torch.Tensor:
    """A fast twin on one small tensor, as the engine runs it."""
    import numpy as np
    import torch

    shape, n, float32 = case.tensors[0].shape, case.tensors[0].numel(), 2
    rows = torch.stack(case.inputs).reshape(len(case.inputs), n).numpy().view(np.uint8).copy()
    codes, bad = np.full(len(rows), float32, dtype=np.int64), np.zeros(len(rows), dtype=np.int64)
    tile, out = Tile(rows, codes, n, 0, 0, bad), np.zeros(4 * n, dtype=np.uint8)
    if not n:
        return torch.empty(shape)
    found = program.begin(n, 1)
    while (reduction := program.wants(found)) is not None:
        lead = () if reduction.fold == "sum" else (1,)
        total = np.zeros((*lead, *reduction.shape), dtype=reduction.dtype)
        program.reduce(reduction, tile, found, total)
        found = program.solve(reduction, total, found)
    program.combine(tile, found, out, float32)
    return torch.from_numpy(out.view(np.float32)).reshape(shape)


def _gradients(
    measure: Callable[[list[torch.Tensor]], torch.Tensor], inputs: list[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    import torch

    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    value = measure(leaves)
    assert value.requires_grad, "no gradient reaches any input"
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    return tuple(torch.zeros_like(leaf) if got is None else got for leaf, got in zip(leaves, found, strict=True))


def _jumps(method: Method, case: Case) -> torch.Tensor:
    """Where the result jumps when the inputs change by their last bits (an election decided by rounding)."""
    import torch

    merged = case.merge(method)
    jumps = torch.zeros(merged.shape, dtype=torch.bool)
    for seed in range(8):
        moved = case.map(lambda x, s=seed: x * (1 + 8 * EPSILON * _noise(x.shape, s)))
        jumps |= (moved.merge(method) - merged).abs() > 1024 * EPSILON * max(case.size, _size(merged))
    return jumps


def _wrong(parameter: Parameter) -> list[Any]:
    """Values outside a parameter's type and range."""
    wrong: list[Any] = [None, "no such choice", {}]
    if float in parameter.types:
        wrong += [math.nan, math.inf]
    if {float, int} & {*parameter.types}:
        wrong += [bound + way for bound, way in ((parameter.range.low, -1), (parameter.range.high, 1))
                  if math.isfinite(bound)]  # fmt: skip
    return wrong


def _powers(count: int, case: Case) -> list[float]:
    numbers = case.random()
    return [2.0 ** numbers.randint(-36, 17) for _ in range(count)]


def _noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _size(tensor: torch.Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    import torch

    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(
        a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8)
    )  # fmt: skip


def _assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float, where: str = "") -> None:
    apart = _size(found.double() - expected.double())
    assert apart <= tolerance, f"{where}{found.tolist()}, not {expected.tolist()} (apart {apart:g} > {tolerance:g})"
