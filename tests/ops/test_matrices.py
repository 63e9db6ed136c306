"""What counts as a matrix, and merging matrix by matrix."""

from __future__ import annotations

import pytest
import torch

from eutectic.ops.matrices import Deltas, matrix_bytes, matrix_shape, merge_matrices


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((), None),
        ((7,), None),
        ((0, 4), None),
        ((3, 4), (1, 3, 4)),
        ((6, 5, 8), (1, 6, 40)),
        ((6, 5, 9), (6, 5, 9)),
        ((6, 5, 3, 3), (1, 6, 45)),
    ],
)
def test_matrix_shape(shape: tuple[int, ...], expected: tuple[int, int, int] | None) -> None:
    assert matrix_shape(shape) == expected


def test_a_stack_is_merged_matrix_by_matrix_and_a_kernel_as_one() -> None:
    seen: list[tuple[int, ...]] = []

    def combine(deltas: Deltas) -> torch.Tensor:
        seen.append(tuple(deltas.base.shape))
        return deltas.total()

    for shape in ((2, 3, 9), (2, 3, 4), (2, 3, 2, 2)):
        base, a, b = (torch.randn(shape, generator=torch.Generator().manual_seed(at)) for at in range(3))
        merged = merge_matrices([a, b], base, [0.5, -2.0], 0.25, combine)
        expected = base.double() + 0.25 * (0.5 * (a.double() - base.double()) - 2 * (b.double() - base.double()))
        torch.testing.assert_close(merged, expected)
    assert seen == [(3, 9), (3, 9), (2, 12), (2, 12)]


def test_what_is_no_matrix_takes_the_mean() -> None:
    merged = merge_matrices([torch.ones(3), torch.full((3,), 4.0)], torch.zeros(3), [1.0, 0.5], 2.0, Deltas.total)
    torch.testing.assert_close(merged, torch.full((3,), 3.0, dtype=torch.float64))


def test_bytes_are_those_of_the_largest_matrix_and_the_result() -> None:
    assert matrix_bytes((10, 20), whole=2, square=3) == 8 * (2 * 200 + 3 * 100) + 8 * 200
    assert matrix_bytes((4, 10, 20), whole=2, square=3) == 8 * (2 * 200 + 3 * 100) + 48 * 800
    assert matrix_bytes((10,), whole=2, square=3) == 0
