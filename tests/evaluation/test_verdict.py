"""Verdicts in words: which parts run together, how coefficients change, what each kind is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from eutectic.evaluation.coefficients import Fit, Together
from eutectic.evaluation.trace import Part, Trace
from eutectic.evaluation.verdict import changes_by_layer, runs_of, verdict


def fitted(*coefficients: float | None, **changes: object) -> Fit:
    errors = tuple(None if c is None else 1e-6 for c in coefficients)
    made = Fit(coefficients, errors, (), 1.0, 0.25, 40.0, 100, False, np.zeros(len(coefficients)))
    return replace(made, **changes)  # pyright: ignore[reportArgumentType]


def part(label: str, *coefficients: float | None) -> Part:
    return Part(label, (f"{label}.w",), fitted(*coefficients), True)


def traced(kind: str, whole: Fit, layers: Sequence[Part] = (), **changes: object) -> Trace:
    names = ("base", "a", "b")[: len(whole.coefficients)]
    shares = tuple(0.0 for _ in names)
    made = Trace(names, True, kind, whole.free, (), whole, tuple(layers), tuple(layers), shares, 100, 0, {}, None)
    return replace(made, **changes)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("whole", "words"),
    [
        (fitted(0.25, 0.4, 0.35), "task arithmetic on base with weights a 0.4000, b 0.3500"),
        (fitted(0.0, 0.4, 0.6), "linear merge with weights a 0.4000, b 0.6000"),
        (fitted(0.0, 0.4, 0.7, free=True), "linear merge with weights a 0.4000, b 0.7000, not normalised"),
        (fitted(0.0, None, None, together=(Together((1, 2), 1.0),)), "merge with weights a or b together 1.0000"),
        (fitted(0.0, None, None, together=(Together((1, 2), None),)), "a or b (not identified)"),
    ],
)  # fmt: skip
def test_linear(whole: Fit, words: str) -> None:
    assert words in verdict(traced("linear", whole))


def test_without_a_base_a_negative_weight_reads_as_task_arithmetic() -> None:
    found = traced("linear", fitted(-0.5, 0.8, 0.7), based=False)
    assert verdict(found).endswith("; the same as task arithmetic on base")


def test_equal_and_not_linear() -> None:
    assert verdict(traced("equal", fitted(0.0, 1.0), equal_to=("a", "b"))) == "equal to a and to b"
    words = verdict(traced("not_linear", fitted(0.2, 0.4, 0.4)))
    assert words == "not linear in these candidates: the best coefficients leave 40.0 times what rounding explains, " \
        "and 25.0% of the change"  # fmt: skip


def test_runs_are_neighbours_of_one_stack() -> None:
    rows = [part(f"h.{i}", 0.0, w, 1 - w) for i, w in enumerate([0.2, 0.2, 0.8, 0.2])]
    rows += [part("v.0", 0.0, 0.2, 0.8), replace(part("norm", 0.0, 0.2, 0.8), tensors=("norm",))]
    assert [[p.label for p in run] for run in runs_of(rows)] == [["h.0", "h.1"], ["h.2"], ["h.3"], ["v.0"], ["norm"]]


@pytest.mark.parametrize(
    ("weights", "change"),
    [
        ([1.0, 1.0, 0.0, 0.0], "slices"),
        ([0.2, 0.2, 0.8, 0.8], "steps"),
        ([0.2, 0.4, 0.6, 0.8], "gradient"),
    ],
)
def test_how_coefficients_change(weights: list[float], change: str) -> None:
    layers = [part(f"h.{i}", 0.0, w, 1 - w) for i, w in enumerate(weights)]
    found = traced("linear_by_layer", fitted(0.0, 0.5, 0.5), layers)
    assert changes_by_layer(found) == change
    low, high = min(weights), max(weights)
    assert f"({change}): a {low:.4f} to {high:.4f}, b" in verdict(found)
