"""What a file from a stranger claims about its tensors: which numbers can be sizes, and how names are shown."""

from __future__ import annotations

from typing import Any

__all__ = ["MOST_DIMENSIONS", "is_size", "shown"]

MOST_DIMENSIONS = 64


def is_size(value: Any) -> bool:
    """Whether a value can be a size or an offset: a whole number that fits in 63 bits, and no truth value."""
    return type(value) is int and 0 <= value < 1 << 63


def shown(name: str) -> str:
    """A name for a message: quoted, and cut where it is too long to read.

    >>> shown("w" * 200) == repr("w" * 117 + "...")
    True
    """
    return repr(name if len(name) <= 120 else name[:117] + "...")
