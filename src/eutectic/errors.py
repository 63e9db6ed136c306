"""Every error that Eutectic raises on purpose, and the exit code of each.

    EutecticError                             base class; raised where no other fits (70)
    ├── RecipeError                  exit 3   the wish cannot be read: unknown key, wrong type, bad value
    │   └── MethodError              exit 3   a method is unknown, or refuses its parameters or tensors
    ├── SourceError                  exit 4   a checkpoint is missing, malformed or does not fit the others
    │   ├── FormatError              exit 4   the bytes of a file break its format
    │   └── NonFiniteError           exit 4   a source holds NaN or infinity
    ├── OutputError                  exit 5   the target exists, is read-only, locked or unfinished
    ├── ResourceError                exit 6   too little memory or disk; no such GPU or cluster
    ├── VerificationError            exit 7   bytes on disk differ from what was recorded
    └── MissingDependencyError       exit 8   an optional library is not installed

Exit code 0 is success (`diff` and `verify` of equal things included), 1 is `diff` of different things, 2 is
click's usage error, 70 a fault of Eutectic itself, 130 an interruption.
An error says where, what was found and what to do; a message fits on one screen.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "EutecticError",
    "FormatError",
    "MethodError",
    "MissingDependencyError",
    "NonFiniteError",
    "OutputError",
    "RecipeError",
    "ResourceError",
    "SourceError",
    "VerificationError",
]


class EutecticError(Exception):
    """Base of every error raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 70


class RecipeError(EutecticError):
    """A recipe cannot be read or does not make sense. `problems` lists every fault found, one line each."""

    exit_code = 3

    def __init__(self, message: str, problems: Iterable[str] = ()) -> None:
        self.problems = tuple(problems)
        shown = self.problems[:MOST_PROBLEMS]
        lines = [message, *(f"  - {problem}" for problem in shown)]
        if len(self.problems) > len(shown):
            lines.append(f"  ... and {len(self.problems) - len(shown)} more")
        super().__init__("\n".join(lines))


class MethodError(RecipeError):
    """A merge method is unknown, or refuses its parameters or its tensors."""


class SourceError(EutecticError):
    """A checkpoint is missing, incomplete, or does not fit the other sources."""

    exit_code = 4


class FormatError(SourceError):
    """The bytes of a file break the format that its name promises."""


class NonFiniteError(SourceError):
    """A source tensor holds NaN or infinity."""


class OutputError(EutecticError):
    """The target exists, cannot be written, is locked by another run, or holds an unfinished merge."""

    exit_code = 5


class ResourceError(EutecticError):
    """The memory budget lies below the floor, the disk has too little room, or a GPU or cluster is not there."""

    exit_code = 6


class VerificationError(EutecticError):
    """Bytes on disk differ from what was recorded about them."""

    exit_code = 7


class MissingDependencyError(EutecticError):
    """An optional library is missing; the message carries the pip command."""

    exit_code = 8


MOST_PROBLEMS = 20  # one screen


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that names the nearest valid name: ``"; did you mean 'density'?"``, or nothing.

    >>> nearest("densty", ["weight", "density"])
    "; did you mean 'density'?"
    >>> nearest("zzz", ["weight"])
    ''
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
