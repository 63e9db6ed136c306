"""The digest of a tensor: BLAKE3 of the BLAKE3 digests of its 64 KiB pieces.

Pieces can be hashed in any order by any thread while they are written, and again from disk to verify.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from blake3 import blake3

from eutectic.weights.files import SourceFile
from eutectic.weights.tensor_ref import TensorRef

__all__ = ["NAME", "PIECE", "combine_pieces", "hash_bytes", "hash_file", "hash_pieces", "hash_range", "hash_tensor"]

NAME = "blake3-64k"
PIECE = 64 * 1024
RUN = 16 * PIECE


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


def hash_tensor(tensor: TensorRef) -> str:
    """The digest of a tensor, read piece by piece."""

    def runs() -> Iterator[memoryview]:
        buffer = memoryview(bytearray(min(RUN, max(1, tensor.nbytes))))
        elements = RUN // tensor.dtype.size
        for start in range(0, tensor.numel, elements):
            stop = min(start + elements, tensor.numel)
            run = buffer[: (stop - start) * tensor.dtype.size]
            tensor.read_into(run, start, stop)
            yield run

    return hash_range(runs())


def hash_file(file: SourceFile) -> str:
    """Plain BLAKE3 of a whole file, in hex: what `b3sum` prints."""
    whole = blake3()
    buffer = memoryview(bytearray(min(RUN, max(1, file.size))))
    for offset in range(0, file.size, RUN):
        run = buffer[: min(RUN, file.size - offset)]
        file.read_into(run, offset)
        whole.update(run)
    return whole.hexdigest()
