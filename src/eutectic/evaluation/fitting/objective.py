"""What is minimised over a task's samples: the entropy of predictions, or the loss of the data's answers, in nats.

    entropy(x) = - Σ_c p(c | x) log p(c | x)        of classes; of texts, the mean over all places of the next token
    loss(x)    = - log p(y | x)                     of the label; of texts, the mean over all tokens but the first

Yang et al. 2024, AdaMerging (arXiv 2310.02575), section 3.2: entropy, which needs no labels.
"""

from __future__ import annotations

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

__all__ = ["Drawn", "Objective"]

Objective = Literal["entropy", "loss"]
WIDTH = 1 << 8  # of a position of a text, for `batches`: 256 positions at once


@dataclass(frozen=True, eq=False)
class Drawn:
    """Samples of one task, drawn a few at a time: `rows` of the split, `seed` and the step say which."""

    task: Classification | BitsPerByte
    split: str
    model: Model
    rows: np.ndarray
    objective: Objective
    seed: int
    lengths: np.ndarray = field(repr=False)

    @classmethod
    def of(
        cls, task: Task, split: str, model: Model, objective: Objective, *, limit: int | None = None, seed: int = 0
    ) -> Drawn:
        """Up to `limit` samples, those of a smaller limit among those of a larger one.

        Raises:
            RecipeError: a task without likelihoods. SourceError: it has no samples.
        """
        if not isinstance(task, (Classification, BitsPerByte)):
            kind = getattr(task, "kind", type(task).__name__)
            raise RecipeError(
                f"task {task.name}: gradients need a task of kind classification or bits_per_byte, not {kind}; "
                "--task chooses among a suite's tasks"
            )
        count = task.count(split)
        if not count:
            raise SourceError(f"{task.file(split)}: task {task.name} has no samples")
        rows = np.arange(count)
        if limit is not None and limit < count:
            rows = np.sort(generator(0, f"statistics {count}").permutation(count)[:limit])
        lengths = np.ones(len(rows), dtype=np.int64)
        if isinstance(task, BitsPerByte) or objective == "loss":
            known = task.lengths(model, split, rows)  # refuses inputs without labels
            lengths = known if isinstance(task, BitsPerByte) else lengths
        return cls(task, split, model, rows, objective, seed, lengths)

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, step: int, count: int) -> list[np.ndarray]:
        """The samples of a step, all once before any comes again, in parts that a network takes at once."""
        count = min(count, len(self))
        each = len(self) // count
        order = generator(self.seed, f"fit {self.task.name} {step // each}").permutation(len(self))
        return self._parts(order[step % each * count :][:count])

    def first(self, most: int) -> list[np.ndarray]:
        """At most so many samples, the same in each run, in small parts."""
        chosen = generator(0, f"fit {self.task.name}").permutation(len(self))[:most]
        found = []
        for part in self._parts(np.sort(chosen)):
            found += list(batches(part, WIDTH * max(1, self._width(part))))
        return found

    def values(self, network: torch.nn.Module, rows: np.ndarray) -> torch.Tensor:
        """The objective of each sample of one part, [n], with gradients."""
        if self.objective == "loss":
            return self._loss(network, rows)
        if isinstance(self.task, BitsPerByte):
            logs = self.task.predicted(network, self.model, self.split, rows)
        else:
            logs = self.task.predicted(network, self.split, rows)
        return -(logs.exp() * logs).sum(-1).reshape(len(rows), -1).mean(1)

    def _loss(self, network: torch.nn.Module, rows: np.ndarray) -> torch.Tensor:
        import torch

        if isinstance(self.task, BitsPerByte):
            places = self._width(rows) - 1
            return -self.task.log_likelihood(network, self.model, self.split, rows) / places
        logs = self.task.log_probabilities(network, self.split, rows)
        labels = torch.from_numpy(np.ascontiguousarray(self.task.column(self.split, "labels")[rows])).long()
        return -logs.gather(1, labels[:, None])[:, 0]

    def _parts(self, chosen: np.ndarray) -> list[np.ndarray]:
        """Rows of the split: texts to predict of one length each, for they are fed without padding."""
        return [self.rows[chosen[part]] for part in by_length(self.lengths[chosen])]

    def _width(self, rows: np.ndarray) -> int:
        return int(self.lengths[np.searchsorted(self.rows, rows[0])])
