"""Ctrl-C, from our first line to the last: exit code 130 and one sentence, or the outcome that stands already.

Python alone leaves gaps. Before the command runs and after it, an interruption ends in a traceback, in click's
"Aborted!" or, once the interpreter takes its handlers down, in death by the signal. It ends so, too, where the
KeyboardInterrupt that we caught had passed through an `exec` of text, as imports do: the interpreter notes that one as
unhandled. And one that is raised in a callback of the garbage collector is printed and forgotten.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn

__all__ = ["INTERRUPTED", "allow", "arm", "leave", "settle"]

INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
AGAIN = 0.01  # seconds until an interruption that got lost is raised anew


class _State:
    armed = False
    running = False


def arm() -> None:
    """Take over SIGINT for this process, unless whoever started it had it ignored (as `nohup` and scripts do)."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
        signal.signal(signal.SIGALRM, _interrupt)
        sys.unraisablehook = _unraisable
        _State.armed = True


def allow() -> None:
    """From now on an interruption is a KeyboardInterrupt, so that the command can end its threads and files."""
    _State.running = True


def settle() -> None:
    """The outcome stands: an interruption from now on changes nothing, up to the interpreter's end."""
    if _State.armed:
        for number in (signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)  # the one handler that the interpreter does not take down
    _State.running = False


def leave() -> None:
    """End an interrupted process, whose command has ended its threads and files, with exit code 130."""
    if _State.armed:
        with suppress(OSError):  # a reader that has gone away
            sys.stdout.flush()
        os._exit(INTERRUPTED)  # not through the interpreter, which may have noted the interruption as unhandled


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _State.running:
        _State.running = False
        raise KeyboardInterrupt
    _quit()


def _quit() -> NoReturn:
    """Before the command there is nothing to end; at a second Ctrl-C nobody wants to wait, and staged work is safe."""
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def _unraisable(found: sys.UnraisableHookArgs) -> None:
    if found.exc_type is KeyboardInterrupt and _State.armed:
        _State.running = True
        signal.setitimer(signal.ITIMER_REAL, AGAIN)  # not here, where it would be lost again
    else:
        sys.__unraisablehook__(found)
