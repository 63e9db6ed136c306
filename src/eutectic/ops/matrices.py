"""Tensors as matrices, and merging their deltas one matrix at a time: what spectral methods have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from eutectic.ops.weighted_sum import add_weighted

if TYPE_CHECKING:
    import torch

    Combine = Callable[["Deltas"], torch.Tensor]

__all__ = ["MOST_TAPS", "Deltas", "matrix_bytes", "matrix_shape", "mean_coefficients", "merge_matrices"]

MOST_TAPS = 8  # a last axis so short is that of a convolution, not of a matrix in a stack


def matrix_shape(shape: Sequence[int]) -> tuple[int, int, int] | None:
    """A tensor as a stack of matrices (count, m, n); None where it is none: fewer than two axes, or no elements.

    Three axes are a stack (one matrix per expert of a fused mixture), unless the last has at most `MOST_TAPS` entries:
    that is a convolution's kernel, flattened like those of more axes to [outputs, all the rest].

    >>> matrix_shape((4, 6)), matrix_shape((8, 64, 32)), matrix_shape((16, 3, 5)), matrix_shape((16, 3, 7, 7))
    ((1, 4, 6), (8, 64, 32), (1, 16, 15), (1, 16, 147))
    >>> matrix_shape((5,)), matrix_shape((0, 3))
    (None, None)
    """
    if len(shape) < 2 or not math.prod(shape):
        return None
    if len(shape) == 3 and shape[2] > MOST_TAPS:
        return shape[0], shape[1], shape[2]
    return 1, shape[0], math.prod(shape[1:])


class Deltas(Sequence["torch.Tensor"]):
    """The deltas x_k - x_0 of one matrix in float64, each calculated when it is asked for, and their weights."""

    def __init__(self, tensors: Sequence[torch.Tensor], base: torch.Tensor, weight: Sequence[float]) -> None:
        self.tensors, self.base, self.weight = tensors, base.double(), weight

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, at: int) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  no slices
        return self.tensors[at] - self.base  # of two types, so float64 without a copy of the tensor

    def weighted(self, at: int) -> torch.Tensor:
        """w_k (x_k - x_0)."""
        return self[at].mul_(self.weight[at])

    def total(self) -> torch.Tensor:
        """Σ w_k (x_k - x_0), in the order given."""
        found = self.weighted(0)
        for at in range(1, len(self)):
            found += self.weighted(at)
        return found


def mean_coefficients(weight: Sequence[float], lambda_: float) -> list[float]:
    """λ w_k / N: the mean of the weighted deltas, which tensors that are no matrices take."""
    return [lambda_ * w / len(weight) for w in weight]


def merge_matrices(
    tensors: Sequence[torch.Tensor], base: torch.Tensor, weight: Sequence[float], lambda_: float, combine: Combine
) -> torch.Tensor:
    """x_0 + λ combine(deltas), matrix by matrix; x_0 + λ mean(w_k δ_k) where the tensor is no matrix."""
    import torch

    shape = matrix_shape(base.shape)
    if shape is None:
        return add_weighted(base, tensors, mean_coefficients(weight, lambda_))
    stacks, origins = [tensor.reshape(shape) for tensor in tensors], base.reshape(shape)
    merged = []
    for at in range(shape[0]):
        deltas = Deltas([stack[at] for stack in stacks], origins[at], weight)
        merged.append(torch.add(deltas.base, combine(deltas), alpha=lambda_))
    return (merged[0] if len(merged) == 1 else torch.stack(merged)).reshape(base.shape)


def matrix_bytes(shape: Sequence[int], whole: float, square: float) -> int:
    """Bytes of `whole` float64 copies of a tensor's largest matrix, `square` of its Gram matrix, and the result."""
    stack = matrix_shape(shape)
    if stack is None:
        return 0
    count, m, n = stack
    return int(8 * (whole * m * n + square * min(m, n) ** 2)) + 8 * (1 if count == 1 else 6) * math.prod(shape)
