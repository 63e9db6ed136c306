"""Subspace Boosting: lift the small singular values of a merged delta, against the collapse of its rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from eutectic.methods.method import PerSource, Range, Setting, each, merge_method
from eutectic.methods.task_arithmetic import task_arithmetic
from eutectic.methods.ties import ties
from eutectic.ops.matrices import Deltas, matrix_bytes, matrix_shape, merge_matrices
from eutectic.ops.program import Program
from eutectic.ops.signs import agree, combine
from eutectic.ops.sparse_sum import SparseSum
from eutectic.ops.sparsify import trim
from eutectic.ops.spectrum import with_values
from eutectic.ops.weighted_sum import WeightedSum, add_weighted

if TYPE_CHECKING:
    import torch

__all__ = ["boost", "task_arithmetic_sb", "ties_sb"]

_REFERENCE = "Skorobogat et al., Subspace-Boosted Model Merging, 2025 (arXiv 2506.16506), algorithm 1"


def boost(matrix: torch.Tensor, threshold: float) -> torch.Tensor:
    """U max(S, S_i) V', i the first index at which S_1 + ... + S_i reaches this share of the sum of all S.

    >>> import torch
    >>> boost(torch.tensor([[4.0, 0], [0, 1.0]], dtype=torch.float64), 0.5).tolist()
    [[4.0, 0.0], [0.0, 4.0]]
    """

    def lifted(s: torch.Tensor) -> torch.Tensor:
        reached = s.cumsum(0) >= threshold * s.sum()
        at = int(reached.int().argmax()) if bool(reached.any()) else len(s) - 1
        return s.clamp(min=s[at])

    return with_values(matrix, lifted)


def _sb_work_bytes(setting: Setting) -> int:
    return matrix_bytes(setting.shape, whole=10, square=8)


def _ties_work_bytes(setting: Setting) -> int:
    return matrix_bytes(setting.shape, whole=10 + 4 * setting.sources, square=8)


def _lower(setting: Setting) -> Program | None:
    p = setting.parameters
    if matrix_shape(setting.shape) is not None:
        return None
    return WeightedSum([p["lambda"] * w for w in p["weight"]], anchored=True)


def _lower_ties(setting: Setting) -> Program | None:
    p = setting.parameters
    if matrix_shape(setting.shape) is not None:
        return None
    return SparseSum(p["weight"], p["density"], vote="weighted", normalize=p["normalize"], scale=p["lambda"])


@merge_method(
    summary="task arithmetic, with the small singular values of the sum lifted",
    reference=_REFERENCE,
    space="delta",
    scope="tensor",
    base="required",
    idempotent=False,
    differentiable=False,
    vocabulary=task_arithmetic,
    work_bytes=_sb_work_bytes,
    lower=_lower,
)
def task_arithmetic_sb(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Annotated[PerSource[float], "weight of each task vector"] = each(1.0),
    lambda_: Annotated[float, "scale of the merged task vector"] = 1.0,
    threshold: Annotated[float, Range(0, 1), "share of the sum of singular values that stays as it is"] = 0.01,
) -> torch.Tensor:
    """Task arithmetic with Subspace Boosting: θ = θ0 + λ U max(S, S_i) V', where U diag(S) V' = Σ w_k δ_k.

    i is the first index at which S_1 + ... + S_i reaches `threshold` of the sum of all singular values; 0 lifts all
    to the largest, 1 none. Directions that the sum does not have (a low rank) are not made up.

    Embeddings, output heads and tensors of one axis are merged by task arithmetic. A tensor of three axes is a stack
    of matrices; one of more, or with at most 8 entries along the third, is flattened to [outputs, rest].

    Args:
        tensors: the sources θ_k; base: θ0.
        weight: w_k, one number or one per source.
        lambda_: λ (``lambda`` in a recipe).
        threshold: share of the sum of the singular values.

    >>> import torch
    >>> task_arithmetic_sb([torch.tensor([[4.0, 0.0], [0.0, 1.0]])], base=torch.zeros(2, 2), threshold=0.5)
    tensor([[4., 0.],
            [0., 4.]])
    """
    if matrix_shape(base.shape) is None:
        return add_weighted(base, tensors, [lambda_ * w for w in weight])
    return merge_matrices(tensors, base, weight, lambda_, lambda deltas: boost(deltas.total(), threshold))


@merge_method(
    summary="TIES, with the small singular values of the merged change lifted",
    reference=_REFERENCE,
    space="delta",
    scope="tensor",
    base="required",
    idempotent=False,
    differentiable=False,
    vocabulary=ties,
    work_bytes=_ties_work_bytes,
    lower=_lower_ties,
)
def ties_sb(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Annotated[PerSource[float], "weight of each task vector"] = each(1.0),
    density: Annotated[PerSource[float], Range(0, 1), "share of entries kept per source"] = each(1.0),
    lambda_: Annotated[float, "scale of the merged task vector"] = 1.0,
    normalize: Annotated[bool, "divide by the weights that took part"] = True,
    threshold: Annotated[float, Range(0, 1), "share of the sum of singular values that stays as it is"] = 0.01,
) -> torch.Tensor:
    """TIES with Subspace Boosting: θ = θ0 + λ U max(S, S_i) V', where U diag(S) V' is the merged change of TIES.

    i is the first index at which S_1 + ... + S_i reaches `threshold` of the sum of all singular values. Each matrix of
    a stack is trimmed by itself.

    Embeddings, output heads and tensors of one axis are merged by TIES. A tensor of three axes is a stack of
    matrices; one of more, or with at most 8 entries along the third, is flattened to [outputs, rest].

    Args:
        tensors: the sources θ_k; base: θ0.
        weight: w_k, one number or one per source.
        density: kept share, 0 to 1, one number or one per source.
        lambda_: λ (``lambda`` in a recipe).
        normalize: divide by the sum of the weights that took part, entry by entry.
        threshold: share of the sum of the singular values.

    >>> import torch
    >>> a = torch.tensor([[4.0, 0.1], [0.1, 1.0]])
    >>> ties_sb([a], base=torch.zeros(2, 2), density=0.5, threshold=0.5)
    tensor([[4., 0.],
            [0., 4.]])
    """

    def elected(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
        kept = trim(deltas, density)
        return combine(kept, weight, agree(kept, weight, "weighted"), normalize)

    def boosted(deltas: Deltas) -> torch.Tensor:
        return boost(elected(list(deltas)), threshold)

    if matrix_shape(base.shape) is None:
        return base + lambda_ * elected([tensor - base for tensor in tensors])
    return merge_matrices(tensors, base, weight, lambda_, boosted)
