"""Sources that several plans share: opened once, their tensors kept in memory up to a budget."""

from __future__ import annotations

from eutectic.weights.checkpoint import Checkpoint
from eutectic.weights.files import Place
from eutectic.weights.held import Held

__all__ = ["Opened"]


class Opened:
    """Hand one to `plan` or `merge` of many recipes over the same sources, which must not change meanwhile.

    Args:
        held_bytes: of tensors to keep in memory; 0 keeps headers only.
    """

    def __init__(self, held_bytes: int = 0) -> None:
        self._held = Held(held_bytes)
        self._known: dict[tuple[Place, Place | None], Checkpoint] = {}

    def find(self, key: tuple[Place, Place | None]) -> Checkpoint | None:
        """The checkpoint (with its adapter) that was opened from a place, if it was."""
        return self._known.get(key)

    def keep(self, key: tuple[Place, Place | None], checkpoint: Checkpoint) -> Checkpoint:
        """Keep a checkpoint that was opened from a place; returns the one to read."""
        self._known[key] = self._held.hold(checkpoint)
        return self._known[key]
