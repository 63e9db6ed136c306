"""The laws, each with the methods that promise it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from eutectic.errors import MethodError
from eutectic.methods.method import Method, Setting
from eutectic.ops.random import Draws
from eutectic.testing.cases import Case, noise
from eutectic.testing.law import law
from eutectic.testing.measures import (
    EPSILON,
    assert_close,
    gradients_of,
    jumps,
    powers,
    run_program,
    same_bits,
    size_of,
    wrong_values,
)

if TYPE_CHECKING:
    import torch

FLOATS = ("bfloat16", "float16", "float32", "float64")


@law("the result has the first tensor's type and the inputs' shape")
def _kept(method: Method, case: Case) -> None:
    import torch

    for name in FLOATS:
        dtype = getattr(torch, name)
        merged = case.map(lambda tensor, dtype=dtype: tensor.to(dtype)).merge(method)
        assert merged.dtype == dtype, f"{name} in, {merged.dtype} out"
        assert merged.shape == case.tensors[0].shape, f"the result has shape {list(merged.shape)}"


@law("the inputs are left as they are, and the same call gives the same bits")
def _pure(method: Method, case: Case) -> None:
    before = [tensor.clone() for tensor in case.inputs]
    first, second = case.merge(method), case.merge(method)
    for at, (old, new) in enumerate(zip(before, case.inputs, strict=True)):
        assert same_bits(old, new), f"input {at} is changed to {new.tolist()}"
    assert same_bits(first, second), f"{first.tolist()}, then {second.tolist()}"


@law("another seed gives another result if the method is stochastic, and the same result if it is not")
def _seeded(method: Method, case: Case) -> None:
    normal = iter(noise((len(case.inputs), 4096), case.seed))
    large = case.map(lambda tensor: next(normal))
    if not method.stochastic:
        assert same_bits(large.merge(method), replace(large, seed=case.seed + 1).merge(method)), "the seed matters"
        return
    merged = large.merge(method)
    others = {
        "the seed": Draws(case.seed + 1, "tensor"),
        "the tensor's name": Draws(case.seed, "another"),
        "the place of a tile": Draws(case.seed, "tensor", 65536),
    }
    for what, draws in others.items():
        assert not same_bits(merged, large.merge(method, draws=draws)), f"{what} does not matter"


@law("inputs that are zero or of magnitudes from 2^-40 to 2^20 give finite results")
def _finite(method: Method, case: Case) -> None:
    import torch

    scaled = case.map(lambda tensor: tensor * 2.0 ** case.random().randint(-36, 17))
    mixed = case.map(lambda tensor: tensor * torch.tensor(powers(tensor.numel(), case)).reshape(tensor.shape))
    for tried in (case, scaled, mixed, case.map(torch.zeros_like)):
        merged = tried.merge(method)
        assert merged.isfinite().all(), f"{merged.tolist()} from {tried}"


@law(
    "gradients reach the inputs, are finite, and are the derivative",
    lambda method: method.differentiable,
    rough=True,
)
def _differentiable(method: Method, case: Case) -> None:
    smooth = case.map(lambda tensor: tensor.double())
    if not smooth.tensors[0].numel():
        return
    pull, *ways = noise((1 + len(smooth.inputs), *smooth.tensors[0].shape), case.seed + 1000).double()

    def measure(inputs: list[torch.Tensor]) -> torch.Tensor:
        base = None if case.base is None else inputs[0]
        return (
            replace(smooth, tensors=inputs[len(inputs) - len(case.tensors) :], base=base).merge(method) * pull
        ).sum()

    gradients = gradients_of(measure, smooth.inputs)
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
        gradients = gradients_of(measure, [one] * len(smooth.inputs))
        assert all(gradient.isfinite().all() for gradient in gradients), f"not finite where {where}"


@law("copies of one tensor, whatever the base, give it back at default parameters", lambda method: method.idempotent)
def _idempotent(method: Method, case: Case) -> None:
    needed = {name: case.parameters[name] for name, p in method.parameters.items() if p.required}
    copy = case.tensors[0]
    merged = replace(case, tensors=[copy] * len(case.tensors), parameters=needed).merge(method)
    assert_close(merged, copy, 4 * EPSILON * case.size)


@law("the order of the sources does not matter", lambda method: method.symmetric)
def _symmetric(method: Method, case: Case) -> None:
    order = list(range(len(case.tensors)))
    case.random().shuffle(order)
    values = {
        name: [value[at] for at in order] if isinstance(value, (list, tuple)) else value
        for name, value in case.parameters.items()
    }
    merged, again = (
        case.merge(method),
        replace(case, tensors=[case.tensors[at] for at in order], parameters=values, order=tuple(order)).merge(method),
    )
    settled = ~jumps(method, case)
    assert_close(again[settled], merged[settled], 32 * EPSILON * max(case.size, size_of(merged)), f"order {order}: ")


@law(
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


@law("a tensor cut anywhere merges to the same bits", lambda method: method.scope in ("element", "row"), rough=True)
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
    assert same_bits(merged, expected), f"cut at {cuts[1:-1]}: {merged.tolist()}, not {expected.tolist()}"


@law(
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
            assert same_bits(single, listed), f"{name}={one}: {single.tolist()}; as a list: {listed.tolist()}"


@law("values that a parameter cannot take are refused by name, and so are inputs that do not fit")
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
        for value in (*wrong_values(parameter), *([[0.5] * (count + 1)] if parameter.per_source else [])):
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


@law("the fast twin gives the same numbers as the torch function", lambda method: method.lower is not None)
def _twin(method: Method, case: Case) -> None:
    assert method.lower is not None
    settled, _ = method.settle(case.parameters, len(case.tensors))
    shape, anchored = tuple(case.tensors[0].shape), case.base is not None
    program = method.lower(Setting(settled, len(case.tensors), "tensor", case.seed, shape, anchored))
    if program is None:  # torch alone knows how with these parameters
        return
    expected, merged = case.merge(method), run_program(program, case)
    assert (merged == expected).all(), f"the twin gives {merged.tolist()}, torch {expected.tolist()}"
