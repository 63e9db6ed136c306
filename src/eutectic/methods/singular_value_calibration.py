"""Singular value calibration: scale back directions that the sum of tasks counts more than once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from eutectic.methods.method import PerSource, Range, Setting, each, merge_method
from eutectic.methods.task_arithmetic import task_arithmetic
from eutectic.ops.matrices import Deltas, matrix_bytes, matrix_shape, merge_matrices
from eutectic.ops.program import Program
from eutectic.ops.spectrum import spectrum
from eutectic.ops.weighted_sum import WeightedSum, add_weighted

if TYPE_CHECKING:
    import torch

__all__ = ["task_arithmetic_svc"]


def _work_bytes(setting: Setting) -> int:
    return matrix_bytes(setting.shape, whole=10, square=8)


def _lower(setting: Setting) -> Program | None:
    p = setting.parameters
    if matrix_shape(setting.shape) is not None:
        return None
    return WeightedSum([p["lambda"] * w for w in p["weight"]], anchored=True)


@merge_method(
    summary="task arithmetic, with singular values scaled to what each task alone would have",
    reference="Spectral Over-Accumulation in Model Merging (arXiv 2602.05536), algorithm 1",
    space="delta",
    scope="tensor",
    base="required",
    idempotent=False,
    differentiable=False,
    vocabulary=task_arithmetic,
    work_bytes=_work_bytes,
    lower=_lower,
)
def task_arithmetic_svc(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Annotated[PerSource[float], "weight of each task vector"] = each(1.0),
    lambda_: Annotated[float, "scale of the summed task vectors, before calibration"] = 0.3,
    alpha: Annotated[float, Range(0.001, 10), "least share of a task that a direction is credited with"] = 0.1,
) -> torch.Tensor:
    """Task arithmetic, calibrated: θ = θ0 + U diag(γ S) V', where U diag(S) V' = λ Σ w_k δ_k.

    γ_r = N / Σ_k max(α, s_rk), and s_rk = <S_r v_r, a> / ‖a‖² with a = u_r' δ_k: how much of task k's response in
    direction r the sum has. Where every task has more than α, γ undoes λ. Sources of weight 0 are not counted.

    Embeddings, output heads and tensors of one axis are merged by task arithmetic. A tensor of three axes is a stack
    of matrices; one of more, or with at most 8 entries along the third, is flattened to [outputs, rest].

    Args:
        tensors: the sources θ_k; base: θ0.
        weight: w_k, one number or one per source.
        lambda_: λ (``lambda`` in a recipe), within what is calibrated.
        alpha: α.

    >>> import torch
    >>> a = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> task_arithmetic_svc([a, a], base=torch.zeros(2, 2), lambda_=1.0)
    tensor([[2., 0.],
            [0., 1.]])
    """

    def calibrated(deltas: Deltas) -> torch.Tensor:
        import torch

        u, s, v = spectrum(deltas.total() * lambda_)
        counted, shares = [at for at, w in enumerate(weight) if w], torch.zeros_like(s)
        for at in counted:
            response = u.T @ deltas[at]
            own = (response * response).sum(1)
            share = s * (response * v.T).sum(1) / own.where(own > 0, 1.0)
            shares = shares + share.clamp(min=alpha)
        return (u * (s * len(counted) / shares)) @ v.T

    if matrix_shape(base.shape) is None:
        return add_weighted(base, tensors, [lambda_ * w for w in weight])
    return merge_matrices(tensors, base, weight, 1.0, calibrated)
