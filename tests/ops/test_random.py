"""Philox: the published answers, the layout of the words, one stream for torch and the kernel, and its statistics."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from eutectic.ops.program import Tile
from eutectic.ops.random import GROUP, Draws, bound, draw_key, philox_words
from eutectic.ops.sparse_sum import SparseSum

ONES = 0xFFFFFFFF
KNOWN = [  # Random123, kat_vectors, philox4x32 with 10 rounds: counter, key, answer
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox-4x32-10 in whole numbers, straight from the paper."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (right >> 32) ^ b ^ k, right & ONES, (left >> 32) ^ d ^ m, left & ONES
        k, m = (k + 0x9E3779B9) & ONES, (m + 0xBB67AE85) & ONES
    return a, b, c, d


def word(key: tuple[int, int], element: int) -> int:
    """Word number `element` of a stream, as the module's docstring lays them out."""
    group, place = divmod(element, GROUP)
    counter = 256 * group + place % 256
    return philox((counter & ONES, counter >> 32, 0, 0), key)[place // 256]


def kernel_mask(key: tuple[int, int], first: int, count: int, probability: float) -> torch.Tensor:
    """Which elements the kernel keeps: deltas of one on a base of zero."""
    rows = np.stack([np.zeros(count, np.float32), np.ones(count, np.float32)]).view(np.uint8)
    codes, bad, out = np.full(2, 2, dtype=np.int64), np.zeros(2, dtype=np.int64), np.empty(4 * count, np.uint8)
    program = SparseSum([1.0], [probability], keys=[key])
    program.combine(Tile(rows, codes, count, first, first // 65536, bad), program.begin(count, 1), out, 2)
    return torch.from_numpy(out.view(np.float32)) != 0


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_the_reference_in_this_file_gives_the_published_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], answer: tuple[int, int, int, int]
) -> None:
    assert philox(counter, key) == answer


@pytest.mark.parametrize("key", [(0, 0), (ONES, ONES), (0xA4093822, 0x299F31D0), draw_key(7, "x", 1)])
@pytest.mark.parametrize("start", [0, 1, 255, 1023, 1024, 5000, (1 << 34) - 3, (1 << 34) + 1029, (1 << 41) + 7])
def test_words_are_philox(key: tuple[int, int], start: int) -> None:
    count = 40
    assert philox_words(key, start, count).tolist() == [word(key, start + i) for i in range(count)]


@pytest.mark.parametrize("lane", range(4))
def test_the_four_words_of_a_block_lie_256_apart(lane: int) -> None:
    assert philox_words((0, 0), 256 * lane, 1).item() == KNOWN[0][2][lane]


def test_chunks_are_parts_of_one_stream() -> None:
    whole = philox_words((1, 2), 0, 5000)
    for cuts in ([0, 1, 2, 5000], [0, 1024, 2048, 5000], [0, 999, 1000, 4097, 5000]):
        parts = [philox_words((1, 2), a, b - a) for a, b in itertools.pairwise(cuts)]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("probability", [0.0, 2.0**-32, 0.3, 0.5, 1 - 2.0**-32, 1.0])
@pytest.mark.parametrize(("first", "count"), [(0, 1), (0, 70_001), (65536, 3000), (1 << 34, 3000), (1 << 41, 3000)])
def test_the_kernel_keeps_what_torch_keeps(probability: float, first: int, count: int) -> None:
    key = draw_key(3, "layer.0", 2)
    expected = philox_words(key, first, count) < bound(probability)
    assert torch.equal(kernel_mask(key, first, count, probability), expected)
    assert torch.equal(Draws(3, "layer.0", first).keep(2, torch.empty(count), probability), expected)


def test_probabilities_zero_and_one_are_certain() -> None:
    like = torch.empty(3, 1000)
    assert not Draws().keep(0, like, 0.0).any()
    assert Draws().keep(0, like, 1.0).all()
    assert Draws().keep(0, like, 0.5).shape == like.shape


@pytest.mark.parametrize("probability", [0.01, 0.1, 0.5, 0.9])
def test_the_keep_rate_is_the_probability(probability: float) -> None:
    count = 1 << 19
    kept = Draws(11, "w").keep(0, torch.empty(count), probability).double().mean().item()
    assert abs(kept - probability) < 5 * math.sqrt(probability * (1 - probability) / count)


def test_words_of_different_streams_and_places_are_uncorrelated() -> None:
    count = 1 << 17
    keys = [draw_key(seed, name, source) for seed in (0, 1) for name in ("a", "b") for source in (0, 1)]
    streams = torch.stack([philox_words(key, 0, count).double() for key in keys])
    streams = torch.cat([streams, *(streams[:1].roll(lag, 1) for lag in (1, 256, 1024))])
    correlation = torch.corrcoef(streams).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / math.sqrt(count)


def test_bits_are_balanced() -> None:
    words = philox_words((5, 6), 0, 1 << 17)
    for bit in range(32):
        assert abs(((words >> bit) & 1).double().mean().item() - 0.5) < 5 * 0.5 / math.sqrt(len(words))


def test_every_part_of_the_key_matters() -> None:
    keys = [draw_key(seed, name, source) for seed in (0, 1, 12) for name in ("", "a", "b") for source in (0, 1, 2)]
    assert len(set(keys)) == len(keys)
    assert all(0 <= half <= ONES for key in keys for half in key)
