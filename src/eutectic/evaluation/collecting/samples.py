"""`Samples`: some samples of a task's split, fed to a network without padding, with the likelihood of their answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from eutectic.errors import RecipeError, SourceError
from eutectic.evaluation.model import Model
from eutectic.evaluation.statistics import generator
from eutectic.evaluation.tasks.batches import batches, by_length
from eutectic.evaluation.tasks.bits_per_byte import BitsPerByte
from eutectic.evaluation.tasks.classification import Classification
from eutectic.evaluation.tasks.task import Task

if TYPE_CHECKING:
    import torch

__all__ = ["Labels", "Samples"]

Labels = Literal["data", "model"]
WIDTH = 1 << 8  # of a position of a text, for `batches`: 256 positions at once


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples `rows` of a split. `labels`: whose answers the likelihood is of, the data's or the model's own."""

    task: Classification | BitsPerByte
    split: str
    rows: np.ndarray
    labels: Labels
    model: Model
    lengths: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, task: Task, split: str, model: Model, *, limit: int | None, labels: Labels) -> Samples:
        """Up to `limit` samples, those of a smaller limit among those of a larger one.

        Raises:
            RecipeError: a task that gives no likelihood, or only that of the data. SourceError: unsuitable data.
        """
        if not isinstance(task, (Classification, BitsPerByte)):
            kind = getattr(task, "kind", type(task).__name__)
            raise RecipeError(
                f"task {task.name}: statistics need a task of kind classification or bits_per_byte, not {kind}"
            )
        if labels == "model" and not isinstance(task, Classification):
            raise RecipeError(f"task {task.name}: a model's own labels are those of a classification; take the data's")
        count = task.count(split)
        if not count:
            raise SourceError(f"{task.file(split)}: task {task.name} has no samples")
        rows = np.arange(count)
        if limit is not None and limit < count:
            rows = np.sort(generator(0, f"statistics {count}").permutation(count)[:limit])
        return cls(task, split, rows, labels, model, task.lengths(model, split, rows))

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self) -> Iterator[np.ndarray]:
        """The samples in batches of one length each, short ones first."""
        for same in by_length(self.lengths):
            width = int(self.lengths[same[0]])
            yield from (self.rows[part] for part in batches(same, max(1, width) * WIDTH))

    def log_likelihood(self, network: torch.nn.Module, rows: np.ndarray) -> torch.Tensor:
        """log p of each sample's answer under the network, [n]: of its label, or of its text from the second token."""
        if isinstance(self.task, BitsPerByte):
            return self.task.log_likelihood(network, self.model, self.split, rows)
        return self.task.log_probabilities(network, self.split, rows).gather(1, self.answers(rows)[:, None])[:, 0]

    def log_probabilities(self, network: torch.nn.Module, rows: np.ndarray) -> torch.Tensor:
        """log p of every class, [n, C]."""
        assert isinstance(self.task, Classification)
        return self.task.log_probabilities(network, self.split, rows)

    def answers(self, rows: np.ndarray) -> torch.Tensor:
        """The labels of some samples."""
        import torch

        return torch.from_numpy(np.ascontiguousarray(self.task.column(self.split, "labels")[rows])).long()
