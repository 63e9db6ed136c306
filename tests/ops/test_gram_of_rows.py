"""Gram matrices by blocks and inverses by Cholesky, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eutectic.ops.gram import ROWS, gram, well_conditioned_inverse

F64 = torch.float64


@pytest.mark.parametrize("rows", [0, 1, ROWS, ROWS + 1, 3 * ROWS - 1])
@pytest.mark.parametrize("columns", [1, 70])
def test_it_is_the_product(rows: int, columns: int) -> None:
    matrix = torch.randn(rows, columns, dtype=F64, generator=torch.Generator().manual_seed(rows))
    for one in (matrix, matrix.T.contiguous().T):  # whatever the order in memory
        found = gram(one)
        np.testing.assert_allclose(found.numpy(), matrix.numpy() @ matrix.numpy().T, rtol=1e-12, atol=1e-12)
        assert found.shape == (rows, rows)


def symmetric(values: np.ndarray) -> torch.Tensor:
    """A symmetric matrix with these eigenvalues."""
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(len(values), len(values))))[0]
    found = q * values @ q.T
    return torch.from_numpy((found + found.T) / 2)


@pytest.mark.parametrize("lowest", [0.5, 1e-3, 1e-6])
def test_an_inverse_of_full_rank(lowest: float) -> None:
    matrix = symmetric(np.geomspace(1, lowest, 30))
    found = well_conditioned_inverse(matrix, 1e-10)
    assert found is not None
    expected = np.linalg.inv(matrix.numpy())
    assert np.linalg.norm(found.numpy() - expected) < 1e-9 * np.linalg.norm(expected)


@pytest.mark.parametrize("values", [
    [1.0, 1e-9], [1.0, 0.0], [0.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [float("inf"), 1.0], [1e-320, 1e-320],
])  # fmt: skip
def test_nothing_where_the_rank_is_in_doubt(values: list[float]) -> None:
    assert well_conditioned_inverse(torch.diag(torch.tensor(values, dtype=F64)), 1e-10) is None


def test_the_cutoff_of_the_caller_counts_too() -> None:
    matrix = symmetric(np.geomspace(1, 1e-5, 30))
    assert well_conditioned_inverse(matrix, 1e-4) is None
    assert well_conditioned_inverse(matrix, 1e-10) is not None
