"""Singular directions of a matrix from one float64 Gram matrix of its smaller side: the kernel of spectral methods.

A = U diag(s) V' with A A' = U diag(s²) U' and V = A' U / s. Squaring loses the small values: those below `TRUSTED` of
the largest are found again from what is left of A without the others. Values below `CUTOFF` of the largest are the
rounding of float32 weights, not directions, and are left out, so a matrix of low rank gives few directions and a zero
matrix none. The same bits on any number of worker threads, as long as torch's own number stays the same (the engine
sets it to one).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from eutectic.errors import MethodError
from eutectic.ops.gram import gram, well_conditioned_inverse
from eutectic.ops.spectrum_cache import SpectrumCache, open_cache

if TYPE_CHECKING:
    import torch

    Eigen = tuple[torch.Tensor, torch.Tensor]

__all__ = [
    "CUTOFF", "Spectrum", "SpectrumCache", "gram_eigen", "inverse", "inverse_root", "orthogonal", "spectrum",
    "with_values",
]  # fmt: skip

CUTOFF = 1e-7  # share of the largest singular value
TRUSTED = 1e-4  # at this share the vectors of a Gram matrix are still exact to 1e-8
DEPENDENT = 1e-12  # eigenvalues of a Gram matrix of unit vectors, as a share of the largest: columns that repeat


class Spectrum(NamedTuple):
    """U [m, k], s [k] falling, V [n, k] with A = U diag(s) V'; of each column of U the largest entry is positive."""

    u: torch.Tensor
    s: torch.Tensor
    v: torch.Tensor

    def first(self, rank: int) -> Spectrum:
        """The largest `rank` directions."""
        return Spectrum(self.u[:, :rank], self.s[:rank], self.v[:, :rank])

    def scaled(self, weight: float) -> Spectrum:
        """The spectrum of `weight` A."""
        return Spectrum(self.u if weight >= 0 else -self.u, self.s * abs(weight), self.v)


def spectrum(matrix: torch.Tensor, rank: int | None = None) -> Spectrum:
    """The largest `rank` singular directions of a float64 matrix (all, if none is given), zero ones left out.

    >>> import torch
    >>> u, s, v = spectrum(torch.tensor([[3.0, 0, 0], [0, 0, 2.0]], dtype=torch.float64))
    >>> s.tolist(), (u * s @ v.T).tolist()
    ([3.0, 2.0], [[3.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    """
    return _spectrum(matrix, gram_eigen(matrix), min(matrix.shape) if rank is None else min(rank, *matrix.shape))


