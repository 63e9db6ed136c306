"""An average that keeps the length of rows, which plain averaging shortens wherever the sources point apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from eutectic.errors import MethodError
from eutectic.methods import PerSource, Range, each, merge_method

if TYPE_CHECKING:
    import torch

__all__ = ["row_norm"]


@merge_method(
    summary="average of the rows, as long as the sources' rows are on average",
    reference="direction and length apart, as in Salimans and Kingma, Weight normalization, NeurIPS 2016",
    scope="row",
    idempotent=False,  # up to rounding only
)
def row_norm(
    tensors: Sequence[torch.Tensor],
    *,
    weight: Annotated[PerSource[float], Range(0, 1e6), "share of each source"] = each(1.0),
) -> torch.Tensor:
    """For row r of a matrix: θ_r = (Σ w_k ‖θ_kr‖ / ‖Σ w_k θ_kr‖) Σ w_k θ_kr with Σ w_k = 1; vectors are averaged.

    Row r is ``tensor[r]``, with all further dimensions; lengths are summed in float64.

    Raises:
        MethodError: no weight above 0.

    >>> import torch
    >>> row_norm([torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])])
    tensor([[1.4142, 1.4142]])
    """
    import torch

    total = sum(weight)
    if not total > 0:
        raise MethodError("row_norm: the weights sum to 0; give one source a weight above 0")
    shares = [w / total for w in weight]
    average = torch.stack([w * tensor.double() for w, tensor in zip(shares, tensors, strict=True)]).sum(dim=0)
    if average.ndim < 2 or not average.numel():
        return average
    norms = torch.stack([w * _norm(tensor.double()) for w, tensor in zip(shares, tensors, strict=True)]).sum(dim=0)
    length = _norm(average)
    some = length > 0  # a divisor of 1 elsewhere, so that gradients stay finite where rows cancel
    return average * torch.where(some, norms / torch.where(some, length, 1), 1)


def _norm(tensor: torch.Tensor) -> torch.Tensor:
    """The length of every row, shaped to be multiplied with the rows."""
    return tensor.flatten(1).norm(dim=1).reshape(-1, *[1] * (tensor.ndim - 1))
