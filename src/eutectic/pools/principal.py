"""A basis from which low-rank experts come back: principal directions of the rows of their factors, by position.

A change of a weight is L R with L [outputs, r] and R [r, inputs]; a position is a row of L or a column of R, a vector
of r numbers from each of n experts. With X [n, r] of one position, μ its mean and X - 1 μ' = C U' + rest by a singular
value decomposition, μ [r], U [r, p] and C [n, p] are kept: the nearest of all such forms (Eckart and Young), exact for
p = min(r, n - 1), in (p (r + n) + r) / (r n) of the experts' own numbers. A whole factor may count as one position:
its basis is then p whole factors. Alipour and Amiri 2025, Reversible Model Merging (arXiv 2510.14163).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["Principal", "coordinates", "decompose", "most_directions", "product_errors", "rebuild"]

CHUNK = 1 << 13  # positions decomposed at a time


class Principal(NamedTuple):
    """Of P positions: μ [P, r], directions [P, k, r] with s [P, k] falling, k = min(r, n - 1); float64."""

    mean: torch.Tensor
    directions: torch.Tensor
    s: torch.Tensor


def most_directions(count: int, width: int) -> int:
    """p at which nothing is lost: `count` experts span at most count - 1 directions around their mean."""
    return min(width, count - 1)


def decompose(rows: torch.Tensor) -> Principal:
    """The principal directions of every position of rows [n, P, r]; of each direction the largest entry is positive.

    >>> import torch
    >>> mean, directions, s = decompose(torch.tensor([[[1.0, 0.0]], [[1.0, 4.0]]]))
    >>> mean.tolist(), directions.round(decimals=6).tolist(), (s**2).round(decimals=6).tolist()
    ([[1.0, 2.0]], [[[0.0, 1.0]]], [[8.0]])
    """
    import torch

    count, positions, width = rows.shape
    most = most_directions(count, width)
    mean = torch.zeros(positions, width, dtype=torch.float64)
    directions = torch.empty(positions, most, width, dtype=torch.float64)
    s = torch.empty(positions, most, dtype=torch.float64)
    for start in range(0, positions, CHUNK):
        part = slice(start, start + CHUNK)
        x = rows[:, part].double()
        for expert in x:  # added up in order: a reduction's order follows the shape
            mean[part] += expert
        mean[part] /= count
        _, values, found = torch.linalg.svd((x - mean[part]).transpose(0, 1), full_matrices=False)
        found = found[:, :most]
        largest = found.gather(2, found.abs().argmax(2, keepdim=True))
        directions[part], s[part] = torch.where(largest < 0, -found, found), values[:, :most]
    return Principal(mean, directions, s)


def coordinates(rows: torch.Tensor, mean: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """C [n, P, p]: the least-squares coordinates of rows [n, P, r] in directions as they are stored, rounded ones too.

    >>> import torch
    >>> coordinates(torch.tensor([[[1.0, 5.0]]]), torch.zeros(1, 2), torch.tensor([[[0.0, 2.0]]])).tolist()
    [[[2.5]]]
    """
    import torch

    found = torch.empty(*rows.shape[:2], directions.shape[1], dtype=torch.float64)
    for start in range(0, rows.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        basis = directions[part].double()
        centred = rows[:, part].double().transpose(0, 1) - mean[part, None].double()
        right = basis @ centred.transpose(1, 2)
        gram = basis @ basis.transpose(1, 2)
        gram.diagonal(dim1=1, dim2=2)[basis.abs().amax(2) == 0] = 1.0  # nothing lies along a direction of zeros
        found[:, part] = torch.linalg.solve(gram, right).permute(2, 0, 1)
    return found


def rebuild(mean: np.ndarray, directions: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """One expert's rows μ + Σ_k c_k u_k [P, r] from μ [P, r], directions [P, p, r] and c [P, p].

    In float32, added up in the order of k: the same bits for a position whatever is rebuilt beside it.

    >>> rebuild(np.ones((1, 2), "f4"), np.ones((1, 1, 2), "f4"), np.full((1, 1), 3, "f4")).tolist()
    [[4.0, 4.0]]
    """
    rows = mean.astype(np.float32)
    for k in range(directions.shape[1]):
        rows += coefficients[:, k, None].astype(np.float32) * directions[:, k].astype(np.float32)
    return rows


def product_errors(
    left: torch.Tensor, right: torch.Tensor, near_left: torch.Tensor, near_right: torch.Tensor
) -> torch.Tensor:
    """||L^ R^ - L R||² of every expert [n], from factors [n, outputs, r] and [n, r, inputs], without the products.

    L^ R^ - L R = [L^ - L, L] [R^; R^ - R]: nothing large is subtracted. The widths r of both pairs are the same.

    >>> import torch
    >>> one, two = torch.ones(1, 3, 1), torch.full((1, 1, 2), 2.0)
    >>> product_errors(one, two, 2 * one, two).tolist()
    [24.0]
    """
    import torch

    near_left, near_right = near_left.double(), near_right.double()
    tall = torch.cat((near_left - left, left.double()), 2)
    wide = torch.cat((near_right, near_right - right), 1)
    return ((tall.transpose(1, 2) @ tall) * (wide @ wide.transpose(1, 2))).sum((1, 2)).clamp(min=0)
