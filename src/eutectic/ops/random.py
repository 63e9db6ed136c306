"""Counter-based random numbers: the same bits whole or tiled, on any device, for any number of threads.

Element e of source s of tensor t draws 32-bit word number e of the Philox-4x32-10 stream whose key is a hash of
(seed, t, s). Words are laid out in groups of 1024: word e lies in group g = e // 1024; with r = e % 1024 it is
word r // 256 of the block with counter 256 g + r % 256 (so that kernels fill contiguous lanes).
Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["GROUP", "Draws", "bound", "draw_key", "philox_words"]

GROUP = 1024


def draw_key(seed: int, tensor: str, source: int) -> tuple[int, int]:
    """The two 32-bit key words of one source of one tensor."""
    digest = hashlib.blake2b(f"{seed}\0{tensor}\0{source}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def bound(probability: float) -> int:
    """An element is kept where its word is below this: probability in units of 2^-32, rounded down."""
    return int(probability * 4294967296.0)


def philox_words(key: tuple[int, int], start: int, count: int, device: torch.device | None = None) -> torch.Tensor:
    """Words start .. start+count of the stream, as int64 in 0 .. 2^32 - 1.

    >>> philox_words((0, 0), 0, 1).item() == 0x6627E8D5  # known answer of the reference implementation
    True
    """
    import torch

    first, last = start // GROUP, -(-(start + count) // GROUP)
    counter = torch.arange(first * 256, last * 256, dtype=torch.int64, device=device)
    mask = 0xFFFFFFFF
    c0, c1 = counter & mask, (counter >> 32) & mask
    c2, c3 = torch.zeros_like(c0), torch.zeros_like(c0)
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap modulo 2^64, which leaves both 32-bit halves right.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((p1 >> 32) & mask) ^ c1 ^ k0, p1 & mask, ((p0 >> 32) & mask) ^ c3 ^ k1, p0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    words = torch.stack([c.reshape(-1, 256) for c in (c0, c1, c2, c3)], dim=1).reshape(-1)
    return words[start - first * GROUP :][:count]


@dataclass(frozen=True)
class Draws:
    """The random numbers of one tile: `start` is the flat index of its first element in the whole tensor."""

    seed: int = 0
    tensor: str = ""
    start: int = 0

    def keep(self, source: int, like: torch.Tensor, probability: float) -> torch.Tensor:
        """A boolean mask of `like`'s shape, true with `probability`, independent per source and element."""
        words = philox_words(draw_key(self.seed, self.tensor, source), self.start, like.numel(), like.device)
        return (words < bound(probability)).reshape(like.shape)
