"""Low-rank parts of several experts, mixed anew for each sample of a batch; no sample's weights are ever formed.

    y_i = x_i W + Σ_t g_it (x_i A_t) B_t

Where samples use several experts it is one product with all factors side by side: (x [A_1 .. A_T]) ⊙ g, times the B_t
one below the other. Where each uses one expert, the samples of an expert are taken together, and cost what one expert
costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Rows = slice | torch.Tensor

__all__ = ["Gates", "add_grouped_lowrank", "add_mixed"]

WORTH = 1 << 24  # multiplications that grouping must save before it is faster than one product (measured)


class Gates:
    """How much of each expert each sample takes: weights [n, T].

    `groups` are the samples of each expert, where no sample takes more than one: ``(expert, rows)``, rows that lie
    together as a slice; None where samples mix experts.

    >>> import torch
    >>> Gates(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.5], [0.0, 0.0]])).groups
    [(0, slice(0, 2, None)), (1, slice(2, 3, None))]
    """

    def __init__(self, weights: torch.Tensor) -> None:
        self.weights = weights
        self.groups: list[tuple[int, Rows]] | None = None
        taken = weights != 0
        if int(taken.sum(1).max()) <= 1:
            self.groups = [
                (at, _together(rows)) for at in range(weights.shape[1]) if len(rows := taken[:, at].nonzero())
            ]

    def __len__(self) -> int:
        return len(self.weights)

    def like(self, hidden: torch.Tensor, axis: int) -> torch.Tensor:
        """The weights shaped to scale `hidden` [n, ..., T, r] or [n, T, r, ...], whose `axis` counts the experts."""
        n, count = self.weights.shape
        return self.weights.reshape(n, *(count if at == axis else 1 for at in range(1, hidden.ndim)))

    def mixed(self, vectors: torch.Tensor) -> torch.Tensor:
        """Σ_t g_it v_t: [T, d] -> [n, d]."""
        return self.weights @ vectors


def add_grouped_lowrank(
    out: torch.Tensor, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, gates: Gates
) -> torch.Tensor:
    """`out` [n, ..., q] with Σ_t g_t (x A_t) B_t added in place.

    x [n, ..., p]; down [p, T r] = [A_1 .. A_T]; up [T r, q] = [B_1; ..; B_T].

    >>> import torch
    >>> x, gates = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), Gates(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    >>> down, up = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0], [10.0]])
    >>> add_grouped_lowrank(torch.zeros(2, 1), x, down, up, gates).tolist()
    [[1.0], [21.5]]
    """
    count = gates.weights.shape[1]
    tokens = x.numel() // x.shape[-1]
    saved = tokens * (count - 1) * (down.numel() + up.numel()) // count
    if gates.groups is None or saved < WORTH:
        return add_mixed(out, x @ down, up, gates)
    rank = down.shape[1] // count
    for at, rows in gates.groups:
        part = slice(at * rank, (at + 1) * rank)
        hidden = x[rows] @ down[:, part]
        hidden *= gates.weights[rows, at].reshape(-1, *(1,) * (hidden.ndim - 1))
        if isinstance(rows, slice):  # in place, without a copy
            out[rows].view(-1, out.shape[-1]).addmm_(hidden.view(-1, rank), up[part])
        else:
            out[rows] += hidden @ up[part]
    return out


def add_mixed(out: torch.Tensor, hidden: torch.Tensor, up: torch.Tensor, gates: Gates) -> torch.Tensor:
    """`out` [n, ..., q] with Σ_t g_t h_t B_t added in place: hidden [n, ..., T r] = [h_1 .. h_T], up [T r, q]."""
    apart = hidden.unflatten(-1, (gates.weights.shape[1], -1))
    scaled = (apart * gates.like(apart, apart.ndim - 2)).flatten(-2)
    out.view(-1, out.shape[-1]).addmm_(scaled.reshape(-1, scaled.shape[-1]), up)
    return out


def _together(rows: torch.Tensor) -> Rows:
    """Rows in rising order as a slice, if none between them is left out."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows[:, 0]
