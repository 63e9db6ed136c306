"""The digest of a tensor: BLAKE3 of the BLAKE3 digests of its 64 KiB pieces.

Pieces can be hashed in any order by any thread while they are written, and again from disk to verify.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from blake3 import blake3

__all__ = ["NAME", "PIECE", "combine_pieces", "hash_bytes", "hash_pieces", "hash_range"]

NAME = "blake3-64k"
PIECE = 64 * 1024


def hash_bytes(data: bytes | bytearray | memoryview) -> str:
    """Plain BLAKE3, in hex: what `b3sum` prints."""
    return blake3(data).hexdigest()


def hash_pieces(data: memoryview) -> list[bytes]:
    """Digests of the consecutive 64 KiB pieces of `data`, which starts at a piece's boundary."""
    return [blake3(data[at : at + PIECE]).digest() for at in range(0, data.nbytes, PIECE)]


def combine_pieces(pieces: Iterable[bytes]) -> str:
    """The digest of a tensor from those of its pieces, in order."""
    return blake3(b"".join(pieces)).hexdigest()


def hash_range(read: Iterator[memoryview]) -> str:
    """The digest of a tensor that arrives in runs of whole pieces (the last may be short)."""
    return combine_pieces(piece for run in read for piece in hash_pieces(run))
