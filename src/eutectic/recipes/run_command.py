"""The metric of each checkpoint of a run, measured by a command of the user's."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress

from eutectic.errors import RecipeError, SourceError
from eutectic.recipes.training_run import Saved

__all__ = ["measure"]

PLACE = "{checkpoint}"


def measure(
    command: str,
    saved: Sequence[Saved],
    *,
    timeout: float | None = None,
    report: Callable[[Saved, float], None] | None = None,
) -> list[float]:
    """Run a shell command for each checkpoint; the last line that it prints is the value.

    Args:
        command: holds ``{checkpoint}``, which becomes the checkpoint's path, quoted. timeout: seconds for each.
        report: called with each checkpoint and its value.

    Raises:
        RecipeError: the command does not hold ``{checkpoint}``.
        SourceError: it fails, takes too long, or prints no number.
    """
    if PLACE not in command:
        raise RecipeError(f"the evaluator {command!r} does not hold {PLACE}, the place of a checkpoint's path")
    values: list[float] = []
    for entry in saved:
        values.append(_run(command.replace(PLACE, shlex.quote(str(entry.path))), entry, timeout))
        if report is not None:
            report(entry, values[-1])
    return values


def _run(command: str, entry: Saved, timeout: float | None) -> float:
    done = False
    process = subprocess.Popen(
        command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        printed, complaints = process.communicate(timeout=timeout)
        done = True
    except subprocess.TimeoutExpired:
        raise SourceError(f"the evaluator took more than {timeout:g} s for {entry.name}; see --timeout") from None
    finally:
        if not done:  # ends what it started, too: without its shell that would run on
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        said = next((line for line in reversed(complaints.splitlines()) if line.strip()), "nothing on stderr")
        raise SourceError(
            f"the evaluator fails for {entry.name} with exit code {process.returncode}: {said.strip()[:300]}"
        )
    last = next((line.strip() for line in reversed(printed.splitlines()) if line.strip()), "")
    try:
        return float(last)
    except ValueError:
        shown = repr(last[:80]) if last else "nothing"
        raise SourceError(f"the evaluator must print a number last; for {entry.name} it prints {shown}") from None