def with_values(matrix: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """U diag(f(s)) V' for a function `change`, f >= 0, of all singular values, falling, zero ones left out.

    Where no value is small it is U diag(f(s) / s) U' A, which does without V.

    >>> import torch
    >>> with_values(torch.diag(torch.tensor([3.0, 0.0, 1.0], dtype=torch.float64)), lambda s: s + 1).diagonal().tolist()
    [4.0, 0.0, 2.0]
    """
    values, vectors = eigen = gram_eigen(matrix)
    s = values.clamp(min=0).sqrt()
    if len(s) and bool(s[-1] > TRUSTED * s[0]):
        factor = gram(vectors * (change(s) / s).sqrt())
        return factor @ matrix if matrix.shape[0] <= matrix.shape[1] else matrix @ factor
    u, s, v = _spectrum(matrix, eigen, len(s))
    return (u * change(s)) @ v.T if len(s) else matrix.new_zeros(matrix.shape)


def _spectrum(matrix: torch.Tensor, eigen: Eigen, most: int) -> Spectrum:
    flat = matrix.shape[0] <= matrix.shape[1]
    found = _directions(matrix if flat else matrix.T, eigen, most, None)
    sign = found.u.gather(0, found.u.abs().argmax(0, keepdim=True)).sign() if len(found.s) else 1.0
    u, v = found.u * sign, found.v * sign
    return Spectrum(u, found.s, v) if flat else Spectrum(v, found.s, u)


def _directions(matrix: torch.Tensor, eigen: Eigen, most: int, least: float | None) -> Spectrum:
    """Directions of a matrix [m, n], m <= n, from the eigenvectors of A A': at most so many, above `least`."""
    import torch

    values, left = eigen
    s = values.clamp(min=0).sqrt()
    largest = float(s[0]) if len(s) else 0.0
    least = CUTOFF * largest if least is None else least
    head = int((s > max(TRUSTED * largest, least)).sum())
    u, s = left[:, : min(head, most)], s[: min(head, most)]
    v = matrix.T @ u / s
    if len(s) == most or head == len(left) or largest <= least:
        return Spectrum(u, s, v)
    basis = left[:, head:]
    rest = basis.T @ matrix
    found = _directions(rest, _decompose(gram(rest)), most - head, least)
    other = found.v - v @ (v.T @ found.v)
    other = other / other.norm(dim=0)
    return Spectrum(torch.cat((u, basis @ found.u), 1), torch.cat((s, found.s)), torch.cat((v, other), 1))


def orthogonal(columns: torch.Tensor) -> torch.Tensor:
    """The nearest matrix with orthonormal columns, C (C'C)^-1/2; directions that repeat are shared among the columns.

    >>> import torch
    >>> orthogonal(torch.tensor([[2.0, 0], [0, 0.5], [0, 0]], dtype=torch.float64)).round(decimals=12).tolist()
    [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    """
    return columns @ inverse_root(columns)


def inverse_root(columns: torch.Tensor) -> torch.Tensor:
    """(C'C)^-1/2, zero on what C does not span: C times it is the polar factor of C."""
    values, vectors = _decompose(gram(columns.T))
    if not len(values):
        return vectors
    kept = values > DEPENDENT * values[0]
    return gram(vectors * values.where(kept, 1.0).pow(-0.25).where(kept, 0.0))


def inverse(matrix: torch.Tensor, cutoff: float) -> torch.Tensor:
    """The inverse of a Gram matrix on its eigenvectors above `cutoff` of the largest eigenvalue, zero on the rest.

    Where all are above it beyond doubt, no eigenvector is calculated.

    >>> import torch
    >>> inverse(torch.diag(torch.tensor([4.0, 1e-12], dtype=torch.float64)), 1e-10).tolist()
    [[0.25, 0.0], [0.0, 0.0]]
    """
    found = well_conditioned_inverse(matrix, cutoff)
    if found is not None:
        return found
    values, vectors = _decompose(matrix)
    kept = values > cutoff * values[:1].clamp(min=0)
    return gram(vectors * values.where(kept, 1.0).rsqrt().where(kept, 0.0))


def gram_eigen(matrix: torch.Tensor) -> Eigen:
    """Falling eigenvalues and eigenvectors of A A' or A' A, whichever is smaller; from the caches that are open."""
    cache = None if matrix.requires_grad else open_cache()
    key = cache.key(matrix) if cache is not None else b""
    found = cache.get(key) if cache is not None else None
    if found is None:
        found = _decompose(gram(matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T))
        if cache is not None:
            cache.put(key, found)
    return found


def _decompose(matrix: torch.Tensor) -> Eigen:
    """Falling eigenvalues and eigenvectors of a Gram matrix, by the first of three solvers that converges."""
    import torch

    if not torch.isfinite(matrix).all():
        raise MethodError(
            "the deltas or statistics hold NaN or infinity, which have no singular directions; repair that source"
        )
    torch.set_num_threads(torch.get_num_threads())  # for LAPACK it holds only in threads that have set it
    failures = []
    for solve in (_by_eigh, _by_gesdd, _by_gesvd):
        try:
            return solve(matrix)
        except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
            failures.append(str(error))
    raise MethodError(f"no solver finds the singular directions: {'; '.join(failures)}. Is a source damaged?")


def _by_eigh(gram: torch.Tensor) -> Eigen:
    import torch

    values, vectors = torch.linalg.eigh(gram)
    return values.flip(0), vectors.flip(1)


def _by_gesdd(gram: torch.Tensor) -> Eigen:
    import torch

    u, values, _ = torch.linalg.svd(gram)  # of a matrix that is symmetric and has no negative eigenvalues
    return values, u


def _by_gesvd(gram: torch.Tensor) -> Eigen:
    import numpy as np
    import torch
    from scipy.linalg import svd

    try:
        u, values, _ = svd(gram.detach().cpu().numpy(), lapack_driver="gesvd")
    except np.linalg.LinAlgError as error:
        raise torch.linalg.LinAlgError(str(error)) from error  # pyright: ignore[reportPrivateImportUsage]
    return torch.from_numpy(values).to(gram.device), torch.from_numpy(u).to(gram.device)
