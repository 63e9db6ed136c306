"""Exact order statistics of magnitudes, without a sort: counts over the bits of float32.

The 31 magnitude bits of a float32 order like the number itself. One pass counts the high 15 bits, a second the low
16 inside the one bin that holds the threshold; counts add over tiles, shards and machines. Exactly k entries are
kept; of those equal to the threshold, the ones with the lowest flat index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = [
    "HIGH_BINS",
    "LOW_BINS",
    "find_bin",
    "kept_count",
    "largest",
    "largest_of",
    "outlier_count",
    "select",
    "share_ties",
]

HIGH_BINS, LOW_BINS = 1 << 15, 1 << 16


def kept_count(density: float, numel: int) -> int:
    """k = floor(density * numel), at least 1 of a tensor that has entries and a density above 0.

    >>> kept_count(0.2, 9), kept_count(0.01, 9), kept_count(0.0, 9), kept_count(1.0, 9)
    (1, 1, 0, 9)
    """
    if density <= 0 or numel == 0:
        return 0
    return min(numel, max(1, int(density * numel)))


def outlier_count(share: float, keep: int, numel: int) -> int:
    """How many of the largest entries are passed over: floor(share * n), but never so many that fewer are kept.

    >>> outlier_count(0.01, 50, 100), outlier_count(0.5, 80, 100), outlier_count(0.01, 50, 60)
    (1, 20, 0)
    """
    return min(int(share * numel), numel - keep)


def find_bin(counts: np.ndarray, keep: int) -> tuple[int, int]:
    """The bin that holds the keep-th largest entry, and how many of that bin belong to the kept.

    >>> find_bin(np.array([5, 3, 2]), 4)  # two from bin 2, two of bin 1
    (1, 2)
    """
    if keep <= 0:
        return len(counts) - 1, 0
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, keep))
    above = int(from_top[place - 1]) if place else 0
    return len(counts) - 1 - place, keep - above


def select(magnitudes: np.ndarray, keep: int) -> tuple[int, int | None]:
    """The keep-th largest of integer magnitudes [n], and how many equal to it are kept (None: all of them).

    >>> select(np.array([3, 9, 3, 3], dtype=np.uint32), 2), select(np.array([1, 2], dtype=np.uint32), 2)
    ((3, 1), (0, None))
    """
    count = len(magnitudes)
    if keep >= count:
        return 0, None
    if keep <= 0:
        return 0x7FFFFFFF, None
    threshold = int(np.partition(magnitudes, count - keep)[count - keep])
    left = keep - int(np.count_nonzero(magnitudes > threshold))
    everyone = threshold == 0 or left == int(np.count_nonzero(magnitudes == threshold))
    return threshold, None if everyone else left


def share_ties(ties: np.ndarray, need: np.ndarray) -> np.ndarray:
    """How many ties each block keeps: the first `need` of all. ties int64 [blocks, n], need int64 [n]."""
    before = np.cumsum(ties, axis=0) - ties
    return np.clip(need - before, 0, None)


def largest(values: torch.Tensor, density: float) -> torch.Tensor:
    """Boolean mask of the `kept_count` entries of largest magnitude, ties to the lowest flat index."""
    return largest_of(values, kept_count(density, values.numel()))


def largest_of(values: torch.Tensor, keep: int) -> torch.Tensor:
    """Boolean mask of the `keep` entries of largest magnitude, ties to the lowest flat index (any shape or device)."""
    import torch

    size = values.detach().abs().reshape(-1).contiguous()
    size = size.view({4: torch.int32, 8: torch.int64}[size.element_size()])  # the bits order as the numbers, NaN last
    count = size.numel()
    if keep == count:
        return torch.ones_like(values, dtype=torch.bool)
    if keep == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    threshold = torch.kthvalue(size, count - keep + 1).values
    above = size > threshold
    ties = size == threshold
    left = keep - above.sum()
    return (above | (ties & (ties.cumsum(0) <= left))).reshape(values.shape)
