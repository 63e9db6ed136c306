"""The output ensemble: several models asked at once, their probabilities averaged. As good a baseline as it is dear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eutectic.evaluation.model import Model
from eutectic.weights.digest import hash_bytes

if TYPE_CHECKING:
    import torch

__all__ = ["Ensemble"]


class Ensemble(Model):
    """Models of one architecture and vocabulary; it costs as many models as it has members."""

    def __init__(self, members: Sequence[Model], label: str = "ensemble") -> None:
        super().__init__(members[0].checkpoint, label)
        self.members = tuple(members)

    @property
    def identity(self) -> str:
        """Of all members, in any order."""
        return hash_bytes(" ".join(sorted(member.identity for member in self.members)).encode())

    @property
    def networks(self) -> list[torch.nn.Module]:
        """One network for each member."""
        return [network for member in self.members for network in member.networks]

    @property
    def recipe(self) -> None:
        """None: an ensemble is no merge."""
        return None
