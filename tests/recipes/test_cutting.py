"""Cutting: tiles are whole blocks within the tensor, budgets are kept, a floor is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import eutectic
from eutectic.errors import ResourceError
from eutectic.ops.program import BLOCK
from eutectic.recipes.cutting import buffers_of, cut, tile_of
from eutectic.recipes.options import Options
from eutectic.recipes.plan import Plan


@pytest.fixture
def planned(make_model: Callable[..., Path]) -> Plan:
    models = [make_model(name, {"large": np.zeros(5 * BLOCK + 3, "f4"), "small": np.zeros(7, "f4")}) for name in "ab"]
    sources = [{"model": str(model), "parameters": {"weight": 1}} for model in models]
    return eutectic.plan({"merge_method": "linear", "models": sources})


def test_tiles_are_whole_blocks_no_longer_than_the_tensor(planned: Plan) -> None:
    large, small = planned.steps
    programs = planned.programs_of(large)
    assert [tile_of(large, most * BLOCK, programs) for most in (1, 2, 4, 100)] == [
        BLOCK,
        2 * BLOCK,
        4 * BLOCK,
        6 * BLOCK,
    ]
    assert tile_of(small, 4 * BLOCK, planned.programs_of(small)) == BLOCK


def test_torch_gets_what_its_scope_needs(planned: Plan) -> None:
    assert tile_of(planned.steps[0], 2 * BLOCK, {}) == 2 * BLOCK  # linear is element by element


def test_buffers_grow_with_threads_tiles_and_what_sources_hold(planned: Plan) -> None:
    one = buffers_of(planned.kinds, 0, 1, BLOCK)
    assert buffers_of(planned.kinds, 1000, 1, BLOCK) == one + 1000
    assert one < buffers_of(planned.kinds, 0, 2, BLOCK) < buffers_of(planned.kinds, 0, 2, 4 * BLOCK)


@pytest.mark.parametrize("held", [0, 1 << 20])
def test_every_budget_from_the_floor_is_kept(planned: Plan, held: int) -> None:
    floor = buffers_of(planned.kinds, held, 1, BLOCK)
    for budget in (floor, 2 * floor, 8 * floor, 100 * floor):
        shape = cut(planned.kinds, held, Options(max_memory=budget, threads=4))
        assert shape.buffers == buffers_of(planned.kinds, held, shape.threads, shape.tile) <= budget
    with pytest.raises(ResourceError, match=f"below the floor of {floor:,} bytes .* large"):
        cut(planned.kinds, held, Options(max_memory=floor - 1, threads=4))
