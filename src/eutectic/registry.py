"""Plug-ins: objects that other installed packages offer under an entry-point group."""

from __future__ import annotations

from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from eutectic.errors import EutecticError

__all__ = ["Plugins"]


class Plugins:
    """The entry points of one group, looked up at first use and loaded one by one."""

    def __init__(self, group: str) -> None:
        self.group = group

    @cached_property
    def _found(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}

    def names(self) -> list[str]:
        """Names on offer, sorted."""
        return sorted(self._found)

    def load(self, name: str) -> Any:
        """Import one; a plug-in that fails to import is an error that names its package."""
        point = self._found[name]
        try:
            return point.load()
        except Exception as error:
            package = point.dist.name if point.dist else "an unknown package"
            raise EutecticError(
                f"the plug-in {name!r} of {package} ({point.value}) failed to load: {type(error).__name__}: {error}"
            ) from error
