"""The best approximation of a matrix by one of low rank: from random projections, or exactly from its own factors.

D ~ U diag(s) V': Q spans the range of (D D')^q D Omega for a random Omega with rank + OVERSAMPLING columns; then the
small matrix Q'D is decomposed exactly. Halko, Martinsson, Tropp 2011 (arXiv 0909.4061), algorithms 4.4 and 5.1. Where
the matrix has hardly more columns than that, it is decomposed itself.

D = L R is known by factors L [m, k] and R [k, n]: L = Q S and R' = P T, so D = Q (S T') P', and the small S T' has the
singular values of D. All of it in float64; the matrix [m, n] is never formed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eutectic.ops.random import draw_key, philox_words

if TYPE_CHECKING:
    import torch

    Decomposition = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

__all__ = ["factors", "numerical_rank", "product_svd", "rank_for", "truncated_svd"]

OVERSAMPLING = 16
ITERATIONS = 2  # q: for the slowly falling spectra of weight changes


def truncated_svd(
    matrix: torch.Tensor, rank: int, *, name: str = ""
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U [m, r], s [r] falling, V [n, r] of a float32 matrix [m, n], r = min(rank, m, n); the same for the same name.

    >>> import torch
    >>> left, right = torch.ones(6, 1), torch.arange(4.0).reshape(1, 4)
    >>> u, s, v = truncated_svd(left @ right, 2)
    >>> torch.allclose(u @ torch.diag(s) @ v.T, left @ right, atol=1e-5)
    True
    """
    import torch

    rank, columns = min(rank, *matrix.shape), rank + OVERSAMPLING
    if 3 * columns >= min(matrix.shape):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank], s[:rank], vh[:rank].T
    n = matrix.shape[1]
    words = philox_words(draw_key(0, name, 0), 0, n * columns)
    omega = torch.where(words < 1 << 31, 1.0, -1.0).reshape(n, columns)  # signs: as good as normal numbers here
    q = torch.linalg.qr(matrix @ omega)[0]
    for _ in range(ITERATIONS):
        z = torch.linalg.qr(matrix.T @ q)[0]
        q = torch.linalg.qr(matrix @ z)[0]
    v, small = torch.linalg.qr(matrix.T @ q)  # (Q'D)' = V' R
    a, s, bh = torch.linalg.svd(small.T.double())
    return (q.double() @ a)[:, :rank].float(), s[:rank].float(), (v.double() @ bh.T)[:, :rank].float()


def product_svd(left: torch.Tensor, right: torch.Tensor) -> Decomposition:
    """U [m, j], s [j] falling, V [n, j] with U diag(s) V' = left [m, k] right [k, n] and j = min(m, k, n); float64.

    >>> import torch
    >>> u, s, v = product_svd(torch.tensor([[3.0], [4.0]]), torch.tensor([[0.0, 2.0, 0.0]]))
    >>> torch.allclose(s, torch.tensor([10.0]).double()), u.shape, v.shape
    (True, torch.Size([2, 1]), torch.Size([3, 1]))
    """
    import torch

    q, small = torch.linalg.qr(left.double())
    p, other = torch.linalg.qr(right.double().T)
    a, s, bh = torch.linalg.svd(small @ other.T, full_matrices=False)
    return q @ a, s, p @ bh.T


def numerical_rank(s: torch.Tensor, most: int) -> int:
    """How many falling float64 singular values of a matrix of `most` rows or columns lie above rounding.

    >>> import torch
    >>> numerical_rank(torch.tensor([2.0, 1.0, 1e-17]).double(), 100)
    2
    """
    import torch

    return int((s > s.max() * most * torch.finfo(torch.float64).eps).sum()) if len(s) else 0


def factors(u: torch.Tensor, s: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """B [m, r] and A [r, n] with B A = U diag(s) V', the singular values shared evenly between them."""
    root = s.sqrt()
    return u * root, (v * root).T.contiguous()


def rank_for(s: torch.Tensor, square: float, most: float) -> int | None:
    """The smallest rank whose relative error sqrt(1 - sum of s_i^2 / |D|^2) is at most `most`; None if `s` ends before.

    >>> import torch
    >>> rank_for(torch.tensor([4.0, 3.0]), 25.0, 0.7), rank_for(torch.tensor([4.0]), 25.0, 0.1)
    (1, None)
    """
    left = square - (s.double() ** 2).cumsum(0)
    enough = (left <= most * most * square).nonzero()
    return int(enough[0]) + 1 if len(enough) else None
