"""Running chains of stages on a few threads: tiles of one stage in parallel, stages of one chain in order.

A chain is a generator of stages (one tensor's passes); code between two yields runs once, after every tile of the
stage before it. Threads take the next tile of the oldest chain that has one, so a huge tensor is shared by all of
them, and start a new chain only when the older ones wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from eutectic.recipes.profile import Clock

__all__ = ["Chain", "Stage", "run_chains"]


@dataclass(eq=False)
class Stage:
    """Tiles that may run in any order, on any thread: ``run(tile, worker)`` with the worker's own context."""

    tiles: Iterator[Any]
    run: Callable[[Any, Any], None]


Chain = Generator[Stage, None, None]


@dataclass(eq=False)
class _Running:
    chain: Chain
    stage: Stage
    outstanding: int = 0
    drained: bool = False


class _Scheduler:
    def __init__(self, chains: Iterable[Chain], most_running: int) -> None:
        self.waiting = iter(chains)
        self.most_running = most_running
        self.running: list[_Running] = []
        self.starting = 0
        self.exhausted = False
        self.error: BaseException | None = None
        self.change = threading.Condition()

    def work(self, worker: Any) -> None:
        clock = getattr(worker, "clock", Clock())  # a worker may be anything; one that is timed brings its clock
        try:
            while True:
                clock.enter("wait")
                found = self._next()
                if found is None:
                    return
                running, tile = found
                clock.enter("compute")
                if tile is not _START:
                    running.stage.run(tile, worker)
                    clock.enter("compute")
                self._done(running, tile)
        except BaseException as error:
            self.fail(error)
        finally:
            clock.enter("")

    def fail(self, error: BaseException) -> None:
        with self.change:
            self.error = self.error or error
            self.change.notify_all()

    def _next(self) -> tuple[_Running, Any] | None:
        with self.change:
            while True:
                if self.error is not None:
                    return None
                for running in self.running:
                    if running.drained:
                        continue
                    for tile in running.stage.tiles:
                        running.outstanding += 1
                        return running, tile
                    running.drained = True
                    if running.outstanding == 0:
                        running.outstanding += 1
                        return running, _START
                if not self.exhausted and len(self.running) < self.most_running:
                    chain = next(self.waiting, None)
                    if chain is not None:
                        running = _Running(chain, _EMPTY, 1, True)
                        self.running.append(running)
                        return running, _START
                    self.exhausted = True
                if self.exhausted and not self.running:
                    self.change.notify_all()
                    return None
                self.change.wait()

    def _done(self, running: _Running, tile: Any) -> None:
        with self.change:
            running.outstanding -= 1
            if not (running.drained and running.outstanding == 0):
                return
        stage = next(running.chain, None)  # outside the lock: this thread alone owns the chain now
        with self.change:
            if stage is None:
                self.running.remove(running)
            else:
                running.stage, running.drained = stage, False
            self.change.notify_all()


_START = object()
_EMPTY = Stage(iter(()), lambda tile, worker: None)


def run_chains(chains: Iterable[Chain], workers: list[Any], most_running: int) -> None:
    """Run every chain to its end, one thread per worker context; the first error stops all and is raised here."""
    scheduler = _Scheduler(chains, most_running)
    threads = [threading.Thread(target=scheduler.work, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException as error:  # an interruption: let the tiles under way finish, then stop
        scheduler.fail(error)
        for thread in threads:
            thread.join()
        raise
    if scheduler.error is not None:
        raise scheduler.error
