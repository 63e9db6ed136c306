"""Classification: the share of samples whose highest logit is the right class."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from eutectic.errors import SourceError
from eutectic.evaluation.model import Model
from eutectic.evaluation.subject import Subject, weights_of
from eutectic.evaluation.tasks.batches import ask, batches
from eutectic.evaluation.tasks.task import DataTask
from eutectic.recipes.values import PathText, Text
from eutectic.weights.checkpoint import open_checkpoint
from eutectic.weights.digest import hash_bytes

if TYPE_CHECKING:
    import torch

__all__ = ["Classification"]


class Classification(DataTask, frozen=True):
    """Accuracy of a classifier.

    A split is a safetensors file with `labels` [n] and either `inputs` [n, ...] (uint8 pixels count as 0..1) or
    `input_ids` [n, L] with `attention_mask` [n, L].
    """

    kind: Literal["classification"]
    labels: tuple[Text, ...] | None = Field(None, description="The classes' names, for readers.")
    head: PathText | None = Field(None, description="A linear head (weight, bias) on an encoder's pooled states.")

    @property
    def unit(self) -> str:
        return "accuracy"

    def count(self, split: str) -> int:
        """As many as there are inputs; `labels` may be absent where nothing is measured."""
        return len(self._first(split))

    def fingerprint(self, split: str) -> str:
        """Of the data's and the head's bytes."""
        own = super().fingerprint(split)
        return own if self.head is None else hash_bytes((own + hash_bytes(self.path(self.head).read_bytes())).encode())

    def _text_logits(self, network: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self.head is None:
            return network(input_ids=ids, attention_mask=mask).logits
        from eutectic.evaluation.networks import pooled

        head = open_checkpoint(self.path(self.head))
        states = pooled(network, ids, mask)
        return states @ head["weight"].to_torch().float().T + head["bias"].to_torch().float()

    def measure(self, subject: Subject, split: str, rows: np.ndarray) -> np.ndarray:
        model = weights_of(subject, self.name)
        text = "input_ids" in self.table(split)
        first = self._inputs(split)
        width = int(np.prod(first.shape[1:])) * (16 if text else 1)
        order = np.argsort(self._ends(split, rows), kind="stable") if text else np.arange(len(rows))
        hits = np.empty(len(rows))
        for part in batches(order, width):  # texts of like length together, cut to the longest of them
            hits[part] = self._hits(model, split, rows[part], text)
        return hits

    def _ends(self, split: str, rows: np.ndarray) -> np.ndarray:
        """How many columns of each text there are up to its last token, wherever padding stands."""
        mask = self.column(split, "attention_mask")[rows] != 0
        return mask.shape[1] - mask[:, ::-1].argmax(axis=1)

    def _first(self, split: str) -> np.ndarray:
        """The first column of the inputs."""
        return self.column(split, "input_ids" if "input_ids" in self.table(split) else "inputs")

    def _inputs(self, split: str) -> np.ndarray:
        """The first column of the inputs, as long as the labels."""
        found = self._first(split)
        labels = self.column(split, "labels")
        if len(found) != len(labels):
            raise SourceError(f"{self.file(split)}: {len(found)} inputs and {len(labels)} labels")
        return found

    def lengths(self, model: Model, split: str, rows: np.ndarray) -> np.ndarray:
        """Tokens of each sample without its padding; 1 for all where the inputs are no text.

        Raises:
            SourceError: padding that does not come last, inputs without labels.
        """
        self._inputs(split)
        return self._tokens(split, rows) if "input_ids" in self.table(split) else np.ones(len(rows), dtype=np.int64)

    def _tokens(self, split: str, rows: np.ndarray) -> np.ndarray:
        mask = self.column(split, "attention_mask")[rows] != 0
        if (mask[:, 1:] & ~mask[:, :-1]).any():
            raise SourceError(f"{self.file(split)}: task {self.name} has padding before tokens; put it behind them")
        return mask.sum(axis=1)

    def log_probabilities(self, network: torch.nn.Module, split: str, rows: np.ndarray) -> torch.Tensor:
        """log p of every class for samples of one length, [n, C], with gradients; padding is left out."""
        found = self.predicted(network, split, rows)
        self._labels(split, rows, found.shape[-1], "the network")
        return found

    def predicted(self, network: torch.nn.Module, split: str, rows: np.ndarray) -> torch.Tensor:
        """log p of every class, [n, C], with gradients; labels are not looked at, what is padding for all is cut."""
        text = "input_ids" in self.table(split)
        most = int(self._tokens(split, rows).max()) if text else None
        return self._logits(split, rows, text, most)(network).float().log_softmax(dim=-1)

    def _logits(
        self, split: str, rows: np.ndarray, text: bool, most: int | None = None
    ) -> Callable[[torch.nn.Module], torch.Tensor]:
        """What a network answers to some samples, texts cut to `most` tokens."""
        import torch

        def column(name: str) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(self.column(split, name)[rows]))

        if text:
            ids, mask = column("input_ids").long()[:, :most], column("attention_mask").long()[:, :most]
            return lambda network: self._text_logits(network, ids, mask)
        inputs = column("inputs")
        values = inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs.float()
        return lambda network: network(values)

    def _labels(self, split: str, rows: np.ndarray, classes: int, label: str) -> torch.Tensor:
        import torch

        labels = torch.from_numpy(np.ascontiguousarray(self.column(split, "labels")[rows])).long()
        if int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise SourceError(
                f"task {self.name}: labels reach from {int(labels.min())} to {int(labels.max())}, {label} has "
                f"{classes} classes"
            )
        return labels

    def _hits(self, model: Model, split: str, rows: np.ndarray, text: bool) -> np.ndarray:
        most = int(self._ends(split, rows).max()) if text else None
        logits = ask(model, self._logits(split, rows, text, most))
        labels = self._labels(split, rows, logits.shape[-1], model.label)
        return (logits.argmax(dim=-1) == labels).double().numpy()
