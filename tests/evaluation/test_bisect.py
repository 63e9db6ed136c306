"""Bisection: any planted run is found by few measurements; what is spread, elsewhere or no regression is said."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eutectic.evaluation.bisect import bisect_first, bisect_run


@st.composite
def planted(draw: st.DrawFn) -> tuple[int, int, list[float]]:
    """A run of layers with positive effects that sum up to 1; the others have none."""
    count = draw(st.integers(1, 80))
    start = draw(st.integers(0, count - 1))
    stop = draw(st.integers(start + 1, count))
    effects = draw(st.lists(st.floats(0.1, 1), min_size=stop - start, max_size=stop - start))
    return start, stop, [0.0] * start + [e / sum(effects) for e in effects] + [0.0] * (count - stop)


def most(count: int) -> int:
    return 2 * math.ceil(math.log2(count)) + 4 if count > 1 else 4


@given(planted())
def test_the_whole_run_is_found_where_all_of_it_is_asked_for(case: tuple[int, int, list[float]]) -> None:
    start, stop, effects = case
    found = bisect_run(len(effects), lambda removed: sum(effects[at] for at in removed), share=1.0)
    assert (found.start, found.stop) == (start, stop) and found.restored == pytest.approx(1)
    assert found.rest == 0 and len(found.probes) <= most(len(effects))
    assert found.verdict == ("found" if stop - start <= max(1, len(effects) // 2) else "spread")


@given(planted(), st.floats(0.05, 1))
def test_what_is_found_restores_the_share_and_nothing_less_does(
    case: tuple[int, int, list[float]], share: float
) -> None:
    start, stop, effects = case
    found = bisect_run(len(effects), lambda removed: sum(effects[at] for at in removed), share)
    assert start <= found.start < found.stop <= stop
    assert found.restored >= share - 1e-6
    for shorter in (range(found.start + 1, found.stop), range(found.start, found.stop - 1)):
        assert sum(effects[at] for at in shorter) < share


def test_one_of_many_layers() -> None:
    found = bisect_run(64, lambda removed: 0.9 * (41 in removed))
    assert (found.verdict, found.start, found.stop) == ("found", 41, 42) and len(found.probes) <= 14


def test_a_cause_that_is_spread() -> None:
    """All layers alike: half of them restores half, and so does the other half."""
    found = bisect_run(16, lambda removed: len(removed) / 16)
    assert found.verdict == "spread" and found.stop - found.start == 8 and found.rest == 0.5
    far = bisect_run(16, lambda removed: ((2 in removed) + (13 in removed)) / 2, share=1.0)
    assert far.verdict == "spread" and (far.start, far.stop) == (2, 14)


def test_a_cause_that_is_not_in_these_layers() -> None:
    found = bisect_run(8, lambda removed: 0.1)
    assert found.verdict == "elsewhere" and found.restored == 0.1 and len(found.probes) == 1


@given(st.integers(1, 200), st.data())
def test_the_first_that_regresses(count: int, data: st.DataObject) -> None:
    culprit = data.draw(st.integers(0, count - 1))
    found = bisect_first(count, lambda k: k > culprit)
    assert (found.verdict, found.at) == ("found", culprit)
    assert len(found.probes) <= math.ceil(math.log2(count)) + 2 if count > 1 else 2


def test_no_first() -> None:
    assert bisect_first(5, lambda k: False).verdict == "never"
    assert bisect_first(5, lambda k: True).verdict == "before"
    assert bisect_first(5, lambda k: True, fewest=1).at == 1
