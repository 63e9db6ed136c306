"""Twin-Merging's parts: the best approximations of their rank, against a float64 reference; exact where they can be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from eutectic.pools.scheme import Span
from eutectic.pools.twin import TWIN, rank_of
from eutectic.weights.dtypes import BY_NAME

F32 = BY_NAME["F32"]
SHAPES = [(24, 40), (40, 24), (3, 12, 20), (16, 4, 3, 3), (16, 8, 5), (2, 16), (7,), ()]


def settings(**more: Any) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in TWIN.parameters.items()} | more


def rebuilt(shape: tuple[int, ...], core: np.ndarray, expert: np.ndarray, given: dict[str, Any]) -> np.ndarray:
    """An expert through `parts`, `encode`, rounding to float32, and `decode` in one stretch."""
    span = Span(shape, 0, core.size)
    _, parts = TWIN.parts(shape, F32, 1, given)
    _, (own,) = TWIN.encode(span, core, [expert], [given], None)
    assert {suffix: part.numel for suffix, part in parts.items()} == {suffix: a.size for suffix, a in own.items()}
    stored = {suffix: array.astype(np.float32) for suffix, array in own.items()}
    return TWIN.decode(span, core, {}, stored, given)


def matrices(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return array.reshape(shape if len(shape) == 3 and shape[2] > 8 else (1, shape[0], -1)).astype(np.float64)


@pytest.mark.parametrize("share", [0.1, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_missing_is_what_any_matrix_of_that_rank_must_miss(shape: tuple[int, ...], share: float) -> None:
    random, given = np.random.default_rng(0), settings(share=share)
    size = int(np.prod(shape))
    core, expert = random.standard_normal((2, size)).astype(np.float32)
    found, rank = rebuilt(shape, core, expert, given), rank_of(shape, given)
    if rank is None:
        assert np.array_equal(found, expert)
        return
    wanted, missed = matrices(expert.astype(np.float64) - core, shape), matrices(expert - found, shape)
    assert rank == max(1, int(share * min(wanted.shape[1:])))
    for matrix, rest in zip(wanted, missed, strict=True):
        least = np.linalg.norm(np.linalg.svd(matrix, compute_uv=False)[rank:])  # Eckart and Young
        assert abs(np.linalg.norm(rest) - least) < 1e-4 * least


@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_is_exact(shape: tuple[int, ...]) -> None:
    core, expert = np.random.default_rng(1).standard_normal((2, int(np.prod(shape)))).astype(np.float32)
    for given in (settings(share=1.0), settings(rank=1000)):
        assert np.array_equal(rebuilt(shape, core, expert, given), expert)


@pytest.mark.parametrize("shape", [(24, 40), (3, 12, 20), (16, 4, 3, 3)])
def test_deltas_of_low_rank_come_back_and_zero_stays_zero(shape: tuple[int, ...]) -> None:
    random, given = np.random.default_rng(2), settings(share=0.3)
    core = random.standard_normal(int(np.prod(shape))).astype(np.float32)
    assert np.array_equal(rebuilt(shape, core, core, given), core)
    stack = matrices(core, shape)
    thin = random.standard_normal((len(stack), stack.shape[1], 1)) @ random.standard_normal((1, stack.shape[2]))
    expert = (stack + thin).astype(np.float32).reshape(-1)
    np.testing.assert_allclose(rebuilt(shape, core, expert, given), expert, atol=2e-6, rtol=0)


def test_factors_are_balanced() -> None:
    core, expert = np.zeros(24 * 40, np.float32), np.random.default_rng(3).standard_normal(24 * 40).astype(np.float32)
    own = TWIN.encode(Span((24, 40), 0, 960), core, [expert], [settings()], None)[1][0]
    left, right = own["left"].reshape(24, 2), own["right"].reshape(2, 40)
    np.testing.assert_allclose(np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1), rtol=1e-9)


@pytest.mark.parametrize("shape", [(24, 40), (5, 12, 20), (16, 4, 3, 3), (33,)])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_every_stretch_has_the_same_bits(shape: tuple[int, ...], kind: type) -> None:
    random, given = np.random.default_rng(4), settings(share=0.3)
    size = int(np.prod(shape))
    core, expert = random.standard_normal((2, size)).astype(kind)
    own = TWIN.encode(Span(shape, 0, size), core, [expert], [given], None)[1][0]
    stored = {suffix: array.astype(kind) for suffix, array in own.items()}
    parts = TWIN.parts(shape, F32, 1, given)[1]
    whole = TWIN.decode(Span(shape, 0, size), core, {}, stored, given)
    row = Span(shape, 0, 0).row
    for start, stop in ((0, row), (row, 4 * row), (2 * row, size)):
        span = Span(shape, start, stop)
        piece = {suffix: stored[suffix][slice(*parts[suffix].stretch(span))] for suffix in stored}
        found = TWIN.decode(span, core[start:stop], {}, piece, given)
        assert found.dtype == kind and np.array_equal(found, whole[start:stop])
