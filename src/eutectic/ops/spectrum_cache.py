"""Decompositions kept for many merges of the same experts, while somebody asks for it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Eigen = tuple[torch.Tensor, torch.Tensor]

__all__ = ["SpectrumCache", "open_cache"]

_open: list[SpectrumCache] = []


def open_cache() -> SpectrumCache | None:
    """The cache that was opened last, if any is open."""
    return _open[-1] if _open else None


class SpectrumCache:
    """Keeps decompositions while it is open, by the digest of the matrix: for many merges of the same experts.

    ``with SpectrumCache(2 << 30): ...``. What was used longest ago goes when `most_bytes` are full; all goes at the
    end. A merge gives the same bits with and without it, for what is kept does not depend on the merge.

    >>> import torch
    >>> from eutectic.ops.spectrum import spectrum
    >>> with SpectrumCache() as cache:
    ...     for _ in range(3):
    ...         found = spectrum(torch.eye(2, dtype=torch.float64))
    >>> cache.hits, cache.misses
    (2, 1)
    """

    def __init__(self, most_bytes: int = 1 << 30) -> None:
        self.most_bytes, self.nbytes, self.hits, self.misses = most_bytes, 0, 0, 0
        self._kept: OrderedDict[bytes, Eigen] = OrderedDict()
        self._lock = threading.Lock()

    def __enter__(self) -> SpectrumCache:
        _open.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _open.remove(self)
        self._kept.clear()
        self.nbytes = 0

    def key(self, matrix: torch.Tensor) -> bytes:
        """What a matrix is known by: its shape, device and a digest of its numbers."""
        from blake3 import blake3

        digest = blake3(repr((tuple(matrix.shape), str(matrix.device))).encode())
        return digest.update(matrix.detach().contiguous().cpu().numpy().data.cast("B")).digest()

    def get(self, key: bytes) -> Eigen | None:
        """What is kept under a key."""
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                self.misses += 1
                return None
            self.hits += 1
            self._kept.move_to_end(key)
            return found

    def put(self, key: bytes, eigen: Eigen) -> None:
        """Keep a decomposition, in place of older ones if need be; one that is too large is not kept."""
        size = sum(part.numel() * part.element_size() for part in eigen)
        with self._lock:
            if key in self._kept or size > self.most_bytes:
                return
            self._kept[key] = eigen
            self.nbytes += size
            while self.nbytes > self.most_bytes:
                _, old = self._kept.popitem(last=False)
                self.nbytes -= sum(part.numel() * part.element_size() for part in old)
