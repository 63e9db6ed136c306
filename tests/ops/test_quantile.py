"""Order statistics against a sort, on data with many ties and zeros."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eutectic.ops.quantile import find_bin, kept_count, largest, select, share_ties

numbers = st.lists(st.integers(0, 6), min_size=1, max_size=40).map(np.array)
densities = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))


def first_largest(magnitudes: np.ndarray, keep: int) -> np.ndarray:
    """Mask of the `keep` largest, ties to the lowest index: by a stable sort."""
    mask = np.zeros(len(magnitudes), dtype=bool)
    mask[np.argsort(-magnitudes.astype(np.float64), kind="stable")[:keep]] = True
    return mask


@given(densities, st.integers(0, 1000))
def test_kept_count_is_the_floor_but_never_nothing_of_something(density: float, numel: int) -> None:
    kept = kept_count(density, numel)
    assert 0 <= kept <= numel
    assert (kept == 0) == (density == 0 or numel == 0)
    if kept > 1:
        assert abs(kept - Fraction(density) * numel) < 1 + Fraction(1, 10**9)
    if density == 1:
        assert kept == numel


@given(numbers, st.data())
def test_find_bin_is_where_a_sort_ends(values: np.ndarray, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, len(values)))
    at, need = find_bin(np.bincount(values, minlength=7), keep)
    assert at == np.sort(values)[::-1][keep - 1]
    assert need == keep - np.count_nonzero(values > at)
    assert 1 <= need <= np.count_nonzero(values == at)


@pytest.mark.parametrize("keep", [0, -1])
def test_find_bin_of_nothing_lies_above_all(keep: int) -> None:
    assert find_bin(np.array([3, 2, 0]), keep) == (2, 0)


@given(st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=2), min_size=1, max_size=9), st.data())
def test_share_ties_gives_the_first_blocks_theirs(blocks: list[list[int]], data: st.DataObject) -> None:
    ties = np.array(blocks, dtype=np.int64)
    need = np.array([data.draw(st.integers(0, int(total))) for total in ties.sum(0)], dtype=np.int64)
    kept = np.minimum(share_ties(ties, need), ties)
    assert (kept.sum(0) == need).all()
    for source in range(2):
        owners = np.repeat(np.arange(len(ties)), ties[:, source])[: need[source]]
        assert (kept[:, source] == np.bincount(owners, minlength=len(ties))).all()


@given(numbers, st.data())
def test_select_keeps_what_a_sort_keeps(values: np.ndarray, data: st.DataObject) -> None:
    keep = data.draw(st.integers(0, len(values)))
    threshold, left = select(values.astype(np.uint32), keep)
    ties = values == threshold
    mask = (values > threshold) | (ties if left is None else ties & (np.cumsum(ties) <= left))
    expected = first_largest(values, keep)
    assert (mask[values > 0] == expected[values > 0]).all()  # zeros: keeping or dropping them is the same


@settings(max_examples=200)
@given(st.lists(st.integers(-4, 4), max_size=40), densities)
def test_largest_keeps_what_a_sort_keeps(values: list[int], density: float) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    expected = first_largest(np.abs(values), kept_count(density, len(values)))
    assert largest(tensor, density).tolist() == expected.tolist()


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (4, 3), (2, 3, 2)])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.5, 1.0])
def test_largest_keeps_exactly_k_of_any_shape(shape: tuple[int, ...], density: float) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    mask = largest(values, density)
    assert mask.shape == shape
    assert mask.sum() == kept_count(density, values.numel())


def test_largest_of_equal_entries_takes_the_first() -> None:
    assert largest(torch.ones(2, 4), 0.4).tolist() == [[True, True, True, False], [False] * 4]


def test_largest_is_no_part_of_a_gradient() -> None:
    values = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    (values * largest(values, 0.67)).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0, 1, 1]
