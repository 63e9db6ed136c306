"""The public names are those of tests/golden/exports.txt; EUTECTIC_UPDATE_GOLDEN=1 rewrites it, for review."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import pytest

import eutectic

GOLDEN = Path(__file__).parent / "golden" / "exports.txt"


def exports() -> str:
    """One line per public name: what it is, and how it is called."""
    lines = []
    for name in sorted(eutectic.__all__):
        found = getattr(eutectic, name)
        kind = "class" if inspect.isclass(found) else "function"
        signature = str(inspect.signature(found)) if kind == "function" else ""
        lines.append(f"{kind} {name}{signature}")
        if kind == "class":
            public = sorted(member for member in dir(found) if not member.startswith("_"))
            lines += [f"  .{member}" for member in public if not hasattr(Exception, member)]
    return "\n".join(lines) + "\n"


def test_public_names_are_the_reviewed_ones() -> None:
    if os.environ.get("EUTECTIC_UPDATE_GOLDEN"):
        GOLDEN.write_text(exports())
    assert exports() == GOLDEN.read_text()


def test_all_is_sorted_and_complete() -> None:
    assert list(eutectic.__all__) == sorted(eutectic.__all__)
    assert set(eutectic.__all__) <= set(dir(eutectic))
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        eutectic.absent  # noqa: B018


def test_every_public_name_is_documented() -> None:
    for name in eutectic.__all__:
        assert (getattr(eutectic, name).__doc__ or "").strip(), name
