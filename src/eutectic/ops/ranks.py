"""`Ranks`: exact order statistics of keys, found in passes over tiles: a histogram of 16 bits at a time, no sort.

Keys are unsigned integers that order like the numbers they stand for. Each pass counts the next 16 bits of the keys
that share the bits found so far; counts add over tiles, shards and machines. A tensor of one block is listed whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from eutectic.ops.program import Reduction

__all__ = ["DIGIT_BINS", "Ranks", "key_to_float"]

DIGIT_BINS = 1 << 16


@dataclass(frozen=True)
class Ranks:
    """The key of rank `at[r]` (from 0, rising) among the keys of score r % scores, for every r."""

    at: np.ndarray  # int64 [K]: rank, then rank among the keys that share the prefix
    scores: int  # S, a divisor of K
    digits: int  # how many times 16 bits a key has
    numel: int
    blocks: int
    prefix: np.ndarray  # uint64 [K]: the leading digits that are found
    level: int = 0  # how many those are

    @classmethod
    def of(cls, at: list[int], scores: int, digits: int, numel: int, blocks: int) -> Ranks:
        """Before any pass. Of no elements at all every key is zero."""
        ranks = np.array(at, dtype=np.int64)
        return cls(ranks, scores, digits, numel, blocks, np.zeros(len(at), np.uint64), 0 if numel else digits)

    def wants(self) -> Reduction | None:
        """The next pass, or None when every key is known."""
        if self.level == self.digits:
            return None
        if self.blocks == 1:
            return Reduction("list", "blocks", (self.scores, self.numel), "uint64")
        return Reduction("count", "sum", (self.scores if self.level == 0 else len(self.at), DIGIT_BINS))

    def solve(self, reduction: Reduction, total: np.ndarray) -> Ranks:
        """The ranks, with what the finished pass says."""
        if reduction.kind == "list":
            found = [np.partition(total[0][r % self.scores], at)[at] for r, at in enumerate(self.at)]
            return replace(self, prefix=np.array(found, dtype=np.uint64), level=self.digits)
        at, prefix = self.at.copy(), self.prefix.copy()
        for r, rank in enumerate(self.at):
            upto = np.cumsum(total[r % len(total)])
            digit = int(np.searchsorted(upto, rank, side="right"))
            at[r] -= upto[digit - 1] if digit else 0
            prefix[r] = (int(prefix[r]) << 16) | digit
        return replace(self, at=at, prefix=prefix, level=self.level + 1)


def key_to_float(keys: np.ndarray) -> np.ndarray:
    """The float64 numbers of 64-bit keys (sign bit set: the number's bits but for it; else all bits turned).

    >>> key_to_float(np.array([0xBFF0000000000000, 0x400FFFFFFFFFFFFF], dtype=np.uint64))
    array([ 1., -1.])
    """
    sign = np.uint64(1 << 63)
    return np.where(keys & sign, keys ^ sign, ~keys).view(np.float64)
