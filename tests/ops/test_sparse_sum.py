"""`SparseSum` driven by hand over any partition into tiles: exactly k kept, norms restored, the same bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eutectic.ops.program import BLOCK, Tile
from eutectic.ops.quantile import kept_count
from eutectic.ops.random import draw_key, philox_words
from eutectic.ops.sparse_sum import SparseSum

F32 = 2


def run(program: SparseSum, base: np.ndarray, sources: Sequence[np.ndarray], starts: Sequence[int]) -> np.ndarray:
    """All passes, each over tiles that begin at these blocks (in any order), then the combination."""
    count = len(base)
    blocks = -(-count // BLOCK)
    ends = {start: min([s for s in starts if s > start], default=blocks) for start in starts}
    values = np.stack([base, *sources]).astype(np.float32)

    def tile(start: int) -> Tile:
        first, last = start * BLOCK, min(ends[start] * BLOCK, count)
        rows = values[:, first:last].copy().view(np.uint8)
        codes, bad = np.full(len(rows), F32, dtype=np.int64), np.zeros(len(rows), dtype=np.int64)
        return Tile(rows, codes, last - first, first, start, bad)

    found = program.begin(count, blocks)
    while (reduction := program.wants(found)) is not None:
        per_block = reduction.fold == "blocks"
        total = np.zeros(((blocks,) if per_block else ()) + reduction.shape, dtype=reduction.dtype)
        for start in starts:
            program.reduce(reduction, tile(start), found, total[start : ends[start]] if per_block else total)
        found = program.solve(reduction, total, found)
    merged = np.empty(count, dtype=np.float32)
    for start in starts:
        part = tile(start)
        out = np.empty(4 * part.n, dtype=np.uint8)
        program.combine(part, found, out, F32)
        merged[part.first : part.first + part.n] = out.view(np.float32)
    return merged


def trimmed(values: np.ndarray, density: float) -> np.ndarray:
    """The k largest magnitudes, ties to the lowest index: by a stable sort."""
    kept = np.zeros_like(values)
    chosen = np.argsort(-np.abs(values), kind="stable")[: kept_count(density, len(values))]
    kept[chosen] = values[chosen]
    return kept


@st.composite
def partitions(draw: st.DrawFn, blocks: int = 4) -> list[int]:
    """First blocks of tiles, in any order."""
    inner = draw(st.sets(st.integers(1, blocks - 1)))
    return draw(st.permutations([0, *sorted(inner)]))


@settings(max_examples=25, deadline=None)
@given(partitions(), st.floats(0, 1), st.integers(1, 6), st.integers(0, 99))
def test_exactly_k_are_kept_whatever_the_tiles(starts: list[int], density: float, most: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    delta = random.integers(-most, most + 1, 3 * BLOCK + 1234).astype(np.float32)
    merged = run(SparseSum([1.0], [density]), np.zeros_like(delta), [delta], starts)
    assert (merged == trimmed(delta, density)).all()
    nonzero = np.count_nonzero(delta)
    assert np.count_nonzero(merged) == min(nonzero, kept_count(density, len(delta)))


@pytest.mark.parametrize("count", [0, 1, 2, 100, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK])
@pytest.mark.parametrize("density", [0.0, 1e-9, 0.37, 1.0])
def test_exactly_k_are_kept_of_any_length(count: int, density: float) -> None:
    delta = np.random.default_rng(count).integers(-3, 4, count).astype(np.float32)
    starts = list(range(-(-count // BLOCK)))
    assert (run(SparseSum([1.0], [density]), np.zeros_like(delta), [delta], starts) == trimmed(delta, density)).all()


def test_numbers_in_one_bin_of_the_histogram_are_told_apart() -> None:
    bits = (
        np.float32(1.0).view(np.uint32) + np.random.default_rng(1).permutation(BLOCK + 5000).astype(np.uint32) % 60000
    )
    delta = bits.view(np.float32)
    for density in (0.1, 0.5, 0.9):
        assert (
            run(SparseSum([1.0], [density]), np.zeros_like(delta), [delta], [0, 1]) == trimmed(delta, density)
        ).all()


@settings(max_examples=10, deadline=None)
@given(partitions(), st.sampled_from(["none", "weighted", "paper"]), st.sampled_from(["none", "l1", "inverse_density"]))
@pytest.mark.parametrize("random_masks", [False, True])
def test_results_do_not_depend_on_the_tiles(random_masks: bool, starts: list[int], vote: str, rescale: str) -> None:
    random = np.random.default_rng(3)
    base, *sources = random.standard_normal((4, 3 * BLOCK + 1234)).astype(np.float32)
    sources[1] = np.round(sources[1])
    keys = [draw_key(0, "w", source) for source in range(3)] if random_masks else None
    program = SparseSum(
        [0.5, -1.0, 2.0], [0.3, 0.5, 1.0], keys=keys, vote=vote, normalize=True, scale=0.7, rescale=rescale
    )
    whole = run(program, base, sources, [0])
    assert (run(program, base, sources, starts) == whole).all()


@pytest.mark.parametrize("random_masks", [False, True])
@pytest.mark.parametrize("count", [1, 5000, 2 * BLOCK + 99])
def test_l1_norms_are_restored(random_masks: bool, count: int) -> None:
    delta = np.random.default_rng(count).standard_normal(count).astype(np.float32)
    key = draw_key(0, "w", 0)
    program = SparseSum([1.0], [0.25], keys=[key] if random_masks else None, rescale="l1")
    merged = run(program, np.zeros_like(delta), [delta], list(range(-(-count // BLOCK))))
    mask = philox_words(key, 0, count).numpy() < 0.25 * 2**32
    kept = delta * mask if random_masks else trimmed(delta, 0.25)
    before, after = (np.abs(values.astype(np.float64)).sum() for values in (delta, kept))
    np.testing.assert_allclose(merged, kept.astype(np.float64) * (before / after if after else 1), rtol=2e-6)


def test_a_source_that_is_the_base_is_left_alone() -> None:
    base = np.random.default_rng(0).standard_normal(BLOCK + 10).astype(np.float32)
    for rescale in ("none", "l1", "inverse_density"):
        program = SparseSum([1.0], [0.5], vote="weighted", normalize=True, rescale=rescale)
        assert (run(program, base, [base], [0, 1]) == base).all()


@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_counted_for_its_row(strange: float) -> None:
    program = SparseSum([1.0, 1.0], [1.0, 1.0])
    values = np.zeros((3, 5000), np.float32)
    values[2, 4999] = strange
    bad, out = np.zeros(3, dtype=np.int64), np.empty(20000, np.uint8)
    tile = Tile(values.view(np.uint8), np.full(3, F32, dtype=np.int64), 5000, 0, 0, bad)
    program.combine(tile, program.begin(5000, 1), out, F32)
    assert (bad > 0).tolist() == [False, False, True]
