"""Codes of any number of bits, against one large number taken apart."""

from __future__ import annotations

import encoders
import numpy as np
import pytest

from eutectic.weights.quantized.bits import E2M1, pairs, unpack


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("columns", [1, 7, 32, 53, 96])
def test_unpack(bits: int, columns: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, columns))
    words = encoders.pack(codes, bits)
    found = unpack(words.view(np.uint8).reshape(3, -1), bits, columns)
    assert found.dtype == np.uint8 and (found == codes).all()


@pytest.mark.parametrize("high_first", [False, True])
def test_pairs(high_first: bool) -> None:
    table = pairs(E2M1, high_first=high_first).view(np.float32).reshape(256, 2)
    for byte in range(256):
        halves = (byte >> 4, byte & 15) if high_first else (byte & 15, byte >> 4)
        assert table[byte].tolist() == [encoders.FP4[half] for half in halves]
