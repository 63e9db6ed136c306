"""What can be measured: a `Model`, whose weights are here, or an `Endpoint`, which only answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from eutectic.errors import RecipeError
from eutectic.evaluation.model import Model

__all__ = ["Subject", "weights_of"]


class Subject(Protocol):
    """Something that answers prompts, and perhaps has weights."""

    @property
    def label(self) -> str:
        """A name for people."""
        ...

    @property
    def identity(self) -> str:
        """A digest of what is measured."""
        ...

    def complete(self, prompts: Sequence[str], most_tokens: int) -> list[str]:
        """The most likely continuation of each prompt, up to a line break."""
        ...


def weights_of(subject: Subject, task: str) -> Model:
    """The subject as a model with weights.

    Raises:
        RecipeError: it is an endpoint.
    """
    if not isinstance(subject, Model):
        raise RecipeError(
            f"task {task}: needs a model's weights, and {subject.label} is an endpoint that only answers; "
            "tasks of kind generation measure endpoints"
        )
    return subject
