"""Model Stock: how far to trust the average of fine-tunes, from the angle between them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np

from eutectic.methods.method import Setting, merge_method
from eutectic.ops.program import Program
from eutectic.ops.row_sum import MODEL_STOCK, RowGramSum, lengths_of, sum_products
from eutectic.ops.weighted_sum import GramSum

if TYPE_CHECKING:
    import torch

__all__ = ["model_stock", "stock_ratio"]

SHORT = 1e-6  # products of lengths and denominators below this say nothing about an angle


def stock_ratio(gram: np.ndarray) -> float:
    """t = N c / (1 + (N - 1) c), c the mean cosine of pairs, from G = [<δ_i, δ_j>]; 0 where it has no finite value.

    >>> stock_ratio(np.array([[1.0, 0.5], [0.5, 1.0]])).__round__(6)
    0.666667
    """
    count = len(gram)
    lengths = np.sqrt(np.diag(gram))
    cosines = [
        min(max(gram[i, j] / max(lengths[i] * lengths[j], SHORT), -1.0), 1.0)  # in this order NaN stays NaN
        for i, j in itertools.combinations(range(count), 2)
    ]
    cosine = sum(cosines) / len(cosines)
    denominator = 1.0 + (count - 1) * cosine
    return 0.0 if abs(denominator) < SHORT else float(count * cosine / denominator)


def _lower(setting: Setting) -> Program:
    count = setting.sources
    if setting.parameters["filter_wise"]:
        return RowGramSum(setting.row, MODEL_STOCK, anchored=True)
    return GramSum(count, lambda gram: [stock_ratio(gram) / count] * count, anchored=True)


@merge_method(
    summary="average, pulled to the base by the angle between the fine-tunes",
    reference="Jang et al., Model Stock, ECCV 2024 (arXiv 2403.19522), eq. 2",
    space="delta",
    scope="tensor",
    base="required",
    sources=(2, None),
    departures=("the paper has one angle per layer; mergekit and Eutectic one per tensor, or per row (filter_wise)",),
    lower=_lower,
)
def model_stock(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    filter_wise: Annotated[bool, "one angle per row instead of one per tensor"] = False,
) -> torch.Tensor:
    """Model Stock: θ = θ0 + t (mean θ_k - θ0), t = N c / (1 + (N - 1) c), c the mean cosine of pairs of θ_k - θ0.

    Where N c is not defined (deltas that cancel each other) the base is kept.

    Args:
        tensors: N >= 2 fine-tunes θ_k; base: θ0.
        filter_wise: c and t for every row (all entries with one first index) instead of the whole tensor.

    >>> import torch
    >>> model_stock([torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])], base=torch.zeros(2))
    tensor([0.6213, 0.2071])
    """
    import torch

    count, rows = len(tensors), base.shape[0] if filter_wise and base.dim() > 1 else 1
    origin = base.double().reshape(rows, -1)
    deltas = [tensor.double().reshape(rows, -1) - origin for tensor in tensors]
    lengths = [lengths_of(delta) for delta in deltas]
    cosine = torch.zeros(rows, dtype=torch.float64, device=base.device)
    for i, j in itertools.combinations(range(count), 2):
        product = (lengths[i] * lengths[j]).clamp(min=SHORT)
        cosine = cosine + ((deltas[i] * deltas[j]).sum(-1) / product).clamp(-1, 1)
    cosine = cosine / (count * (count - 1) // 2)
    denominator = 1.0 + (count - 1) * cosine
    singular = denominator.abs() < SHORT
    ratio = (count * cosine / denominator.where(~singular, 1.0)).where(~singular, 0.0)[:, None]
    return (sum_products(deltas, [ratio / count] * count) + origin).reshape(base.shape)
