"""Who watches `eutectic merge`: a screen for people on stderr, or events for programs on stdout."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from eutectic.cli.output import emit_event
from eutectic.cli.run_options import describe
from eutectic.recipes.merge import Watcher

if TYPE_CHECKING:
    from rich.progress import Progress

    from eutectic.recipes.lora_output import Factored
    from eutectic.recipes.plan import Plan

__all__ = ["Events", "Screen"]

INTERVAL = 0.1  # seconds between two progress events, at least


class Screen(Watcher):
    """A bar where stderr is a terminal, sentences elsewhere."""

    def __init__(self, *, quiet: bool, verbose: int) -> None:
        self.quiet, self.verbose = quiet, verbose
        self.plan: Plan | None = None
        self.modules: tuple[Factored, ...] = ()
        self.bar: Progress | None = None
        self.advance: Callable[[int], None] = lambda nbytes: None

    def planned(self, plan: Plan) -> None:
        """Print the plan if it was asked for, and start the bar."""
        self.plan = plan
        if self.verbose and not self.quiet:
            click.echo("\n".join(describe(plan)), err=True)
        if self.quiet or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn("merging"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        self.bar = bar = Progress(*columns, console=Console(stderr=True), transient=True)
        bar.start()
        task = bar.add_task("merging", total=plan.bytes_moved)
        self.advance = lambda nbytes: bar.advance(task, nbytes)

    def compiling(self) -> None:
        """Say why nothing moves."""
        if not self.quiet:
            click.echo("Compiling the merge kernels for this machine; this happens once.", err=True)

    def moved(self, nbytes: int) -> None:
        """Advance the bar."""
        self.advance(nbytes)

    def factored(self, modules: tuple[Factored, ...]) -> None:
        """Keep the errors until the adapter is written."""
        self.modules = modules

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()


class Events(Watcher):
    """One JSON object a line; the keys are those of docs/merge.md. Worker threads report, one at a time."""

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.modules: tuple[Factored, ...] = ()
        self.lock = threading.Lock()
        self.done = self.total = 0
        self.before = -1  # bytes that an earlier run had moved, which say nothing about this one's rate
        self.begun = self.told = 0.0

    def planned(self, plan: Plan) -> None:
        """The event ``planned``."""
        self.plan, self.total = plan, plan.bytes_moved
        emit_event("merge", "planned", {"plan": plan.to_json()})

    def compiling(self) -> None:
        """The event ``compiling``."""
        with self.lock:
            emit_event("merge", "compiling", {})

    def moved(self, nbytes: int) -> None:
        """The event ``progress``, at most ten times a second."""
        with self.lock:
            self.done += nbytes
            now = time.perf_counter()
            if self.before < 0:
                self.before, self.begun = self.done, now
                return
            if now - self.told < INTERVAL:
                return
            self.told = now
            rate = (self.done - self.before) / max(now - self.begun, 1e-9)
            emit_event("merge", "progress", {"done": self.done, "total": self.total, "rate": round(rate)})

    def factored(self, modules: tuple[Factored, ...]) -> None:
        """Keep the errors for the event ``finished``."""
        self.modules = modules

    def close(self) -> None:
        """Nothing is open."""
