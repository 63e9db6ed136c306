"""Truncated decompositions: as good as the best of their rank, shared into factors, cut at an error."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eutectic.ops.lowrank import factors, numerical_rank, product_svd, rank_for, truncated_svd


@pytest.mark.parametrize("shape", [(300, 400), (400, 300), (20, 90)])
def test_the_factors_are_the_best_of_their_rank(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape) @ torch.diag(torch.linspace(1, 0.01, shape[1]) ** 4)
    u, s, v = truncated_svd(matrix, 12, name="x")
    left = float((matrix.double() - (u * s).double() @ v.double().T).norm())
    best = float(torch.linalg.svdvals(matrix.double())[12:].norm())
    assert best <= left <= best * 1.005
    assert torch.equal(truncated_svd(matrix, 12, name="x")[0], u)
    torch.testing.assert_close(u.T @ u, torch.eye(12), atol=1e-5, rtol=0)


def test_factors_share_the_singular_values() -> None:
    matrix = torch.randn(9, 5, generator=torch.Generator().manual_seed(1))
    b, a = factors(*truncated_svd(matrix, 5))
    assert b.shape == (9, 5) and a.shape == (5, 5) and a.is_contiguous()
    torch.testing.assert_close(b @ a, matrix, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(b.norm(dim=0), a.norm(dim=1))


@pytest.mark.parametrize("most", [0.0, 0.1, 0.5, 1.0])
def test_the_smallest_rank_within_an_error(most: float) -> None:
    s = torch.tensor([5.0, 3.0, 1.0, 0.5])
    square = float((s.double() ** 2).sum())
    errors = [float(((s[rank:].double() ** 2).sum() / square).sqrt()) for rank in range(1, 5)]
    assert rank_for(s, square, most) == next(rank for rank, error in enumerate(errors, 1) if error <= most)
    assert rank_for(s[:2], square, 0.1) is None


def test_a_product_is_decomposed_from_its_factors() -> None:
    """Equal to the decomposition of the product itself, for any shape of the factors."""
    random = np.random.default_rng(3)
    for rows, k, columns in ((50, 4, 30), (6, 9, 40), (40, 9, 6), (5, 20, 7), (1, 3, 1)):
        left, right = random.normal(size=(rows, k)), random.normal(size=(k, columns))
        u, s, v = product_svd(torch.from_numpy(left), torch.from_numpy(right))
        wanted = np.linalg.svd(left @ right, compute_uv=False)[: len(s)]
        np.testing.assert_allclose(s.numpy(), wanted, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose((u * s @ v.T).numpy(), left @ right, rtol=1e-10, atol=1e-10)


def test_the_rank_of_factors_that_say_the_same_twice() -> None:
    random = np.random.default_rng(4)
    left, right = random.normal(size=(40, 3)), random.normal(size=(3, 30))
    doubled = torch.from_numpy(np.hstack([left, -2 * left])), torch.from_numpy(np.vstack([right, right]))
    assert numerical_rank(product_svd(*doubled)[1], 40) == 3
    assert numerical_rank(torch.zeros(4, dtype=torch.float64), 40) == 0
