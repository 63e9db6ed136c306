"""Plug-ins of other installed packages, and what opens folders that hold several models in a form of their own."""

from __future__ import annotations

import os
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from eutectic.errors import EutecticError

__all__ = ["MEMBERS", "Plugins", "keeper_of"]

# the file by which such a folder is known: the module that opens it, imported when one is met. The module has
# open_member(folder, name) -> Checkpoint, and member_facts(folder, name) -> (folder of side files, licence or None)
MEMBERS = {"pool.json": "eutectic.pools.pool"}


def keeper_of(folder: Path) -> Any:
    """The module that opens the models that a folder keeps by name; None for any other folder."""
    for marker, module in MEMBERS.items():
        if os.path.isfile(folder / marker):  # noqa: PTH113  (never raises)
            return import_module(module)
    return None


class Plugins:
    """The entry points of one group, looked up at first use and loaded one by one."""

    def __init__(self, group: str) -> None:
        self.group = group

    @cached_property
    def _found(self) -> dict[str, list[EntryPoint]]:
        found: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=self.group):
            found.setdefault(point.name, []).append(point)
        return found

    def names(self) -> list[str]:
        """Names on offer, sorted."""
        return sorted(self._found)

    def origin(self, name: str) -> str:
        """The package that offers a name, and where in it; all of them, where several do."""
        points = self._found[name]
        return " and ".join(f"{p.dist.name if p.dist else 'an unknown package'} ({p.value})" for p in points)

    def load(self, name: str) -> Any:
        """Import one.

        Raises:
            EutecticError: it fails to import, or several packages offer the name; the message names them.
        """
        point, *others = self._found[name]
        if others:
            raise EutecticError(f"the plug-in {name!r} is offered by {self.origin(name)}; uninstall all but one")
        try:
            return point.load()
        except Exception as error:
            raise EutecticError(
                f"the plug-in {name!r} of {self.origin(name)} failed to load: {type(error).__name__}: {error}"
            ) from error
