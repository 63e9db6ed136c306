"""Digests: any order, any cut, from memory or from disk."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from eutectic.weights import digest
from eutectic.weights.checkpoint import open_checkpoint
from eutectic.weights.files import SourceFile

SIZES = [0, 1, digest.PIECE - 1, digest.PIECE, digest.PIECE + 1, digest.RUN - 8, digest.RUN, 3 * digest.RUN + 5]


def reference(data: bytes) -> str:
    """The definition, in two lines."""
    pieces = [blake3(data[at : at + 65536]).digest() for at in range(0, len(data), 65536)]
    return blake3(b"".join(pieces)).hexdigest()


@pytest.mark.parametrize("size", SIZES)
def test_tensor_file_and_range_agree_with_the_definition(tmp_path: Path, size: int) -> None:
    array = numpy.random.default_rng(size).integers(0, 255, size, dtype=numpy.uint8)
    save_file({"w": array}, tmp_path / "model.safetensors")
    data = array.tobytes()
    assert digest.hash_tensor(open_checkpoint(tmp_path)["w"]) == reference(data)
    assert digest.combine_pieces(digest.hash_pieces(memoryview(data))) == reference(data)
    (tmp_path / "plain").write_bytes(data)
    assert digest.hash_file(SourceFile(tmp_path / "plain")) == blake3(data).hexdigest() == digest.hash_bytes(data)


@settings(max_examples=30, deadline=None)
@given(size=st.integers(0, 400_000), pieces=st.integers(1, 4))
def test_runs_of_whole_pieces_of_any_length_agree(size: int, pieces: int) -> None:
    data = bytes(numpy.arange(size, dtype=numpy.uint32).view(numpy.uint8)[:size])
    step = pieces * digest.PIECE
    runs = (memoryview(data)[at : at + step] for at in range(0, size, step))
    assert digest.hash_range(runs) == reference(data)


def test_wide_elements_hash_as_their_bytes(tmp_path: Path) -> None:
    array = numpy.random.default_rng(0).standard_normal((300, 700))
    save_file({"w": array}, tmp_path / "model.safetensors")
    assert digest.hash_tensor(open_checkpoint(tmp_path)["w"]) == reference(array.tobytes())
