"""R-TSVM: TSV-M that weighs tasks by their outlying entries and gives denser changes more directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from eutectic.methods.mean_delta import lower_vectors, mean_delta
from eutectic.methods.method import PerSource, Range, Setting, each, merge_method
from eutectic.methods.tsv_m import concatenate, keep_directions
from eutectic.ops.matrices import Deltas, matrix_bytes, merge_matrices

if TYPE_CHECKING:
    import torch

__all__ = ["r_tsvm"]

DEVIATIONS = 3.0  # an entry is an outlier so many standard deviations above the mean magnitude of its row


def _work_bytes(setting: Setting) -> int:
    whole = 10 + (setting.sources if setting.parameters["outlier"] == "clip" else 0)
    return matrix_bytes(setting.shape, whole=whole, square=12)


def _limits(magnitudes: torch.Tensor) -> torch.Tensor:
    """μ + 3 σ of the magnitudes of each row."""
    return magnitudes.mean(1, keepdim=True) + DEVIATIONS * magnitudes.std(1, correction=0, keepdim=True)


def _outlying(deltas: Deltas) -> list[float]:
    """o_k: each task's sum of outlying magnitudes, scaled to a mean of 1 over the tasks; 1 where there are none."""
    sums = []
    for delta in deltas:
        magnitudes = delta.abs()
        sums.append(float(magnitudes.where(magnitudes > _limits(magnitudes), 0.0).sum()))
    total = sum(sums)
    return [len(sums) * one / total if total else 1.0 for one in sums]


def _shares(deltas: Deltas, epsilon: float, eta: float) -> list[float]:
    """Directions of each task: r / N (1 + η), less its share of negligible entries, all together at most r."""
    r = min(deltas.base.shape)
    shares = []
    for delta in deltas:
        magnitudes = delta.abs()
        dense = float((magnitudes > epsilon * magnitudes.max()).double().mean())
        shares.append(dense * r / len(deltas) * (1 + eta))
    total = sum(shares)
    return [share * r / total for share in shares] if total > r else shares


@merge_method(
    summary="TSV-M with outlier-aware weights and ranks that follow density",
    reference="Yang et al., Mix Data or Merge Models? (arXiv 2502.06876), as defined on this page",
    space="delta",
    scope="tensor",
    base="required",
    idempotent=False,
    differentiable=False,
    vocabulary=mean_delta,
    departures=("no code is published and the paper's formulas could not be checked; the ones here are our reading",),
    work_bytes=_work_bytes,
    lower=lower_vectors,
)
def r_tsvm(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Annotated[PerSource[float], "weight of each task vector"] = each(1.0),
    lambda_: Annotated[float, "scale of the merged task vector"] = 1.0,
    outlier: Annotated[Literal["weight", "clip"], "what outlying entries do: weigh their task, or are clipped"] = (
        "weight"
    ),
    epsilon: Annotated[float, Range(0, 1), "share of the largest entry up to which an entry is negligible"] = 0.01,
    eta: Annotated[
        float, Range(0, 10), "how much more than its equal share of directions a dense task may have"
    ] = 0.25,
) -> torch.Tensor:
    """R-TSVM: TSV-M of o_k w_k δ_k, with k_k = (1 - s_k) (1 + η) r / N directions of task k, together at most r.

    An outlier lies more than three standard deviations above the mean magnitude of its row. With `outlier: weight`,
    o_k is the task's sum of outlying magnitudes over the mean of those sums; with `clip`, o_k = 1 and outliers are cut
    to the limit. s_k is the share of entries up to `epsilon` of the largest; r is the smaller side of the matrix.

    Embeddings, output heads and tensors of one axis are averaged: θ0 + λ (Σ w_k δ_k) / N. A tensor of three axes is a
    stack of matrices; one of more, or with at most 8 entries along the third, is flattened to [outputs, rest].

    Args:
        tensors: the sources θ_k; base: θ0.
        weight: w_k, one number or one per source.
        lambda_: λ (``lambda`` in a recipe).
        outlier: "weight" or "clip".
        epsilon: share of the largest magnitude.
        eta: η.

    >>> import torch
    >>> a, b = torch.tensor([[2.0, 0.0], [0.0, 0.5]]), torch.tensor([[0.5, 0.0], [0.0, 1.0]])
    >>> r_tsvm([a, b], base=torch.zeros(2, 2), eta=1.0)
    tensor([[2., 0.],
            [0., 1.]])
    """

    def merged(deltas: Deltas) -> torch.Tensor:
        shares = _shares(deltas, epsilon, eta)
        if outlier == "clip":
            return concatenate(keep_directions(_Clipped(deltas), weight, shares))
        factors = [w * o for w, o in zip(weight, _outlying(deltas), strict=True)]
        return concatenate(keep_directions(deltas, factors, shares))

    return merge_matrices(tensors, base, weight, lambda_, merged)


class _Clipped(Deltas):
    """Deltas whose outliers are cut to the limit of their row."""

    def __init__(self, deltas: Deltas) -> None:
        self.tensors, self.base, self.weight = deltas.tensors, deltas.base, deltas.weight

    def __getitem__(self, at: int) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        delta = super().__getitem__(at)
        limits = _limits(delta.abs())
        return delta.clamp(-limits, limits)
