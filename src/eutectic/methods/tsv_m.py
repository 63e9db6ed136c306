"""TSV-M: keep each task's largest singular directions, and make them orthogonal to one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from eutectic.methods.mean_delta import lower_vectors, mean_delta
from eutectic.methods.method import PerSource, Setting, each, merge_method
from eutectic.ops.matrices import Deltas, matrix_bytes, merge_matrices
from eutectic.ops.spectrum import Spectrum, inverse_root, spectrum

if TYPE_CHECKING:
    import torch

__all__ = ["concatenate", "keep_directions", "tsv_m"]


def _work_bytes(setting: Setting) -> int:
    return matrix_bytes(setting.shape, whole=7, square=12)


def keep_directions(deltas: Deltas, weight: Sequence[float], shares: Sequence[float]) -> list[Spectrum]:
    """Of each w_k δ_k the floor(share_k) largest directions, and one more where it is largest.

    So many get one more that round(Σ shares) directions are kept in all; none is kept of a delta that is zero.
    """
    whole = [int(share + 1e-9) for share in shares]
    spare = round(sum(shares)) - sum(whole)
    found = [
        spectrum(deltas[at], whole[at] + (spare > 0)).scaled(w) if w else spectrum(deltas.base * 0, 0)
        for at, w in enumerate(weight)
    ]
    able = [at for at, k in enumerate(whole) if len(found[at].s) > k]
    for at in sorted(able, key=lambda at: -float(found[at].s[whole[at]]))[:spare]:
        whole[at] += 1
    return [part.first(k) for part, k in zip(found, whole, strict=True)]


def concatenate(parts: Sequence[Spectrum], level: float | None = None) -> torch.Tensor:
    """U⊥ diag(s) V⊥' of all parts side by side, ⊥ the nearest orthonormal columns; all s are `level` if given."""
    import torch

    u, v = torch.cat([part.u for part in parts], 1), torch.cat([part.v for part in parts], 1)
    s = torch.cat([part.s for part in parts]) if level is None else level
    core = (inverse_root(u) * s) @ inverse_root(v)
    return (u @ core) @ v.T if len(u) <= len(v) else u @ (core @ v.T)


@merge_method(
    summary="largest singular directions of every task, made orthogonal",
    reference="Gargiulo et al., Task Singular Vectors, CVPR 2025 (arXiv 2412.00081), algorithm 1",
    space="delta",
    scope="tensor",
    base="required",
    idempotent=False,
    differentiable=False,
    vocabulary=mean_delta,
    work_bytes=_work_bytes,
    lower=lower_vectors,
)
def tsv_m(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Annotated[PerSource[float], "weight of each task vector"] = each(1.0),
    lambda_: Annotated[float, "scale of the merged task vector"] = 1.0,
) -> torch.Tensor:
    """TSV-M: θ = θ0 + λ U⊥ diag(S) V⊥', where U, S, V hold the r / N largest singular directions of every w_k δ_k.

    r is the smaller side of the matrix, U⊥ = U (U'U)^-1/2 the nearest orthonormal columns. What r / N leaves over goes
    to the sources whose next singular value is largest; with more than r sources, those with the largest first one
    have a share. Directions that sources have in common are shared among them.

    Embeddings, output heads and tensors of one axis are averaged: θ0 + λ (Σ w_k δ_k) / N. A tensor of three axes is a
    stack of matrices; one of more, or with at most 8 entries along the third, is flattened to [outputs, rest].

    Args:
        tensors: the sources θ_k; base: θ0.
        weight: w_k, one number or one per source.
        lambda_: λ (``lambda`` in a recipe).

    >>> import torch
    >>> a, b = torch.tensor([[2.0, 0.0], [0.0, 0.5]]), torch.tensor([[0.5, 0.0], [0.0, 1.0]])
    >>> tsv_m([a, b], base=torch.zeros(2, 2))
    tensor([[2., 0.],
            [0., 1.]])
    """

    def combine(deltas: Deltas) -> torch.Tensor:
        share = min(deltas.base.shape) / len(deltas)
        return concatenate(keep_directions(deltas, weight, [share] * len(deltas)))

    return merge_matrices(tensors, base, weight, lambda_, combine)
