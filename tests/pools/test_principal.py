"""Principal directions of positions: Eckart and Young's error, exact at full rank, the size that the formula says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eutectic.pools import principal
from eutectic.pools.principal import coordinates, decompose, most_directions, product_errors, rebuild


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def rebuilt(rows: np.ndarray, p: int) -> np.ndarray:
    """All experts' rows from p directions, in float64."""
    found = decompose(torch.from_numpy(rows))
    directions = found.directions[:, :p]
    c = coordinates(torch.from_numpy(rows), found.mean, directions)
    return (found.mean + torch.einsum("npk,pkr->npr", c, directions)).numpy()


def errors(rows: np.ndarray, p: int) -> list[float]:
    """Σ_{k>p} s_k² of every position, from Gram matrices of centred rows."""
    found = []
    for at in range(rows.shape[1]):
        x = rows[:, at] - rows[:, at].mean(0)
        found.append(float(np.sort(np.linalg.eigvalsh(x @ x.T))[::-1][p:].sum()))
    return found


@pytest.mark.parametrize(("count", "width"), [(8, 16), (5, 3), (2, 4), (6, 1)])
def test_the_error_is_that_of_eckart_and_young(count: int, width: int) -> None:
    rows = drawn(count, 7, width)
    for p in range(most_directions(count, width) + 1):
        missed = ((rebuilt(rows, p) - rows) ** 2).sum((0, 2))
        np.testing.assert_allclose(missed, errors(rows, p), rtol=1e-10, atol=1e-12)
        left = (decompose(torch.from_numpy(rows)).s[:, p:] ** 2).sum(1)
        np.testing.assert_allclose(left.numpy(), errors(rows, p), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("count", "width"), [(8, 16), (5, 3), (1, 4), (9, 1)])
def test_at_full_rank_nothing_is_lost(count: int, width: int) -> None:
    rows = drawn(count, 5, width)
    p = most_directions(count, width)
    assert p == min(count - 1, width)
    np.testing.assert_allclose(rebuilt(rows, p), rows, rtol=1e-12, atol=1e-13)


def test_rows_that_repeat_and_rows_of_zeros_give_no_nan() -> None:
    rows = np.zeros((4, 3, 5))
    rows[:, 1] = drawn(5)
    rows[:, 2] = drawn(4, 1, seed=1) * drawn(5, seed=2)  # one direction of four
    for p in range(4):
        assert np.isfinite(rebuilt(rows, p)).all()
    np.testing.assert_allclose(rebuilt(rows, 1), rows, atol=1e-13)


def test_a_position_has_the_same_bits_in_any_company(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.from_numpy(drawn(6, 50, 4))
    whole = decompose(rows)
    monkeypatch.setattr(principal, "CHUNK", 7)
    for got, wanted in zip(decompose(rows), whole, strict=True):
        assert torch.equal(got, wanted)
    for got, wanted in zip(decompose(rows[:, 13:29]), whole, strict=True):
        assert torch.equal(got, wanted[13:29])
    c = coordinates(rows, whole.mean, whole.directions[:, :2])
    assert torch.equal(coordinates(rows[:, 3:9], whole.mean[3:9], whole.directions[3:9, :2]), c[:, 3:9])
    parts = [array.float().numpy() for array in (whole.mean, whole.directions[:, :2], c[1])]
    made = rebuild(*parts)
    np.testing.assert_array_equal(rebuild(*(part[20:31] for part in parts)), made[20:31])


def test_coordinates_make_up_for_what_rounding_does_to_the_directions() -> None:
    rows = torch.from_numpy(drawn(6, 40, 8))
    found = decompose(rows)
    mean, directions = found.mean.bfloat16(), found.directions[:, :3].bfloat16()
    best = coordinates(rows, mean, directions)
    plain = torch.einsum("npr,pkr->npk", rows - found.mean, found.directions[:, :3])

    def missed(c: torch.Tensor) -> float:
        return float((mean.double() + torch.einsum("npk,pkr->npr", c, directions.double()) - rows).square().sum())

    assert missed(best) < missed(plain)


def test_the_error_of_products_against_the_products() -> None:
    left, right, near = (
        torch.from_numpy(drawn(3, *shape, seed=at)) for at, shape in enumerate([(9, 4), (4, 7), (9, 4)])
    )
    moved = left + 0.1 * near, right * 1.01
    dense = ((moved[0] @ moved[1] - left @ right) ** 2).sum((1, 2))
    torch.testing.assert_close(product_errors(left, right, *moved), dense, rtol=1e-12, atol=0)
    assert product_errors(left, right, left, right).tolist() == [0, 0, 0]
    tiny = product_errors(left, right, left + 1e-9 * near, right)
    torch.testing.assert_close(tiny, 1e-18 * ((near @ right) ** 2).sum((1, 2)), rtol=1e-6, atol=0)


def test_what_is_kept_has_the_size_of_the_formula() -> None:
    n, r, p, positions = 8, 16, 2, 30
    found = decompose(torch.from_numpy(drawn(n, positions, r)))
    directions = found.directions[:, :p]
    c = coordinates(torch.from_numpy(drawn(n, positions, r)), found.mean, directions)
    kept = found.mean.numel() + directions.numel() + c.numel()
    assert kept / (n * positions * r) == (p * (r + n) + r) / (r * n) == 0.5


def test_one_coefficient_for_a_whole_factor_is_the_same_with_one_position() -> None:
    rows = drawn(5, 12, 3)
    whole = rows.reshape(5, 1, -1)
    for p in range(5):
        np.testing.assert_allclose(
            ((rebuilt(whole, p) - whole) ** 2).sum(), errors(whole, p)[0], rtol=1e-10, atol=1e-12
        )
        assert errors(whole, p)[0] >= sum(errors(rows, min(p, 3))) - 1e-9
