"""`run_chains`: every tile once, stages in order, the first error out; for any number of threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eutectic.recipes.executors.schedule import Chain, Stage, run_chains


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.lists(st.integers(0, 5), max_size=4), max_size=6),
    workers=st.integers(1, 4),
    most=st.integers(1, 5),
)
def test_every_tile_runs_once_and_stages_wait_for_each_other(shape: list[list[int]], workers: int, most: int) -> None:
    events: list[tuple[str, int, int, int]] = []
    lock = threading.Lock()
    running: set[int] = set()
    highest = 0

    def chain(at: int, stages: list[int]) -> Chain:
        nonlocal highest
        with lock:
            running.add(at)
            highest = max(highest, len(running))
        for stage, tiles in enumerate(stages):

            def run(tile: int, worker: Any, stage: int = stage) -> None:
                with lock:
                    events.append(("tile", at, stage, tile))

            yield Stage(iter(range(tiles)), run)
            with lock:
                events.append(("after", at, stage, -1))
        with lock:
            running.discard(at)

    run_chains((chain(at, stages) for at, stages in enumerate(shape)), list(range(workers)), most)
    tiles = sorted(event for event in events if event[0] == "tile")
    wanted = [
        ("tile", at, s, t) for at, stages in enumerate(shape) for s, count in enumerate(stages) for t in range(count)
    ]
    assert tiles == sorted(wanted)
    assert highest <= most
    for at, stages in enumerate(shape):
        mine = [event for event in events if event[1] == at]
        assert [stage for _, _, stage, _ in mine] == sorted(stage for _, _, stage, _ in mine)
        assert [event[2] for event in mine if event[0] == "after"] == list(range(len(stages)))


def test_each_worker_is_used_by_one_thread_at_a_time() -> None:
    busy: dict[int, int] = {0: 0, 1: 0, 2: 0}
    clashes: list[int] = []

    def run(tile: int, worker: int) -> None:
        busy[worker] += 1
        if busy[worker] > 1:
            clashes.append(worker)
        time.sleep(0.0005)
        busy[worker] -= 1

    def chain() -> Chain:
        yield Stage(iter(range(40)), run)

    run_chains([chain() for _ in range(3)], [0, 1, 2], 2)
    assert not clashes


def test_a_long_chain_is_shared_by_all_threads() -> None:
    barrier = threading.Barrier(3, timeout=5)

    def chain() -> Chain:
        yield Stage(iter(range(3)), lambda tile, worker: barrier.wait() and None)

    run_chains([chain()], [0, 1, 2], 1)


def in_time(call: Any, seconds: float = 10) -> BaseException | None:
    """The exception that `call` raises, or None; fails instead of hanging."""
    found: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
            found.append(None)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, "still running"
    return found[0]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("where", ["tile", "between", "start", "tiles", "chains"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_anywhere_stops_everything_and_comes_out(workers: int, where: str) -> None:
    done: list[int] = []

    def tiles() -> Iterator[int]:
        for at in range(1000):
            if where == "tiles" and at == 5:
                raise ValueError(where)
            yield at

    def run(tile: int, worker: Any) -> None:
        if where == "tile" and tile == 5:
            raise ValueError(where)
        time.sleep(0.0005)
        done.append(tile)

    def chain() -> Chain:
        if where == "start":
            raise ValueError(where)
        yield Stage(iter(range(3)), run)
        if where == "between":
            raise ValueError(where)
        yield Stage(tiles(), run)

    def chains() -> Iterator[Chain]:
        yield chain()
        if where == "chains":
            raise ValueError(where)

    error = in_time(lambda: run_chains(chains(), list(range(workers)), 2))
    assert isinstance(error, ValueError) and str(error) == where
    if where != "chains":
        assert len(done) < 100


def test_nothing_to_do() -> None:
    run_chains([], [0, 1], 3)
