"""Gauges: the change stays, what it is written as does not depend on how it came, and starts that differ are undone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eutectic.pools.gauge import GAUGES
from eutectic.pools.principal import decompose, product_errors


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("gauge", GAUGES)
@pytest.mark.parametrize("shape", [(9, 7, 3), (4, 20, 4), (2, 9, 4), (9, 3, 5)])
def test_the_change_stays(gauge: str, shape: tuple[int, int, int]) -> None:
    m, n, r = shape
    left, right = drawn(4, m, r), drawn(4, r, n, seed=1)
    left[1, :, 1:] = 0  # of rank one
    left[2] = 0
    a, b = GAUGES[gauge](left, right)
    assert a.shape == left.shape
    assert b.shape == right.shape
    torch.testing.assert_close(a @ b, left @ right, rtol=1e-10, atol=1e-10)


def near_optimum(left: torch.Tensor, right: torch.Tensor, p: int, gauge: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The changes rebuilt from p directions, and their squared errors."""
    a, b = GAUGES[gauge](left, right)
    rows = torch.cat((a, b.transpose(1, 2)), 1)
    found = decompose(rows)
    directions = found.directions[:, :p]
    near = found.mean + torch.einsum("npr,pkr,pks->nps", rows - found.mean, directions, directions)
    m = left.shape[1]
    sides = near[:, :m], near[:, m:].transpose(1, 2)
    return sides[0] @ sides[1], product_errors(a, b, *sides)


@pytest.mark.parametrize("gauge", ["balanced", "aligned"])
def test_factors_of_the_same_changes_give_the_same_result(gauge: str) -> None:
    left, right, turn = drawn(5, 12, 4), drawn(5, 4, 10, seed=1), drawn(5, 4, 4, seed=2) + 3 * torch.eye(4)
    known, error = near_optimum(left, right, 2, gauge)
    again, other = near_optimum(left @ turn, torch.linalg.solve(turn, right), 2, gauge)
    torch.testing.assert_close(again, known, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(other, error, rtol=1e-8, atol=1e-10)


def test_alignment_undoes_turns_and_balancing_alone_helps_less() -> None:
    core, wide = drawn(12, 4), drawn(4, 10, seed=1)
    turns = torch.linalg.qr(drawn(6, 4, 4, seed=2))[0]
    left = torch.stack([(core + 0.2 * drawn(12, 4, seed=10 + i)) @ turn for i, turn in enumerate(turns)])
    right = torch.stack([turn.T @ (wide + 0.2 * drawn(4, 10, seed=20 + i)) for i, turn in enumerate(turns)])
    error = {gauge: float(near_optimum(left, right, 1, gauge)[1].sum()) for gauge in GAUGES}
    assert error["aligned"] < error["balanced"]
    assert error["aligned"] < 0.1 * error["stored"]
