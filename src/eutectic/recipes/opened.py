"""Sources that several plans share: opened once, their tensors kept in memory up to a budget."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from eutectic.weights.adapter_delta import Changes
from eutectic.weights.checkpoint import Checkpoint
from eutectic.weights.held import Held

__all__ = ["Opened"]

Source = tuple[Checkpoint, str | None]


class Opened:
    """Hand one to `plan` of many recipes over the same sources, which must not change meanwhile.

    Args:
        held_bytes: of tensors to keep in memory; 0 keeps headers only.
    """

    def __init__(self, held_bytes: int = 0) -> None:
        self._held = Held(held_bytes) if held_bytes else None
        self._known: dict[Hashable, Source] = {}

    def get(self, key: Hashable, open: Callable[[], Source]) -> Source:
        """The source known by a key, opened if it is not yet: its checkpoint, and how it is stored."""
        if key not in self._known:
            checkpoint, words = open()
            self._known[key] = checkpoint, words
            if self._held and not isinstance(checkpoint, Changes):  # of which the factors are held, and small
                self._known[key] = self._held.hold(checkpoint), words
        return self._known[key]
