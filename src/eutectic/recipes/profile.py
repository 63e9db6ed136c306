"""Where the time of a merge goes: stages of the run one after another, and what its threads did meanwhile.

A `Clock` is told what its thread does next. The plain one ignores it, which costs one empty call; a `Stopwatch` adds
up nanoseconds, each thread in its own, so that measuring takes no lock.
"""

from __future__ import annotations

import time
from typing import Any

__all__ = ["PHASES", "STAGES", "Clock", "Profile", "Stopwatch"]

STAGES = {
    "start": "loading the program",
    "plan": "headers, matching, checks",
    "kernels": "loading or compiling",
    "tiles": "all threads, see below",
    "finish": "side files, flush, rename",
}
PHASES = {
    "read": "from the sources",
    "compute": "the method's arithmetic",
    "hash": "of what is written",
    "write": "into the result",
    "wait": "for another thread",
}


class Clock:
    """Ignores what it is told: the clock of a run that nobody measures."""

    def enter(self, phase: str) -> None:
        """The thread now does `phase`, one of `PHASES` or `STAGES`; an empty name stops the clock."""


class Stopwatch(Clock):
    """One thread's nanoseconds by phase."""

    def __init__(self) -> None:
        self.spent: dict[str, int] = {}
        self._phase = ""
        self._since = 0

    def enter(self, phase: str) -> None:
        """Book the time since the last call to what was done until now."""
        now = time.perf_counter_ns()
        if self._phase:
            self.spent[self._phase] = self.spent.get(self._phase, 0) + now - self._since
        self._phase, self._since = phase, now


class Profile:
    """The stopwatches of one merge: `run` for its stages, `threads` for what each worker thread did in the tiles."""

    def __init__(self) -> None:
        self.run = Stopwatch()
        self.run.enter("start")
        self.threads: list[Stopwatch] = []

    def thread(self) -> Stopwatch:
        """A stopwatch for one more worker thread."""
        self.threads.append(Stopwatch())
        return self.threads[-1]

    def to_json(self) -> dict[str, Any]:
        """Seconds for programs; the keys are those of docs/merge.md."""
        sums = {phase: sum(thread.spent.get(phase, 0) for thread in self.threads) for phase in PHASES}
        whole = sum(sums.values())
        return {
            "wall": _seconds(sum(self.run.spent.values())),
            "stages": {stage: _seconds(self.run.spent.get(stage, 0)) for stage in STAGES},
            "phases": {
                phase: {"seconds": _seconds(spent), "share": round(spent / whole, 4) if whole else 0.0}
                for phase, spent in sums.items()
            },
            "threads": [{phase: _seconds(t.spent.get(phase, 0)) for phase in PHASES} for t in self.threads],
        }


def _seconds(nanoseconds: int) -> float:
    return round(nanoseconds / 1e9, 6)
