"""``FOLDER#NAME``: one of the models that a folder keeps by name, in its own form (`eutectic.registry.MEMBERS`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eutectic.errors import SourceError
from eutectic.registry import keeper_of
from eutectic.weights.files import RemotePath, SourceFile

if TYPE_CHECKING:
    from eutectic.weights.checkpoint import Checkpoint

__all__ = ["MemberPath", "member_at"]


class MemberPath(RemotePath):
    """The place of a member. Its side files (config.json, a tokenizer) are those of the folder that `side` names."""

    def __init__(self, folder: Path, member: str) -> None:
        self.folder, self.member = folder, member
        self.name = f"{folder.name}#{member}"

    def __str__(self) -> str:
        return f"{self.folder}#{self.member}"

    def open_member(self) -> Checkpoint:
        """The model, lazily.

        Raises:
            SourceError: there is no such member, or the folder is not what it was.
        """
        return keeper_of(self.folder).open_member(self.folder, self.member)

    @cached_property
    def _facts(self) -> tuple[Path, str | None]:
        return keeper_of(self.folder).member_facts(self.folder, self.member)

    @property
    def side(self) -> Path:
        """The folder of its side files."""
        return self._facts[0]

    @property
    def licence(self) -> str | None:
        """The licence that it was kept with."""
        return self._facts[1]

    @property
    def parent(self) -> MemberPath:
        return self

    @property
    def identity(self) -> tuple[str, str | None]:
        return self.name, None

    def __truediv__(self, name: str) -> Any:
        return self.side / name

    def is_dir(self) -> bool:
        return True

    def is_file(self) -> bool:
        return False

    def iterdir(self) -> Iterator[Any]:
        return self.side.iterdir()

    def open(self) -> SourceFile:
        raise SourceError(f"{self}: a model, not a file")

    def pinned(self) -> MemberPath:
        return MemberPath(self.folder.absolute(), self.member)


def member_at(reference: str | Path) -> MemberPath | None:
    """The member that a text names; None where it names none, or something that exists."""
    folder, mark, member = str(reference).rpartition("#")
    if not mark or not folder or not member or os.path.exists(reference):  # noqa: PTH110  (never raises)
        return None
    return MemberPath(Path(folder), member) if keeper_of(Path(folder)) is not None else None
