"""Singular directions from a Gram matrix, against a full decomposition in float64."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from eutectic.errors import MethodError
from eutectic.ops import spectrum as kernel
from eutectic.ops.spectrum import SpectrumCache, inverse, inverse_root, orthogonal, spectrum, with_values

F64 = torch.float64


def made(shape: tuple[int, int], values: np.ndarray, seed: int = 0) -> torch.Tensor:
    """A matrix with these singular values."""
    numbers = np.random.default_rng(seed)
    u, v = (np.linalg.qr(numbers.normal(size=(side, len(values))))[0] for side in shape)
    return torch.from_numpy(u * values @ v.T)


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (70, 70)])
@pytest.mark.parametrize("lowest", [-1, -3, -6.5])
def test_every_direction_is_that_of_a_full_decomposition(shape: tuple[int, int], lowest: float) -> None:
    values = np.logspace(0, lowest, min(shape))
    matrix = made(shape, values)
    u, s, v = spectrum(matrix)
    np.testing.assert_allclose(s.numpy(), values, rtol=1e-8)
    p, _, qt = np.linalg.svd(matrix.numpy(), full_matrices=False)
    np.testing.assert_allclose((u @ v.T).numpy(), p @ qt, atol=2e-8)
    for side in (u, v):
        np.testing.assert_allclose((side.T @ side).numpy(), np.eye(len(values)), atol=2e-8)
    peaks = u.gather(0, u.abs().argmax(0, keepdim=True)) if shape[0] <= shape[1] else v.gather(
        0, v.abs().argmax(0, keepdim=True)
    )  # fmt: skip
    assert (peaks > 0).all()


def test_the_largest_directions_alone() -> None:
    matrix = made((40, 30), np.logspace(0, -2, 30))
    whole, part = spectrum(matrix), spectrum(matrix, 7)
    assert part.s.shape == (7,)
    torch.testing.assert_close(part.u, whole.u[:, :7])
    torch.testing.assert_close(part.v, whole.v[:, :7])
    assert spectrum(matrix, 0).u.shape == (40, 0)


@pytest.mark.parametrize("rank", [0, 1, 5])
def test_a_matrix_of_low_rank_has_so_many_directions(rank: int) -> None:
    matrix = made((30, 20), np.linspace(2, 1, rank)) if rank else torch.zeros(30, 20, dtype=F64)
    u, s, v = spectrum(matrix)
    assert s.shape == (rank,)
    torch.testing.assert_close(u * s @ v.T, matrix)


def test_the_polar_factor_is_the_nearest_orthogonal_matrix() -> None:
    columns = torch.randn(40, 12, dtype=F64, generator=torch.Generator().manual_seed(1))
    u, _, vt = np.linalg.svd(columns.numpy(), full_matrices=False)
    np.testing.assert_allclose(orthogonal(columns).numpy(), u @ vt, atol=1e-12)


def test_columns_that_repeat_share_their_direction() -> None:
    unit = torch.eye(5, dtype=F64)[:, :2]
    torch.testing.assert_close(orthogonal(torch.cat((unit, unit), 1)), torch.cat((unit, unit), 1) / 2**0.5)
    assert inverse_root(torch.zeros(3, 0, dtype=F64)).shape == (0, 0)
    assert (inverse_root(torch.zeros(3, 2, dtype=F64)) == 0).all()


@pytest.mark.parametrize("shape", [(60, 90), (200, 150), (140, 140)])
@pytest.mark.parametrize("lowest", [-1, -3, -6.5])
def test_other_values_on_the_same_directions(shape: tuple[int, int], lowest: float) -> None:
    values = np.logspace(0, lowest, min(shape))
    matrix = made(shape, values)
    u, s, vt = np.linalg.svd(matrix.numpy(), full_matrices=False)
    np.testing.assert_allclose(with_values(matrix, torch.ones_like).numpy(), u @ vt, atol=2e-8)
    lifted = with_values(matrix, lambda s: s.clamp(min=s[7])).numpy()
    np.testing.assert_allclose(lifted, u * s.clip(min=s[7]) @ vt, atol=2e-8)


@pytest.mark.parametrize("rank", [0, 1, 5])
def test_other_values_keep_a_low_rank_and_see_no_value_of_zero(rank: int) -> None:
    values = np.full(rank, 2.0)  # one direction as large as the other
    matrix = made((30, 20), values) if rank else torch.zeros(30, 20, dtype=F64)
    seen: list[int] = []
    found = with_values(matrix, lambda s: seen.append(len(s)) or s + 1)
    np.testing.assert_allclose(found.numpy(), matrix.numpy() * 1.5, atol=1e-12)
    assert seen == [rank] * bool(rank)


def test_other_values_come_from_the_cache_and_change_no_bit() -> None:
    matrix = made((40, 60), np.logspace(0, -2, 40))
    alone = with_values(matrix, torch.sqrt)
    with SpectrumCache() as cache:
        assert all(torch.equal(with_values(matrix, torch.sqrt), alone) for _ in range(2))
        assert (cache.hits, cache.misses) == (1, 1)


@pytest.mark.parametrize("lowest", [-1, -3, -4.6, -9])
def test_an_inverse_leaves_out_what_is_below_the_cutoff(lowest: float) -> None:
    values = np.logspace(0, lowest, 40)
    matrix = made((40, 60), values)
    u, s, _ = np.linalg.svd(matrix.numpy())
    kept = np.where(s > 1e-5, 1 / s**2, 0)
    found = inverse(matrix @ matrix.T, 1e-10).numpy()
    np.testing.assert_allclose(found, u * kept @ u.T, atol=1e-4 * kept.max() ** 0.9)
    assert np.linalg.matrix_rank(found, tol=0.5) == (s > 1e-5).sum()


def test_worker_threads_do_not_change_a_bit() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        matrices = [torch.randn(150, 90, dtype=F64, generator=torch.Generator().manual_seed(s)) for s in range(6)]
        alone = [spectrum(matrix) for matrix in matrices]
        for workers in (2, 3):
            with ThreadPoolExecutor(workers) as pool:
                for one, other in zip(alone, pool.map(spectrum, matrices), strict=True):
                    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    finally:
        torch.set_num_threads(before)


def test_solvers_that_do_not_converge_are_followed_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = made((20, 30), np.linspace(3, 1, 20))
    expected = spectrum(matrix)

    def fails(gram: torch.Tensor) -> None:
        raise torch.linalg.LinAlgError("did not converge")

    for name in ("_by_eigh", "_by_gesdd"):
        monkeypatch.setattr(kernel, name, fails)
        found = spectrum(matrix)
        torch.testing.assert_close(found.u * found.s @ found.v.T, expected.u * expected.s @ expected.v.T)
    monkeypatch.setattr(kernel, "_by_gesvd", fails)
    with pytest.raises(MethodError, match=r"did not converge; did not converge; did not converge"):
        spectrum(matrix)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(MethodError, match="NaN or infinity"):
        spectrum(torch.full((2, 3), bad, dtype=F64))


def test_a_cache_keeps_what_fits_and_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    solved: list[int] = []
    plain: Callable[[torch.Tensor], kernel.Eigen] = kernel._by_eigh  # pyright: ignore
    monkeypatch.setattr(kernel, "_by_eigh", lambda gram: solved.append(len(gram)) or plain(gram))
    a, b = made((8, 12), np.linspace(3, 1, 8)), made((8, 12), np.linspace(3, 1, 8), seed=1)
    alone = spectrum(a, 3)
    one = 8 * (8 + 64)
    with SpectrumCache(one) as cache:
        first, again = spectrum(a), spectrum(a.clone(), 3)
        assert all(torch.equal(x, y) for x, y in zip(alone, again, strict=True))
        assert torch.equal(first.s[:3], again.s)
        assert (cache.hits, cache.misses, cache.nbytes) == (1, 1, one)
        spectrum(b)
        spectrum(a)
        assert (cache.hits, cache.misses, cache.nbytes) == (1, 3, one)
        spectrum(a.reshape(12, 8))  # the same numbers in another shape are another matrix
        assert cache.misses == 4
    assert (cache.nbytes, len(solved)) == (0, 5)
    with SpectrumCache(one - 1) as small:
        spectrum(a)
        assert small.nbytes == 0
