"""How a method is declared, called and refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
import torch

import eutectic
from eutectic.errors import MethodError
from eutectic.methods import BUILT_IN, get_method
from eutectic.methods.method import Method, PerSource, Range, each, merge_method


@merge_method(base="required", space="delta", paper={"shift": 2}, ignored=("int8_mask",))
def sample(
    tensors,
    *,
    base: torch.Tensor,
    weight: Annotated[PerSource[float], Range(0, 4), "share of each"] = each(1.0),
    lambda_: Annotated[float, "scale"] = 1.0,
    shift: Annotated[int, Range(0, 9), "whole steps"] = 0,
    flip: bool = False,
    kind: Annotated[bool | Literal["soft", "hard"], "how"] = False,
):
    """A sample.

    More words.
    """
    total = sum(w * (t - base) for w, t in zip(weight, tensors, strict=True))
    return base + lambda_ * total * (-1 if flip else 1) + shift


def call(**parameters: Any) -> torch.Tensor:
    return sample([torch.ones(2), torch.full((2,), 3.0)], base=torch.zeros(2), **parameters)


def test_the_signature_is_the_declaration() -> None:
    assert sample.name == "sample"
    assert sample.summary == "A sample."
    assert list(sample.parameters) == ["weight", "lambda", "shift", "flip", "kind"]
    weight, scale, shift, flip, kind = sample.parameters.values()
    assert (weight.per_source, weight.range, weight.types) == (True, Range(0, 4), (float,))
    assert (scale.python, scale.default, scale.meaning) == ("lambda_", 1.0, "scale")
    assert (shift.types, str(shift.range), flip.types) == ((int,), "0 to 9", (bool,))
    assert (kind.types, kind.choices) == ((bool,), ("soft", "hard"))
    assert not any(p.required for p in sample.parameters.values())


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, 4.0),
        ({"weight": 0.5}, 2.0),
        ({"weight": [1, 0]}, 1.0),
        ({"weight": (0, 1)}, 3.0),
        ({"lambda_": 2}, 8.0),
        ({"lambda": 2}, 8.0),
        ({"shift": 3, "flip": True, "kind": "soft"}, -1.0),
        ({"int8_mask": True}, 4.0),
    ],
)
def test_calls(parameters: dict[str, Any], expected: float) -> None:
    assert call(**parameters).tolist() == [expected, expected]


@pytest.mark.parametrize(
    ("parameters", "clause"),
    [
        ({"wieght": 1.0}, "wieght: sample has no parameter 'wieght'; did you mean 'weight'?"),
        ({"weight": [1.0]}, "weight: has 1 values for 2 sources"),
        ({"weight": [1.0, 9.0]}, "weight: must lie in 0 to 4, not 9"),
        ({"weight": float("nan")}, "weight: must be finite, not nan"),
        ({"lambda_": True}, "lambda: must be a number, not True"),
        ({"lambda_": "big"}, "lambda: must be a number, not 'big'"),
        ({"shift": 0.5}, "shift: must be a whole number, not 0.5"),
        ({"shift": 10}, "shift: must lie in 0 to 9, not 10"),
        ({"flip": 1}, "flip: must be true or false, not 1"),
        ({"kind": "sfot"}, "kind: must be true or false or 'soft' or 'hard', not 'sfot'"),
    ],
)
def test_faults(parameters: dict[str, Any], clause: str) -> None:
    with pytest.raises(MethodError) as caught:
        call(**parameters)
    assert clause in str(caught.value)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(MethodError) as caught:
        call(weight=[9.0, 1.0], flip="no", other=1)
    assert len(caught.value.problems) == 3


def test_semantics_of_the_paper_change_defaults_only() -> None:
    assert sample.settle({}, 1, "paper")[0]["shift"] == 2
    assert sample.settle({"shift": 1}, 1, "paper")[0]["shift"] == 1
    assert sample.settle({}, 1)[0]["shift"] == 0


@pytest.mark.parametrize("name", BUILT_IN)
def test_defaults_are_valid_in_both_semantics(name: str) -> None:
    method = get_method(name)
    required = {p.name: 0.5 for p in method.parameters.values() if p.required}
    for semantics in ("mergekit", "paper"):
        settled, faults = method.settle(required, 2, semantics)
        assert not faults
        assert settled.keys() == method.parameters.keys()
    assert set(method.paper) <= set(method.parameters)
    assert not set(method.ignored) & set(method.parameters)


def test_tensors_that_do_not_fit() -> None:
    one, two = torch.zeros(2), torch.zeros(3)
    with pytest.raises(MethodError, match="one shape"):
        sample([one, two], base=one)
    with pytest.raises(MethodError, match="one shape"):
        sample([one], base=two)
    with pytest.raises(MethodError, match="needs a base"):
        sample([one])
    with pytest.raises(MethodError, match="at least 1 source, not 0"):
        sample([], base=one)
    with pytest.raises(MethodError, match="exactly 2 sources, not 3"):
        eutectic.list_methods()["slerp"]([one, one, one], t=0.5)


def test_results_take_the_first_tensors_type() -> None:
    narrow = torch.ones(2, dtype=torch.bfloat16)
    assert sample([narrow], base=torch.zeros(2)).dtype == torch.bfloat16
    assert sample([torch.ones(2, dtype=torch.float64)], base=narrow).dtype == torch.float64


@pytest.mark.parametrize("name", BUILT_IN)
def test_help_shows_the_functions_own_words(name: str) -> None:
    method = get_method(name)
    assert method.__doc__ == method.function.__doc__
    assert method.summary


@pytest.mark.parametrize(("asked", "clause"), [("tise", "did you mean 'ties'"), ("zzz", "list methods")])
def test_unknown_names(asked: str, clause: str) -> None:
    with pytest.raises(MethodError, match=clause):
        get_method(asked)


def test_declarations_that_are_refused() -> None:
    def untyped(tensors, *, weight=1.0):
        return tensors[0]

    def odd(tensors, *, weight: dict = {}):  # noqa: B006
        return tensors[0]

    with pytest.raises(MethodError, match=r"untyped\(..., weight\): give it a type"):
        merge_method()(untyped)
    with pytest.raises(MethodError, match="is not a parameter type"):
        merge_method()(odd)
    with pytest.raises(MethodError, match="sparsifies leaves entries of deltas out, so it needs"):
        merge_method(name="odd", sparsifies=True)(lambda tensors: tensors[0])
    with pytest.raises(MethodError, match="unknown fact 'symetric'; did you mean 'symmetric'"):
        merge_method(symetric=True)(lambda tensors: tensors[0])


def test_facts_are_consistent() -> None:
    for method in eutectic.list_methods().values():
        assert isinstance(method, Method)
        assert (method.space == "delta") <= (method.base == "required")
        assert method.sparsifies <= (method.base == "required")
        assert method.stochastic <= (not method.symmetric)
        assert method.sources[1] is None or method.sources[0] <= method.sources[1]
