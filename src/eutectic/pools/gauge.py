"""The same change by other factors: L R = (L G) (G^-1 R) for any invertible G, and which G makes experts alike.

`balanced`: L = U √S and R = √S V' of the singular value decomposition of L R. `aligned`: balanced, then turned by the
orthogonal Q_i that bring [L_i Q_i, R_i' Q_i] nearest to the mean of all experts, in turns (generalised Procrustes
analysis, Gower 1975), from the largest expert on. Training starts that differ turn experts against one another; what is
left after alignment is what they learned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eutectic.ops.lowrank import factors, product_svd

if TYPE_CHECKING:
    import torch

    Factors = tuple[torch.Tensor, torch.Tensor]
    """L [n, outputs, r] and R [n, r, inputs] in float64."""

__all__ = ["GAUGES", "aligned", "balanced", "turned_to"]

ROUNDS = 500  # of alignment to the mean, at most
SETTLED = 1e-9  # entries of the turns that move less are at rest


def balanced(left: torch.Tensor, right: torch.Tensor) -> Factors:
    """Factors whose columns and rows are the singular directions, falling, of each column the largest entry positive;
    zeros beyond the rank.

    >>> import torch
    >>> left, right = balanced(torch.tensor([[[8.0], [0.0]]]), torch.tensor([[[0.0, 2.0]]]))
    >>> (left @ right).tolist(), float(left.norm()), float(right.norm())
    ([[[0.0, 16.0], [0.0, 0.0]]], 4.0, 4.0)
    """
    import torch

    sides = torch.zeros_like(left, dtype=torch.float64), torch.zeros_like(right, dtype=torch.float64)
    for at in range(len(left)):
        u, s, v = product_svd(left[at], right[at])
        sign = torch.where(u.gather(0, u.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0)
        found = factors(u * sign, s, v * sign)
        sides[0][at, :, : found[0].shape[1]], sides[1][at, : found[1].shape[0]] = found
    return sides


def aligned(left: torch.Tensor, right: torch.Tensor) -> Factors:
    """Balanced factors, turned towards one another.

    Q_i' [L_i; R_i']' mean = sum_j Q_i' S_ij Q_j / n needs only the small S_ij = L_i' L_j + R_i R_j'.

    >>> import torch
    >>> turn = torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
    >>> left, right = torch.tensor([[3.0, 0], [0, 1], [0, 0]]), torch.tensor([[1.0, 0, 0], [0, 2, 0]])
    >>> a, b = aligned(torch.stack((left, left @ turn)), torch.stack((right, turn.T @ right)))
    >>> torch.allclose(a[0], a[1], atol=1e-6), torch.allclose(b[0], b[1], atol=1e-6)
    (True, True)
    """
    import torch

    left, right = balanced(left, right)
    both = torch.cat((left, right.transpose(1, 2)), 1)  # [n, outputs + inputs, r]
    cross = torch.stack([one.T @ both for one in both])  # [n, n, r, r]
    largest = int(cross.diagonal(dim1=2, dim2=3).sum(2).diagonal().argmax())
    turns = _nearest_turn(cross[:, largest])
    for _ in range(ROUNDS):
        before, turns = turns, _nearest_turn((cross @ turns).sum(1))
        if float((turns - before).abs().max()) < SETTLED:
            break
    return left @ turns, turns.transpose(1, 2) @ right


def _nearest_turn(matrices: torch.Tensor) -> torch.Tensor:
    """The orthogonal matrix nearest to each [n, r, r]."""
    import torch

    u, _, vh = torch.linalg.svd(matrices)
    return u @ vh


GAUGES = {"stored": lambda left, right: (left.double(), right.double()), "balanced": balanced, "aligned": aligned}


def turned_to(gauge: str, left: torch.Tensor, right: torch.Tensor, target: torch.Tensor) -> Factors:
    """More experts in the gauge of others whose mean is `target` [outputs + inputs, r]."""
    import torch

    if gauge != "aligned":
        return GAUGES[gauge](left, right)
    left, right = balanced(left, right)
    turns = _nearest_turn(torch.cat((left, right.transpose(1, 2)), 1).transpose(1, 2) @ target.double())
    return left @ turns, turns.transpose(1, 2) @ right
