"""Retrieval: how high the right document stands among all, by cosine of mean-pooled embeddings.

score(q) = 1 / rank of its document      (the mean over queries is MRR)
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from eutectic.errors import RecipeError, SourceError
from eutectic.evaluation.model import Model
from eutectic.evaluation.subject import Subject, weights_of
from eutectic.evaluation.tasks.batches import ask, batches
from eutectic.evaluation.tasks.task import DataTask

__all__ = ["Retrieval"]


class Retrieval(DataTask, frozen=True):
    """Mean reciprocal rank of an encoder.

    A split is a safetensors file with `queries`, `queries_mask` [n, L], `documents`, `documents_mask` [m, K] and
    `relevant` [n], the number of each query's document. Equal cosines count against the model.
    """

    kind: Literal["retrieval"]

    @property
    def unit(self) -> str:
        return "MRR"

    def count(self, split: str) -> int:
        return len(self.column(split, "relevant"))

    def measure(self, subject: Subject, split: str, rows: np.ndarray) -> np.ndarray:
        model = weights_of(subject, self.name)
        if len(model.networks) > 1:
            raise RecipeError(f"task {self.name}: the embeddings of an ensemble's members have no common space")
        relevant = self.column(split, "relevant")[rows]
        documents = self._embedded(model, split, "documents", "documents_mask", None)
        if len(relevant) and not 0 <= relevant.min() <= relevant.max() < len(documents):
            raise SourceError(f"{self.file(split)}: 'relevant' names documents that are not there (0 to "
                              f"{len(documents) - 1})")  # fmt: skip
        queries = self._embedded(model, split, "queries", "queries_mask", rows)
        cosines = queries @ documents.T
        right = cosines[np.arange(len(rows)), relevant]
        return 1 / (cosines >= right[:, None]).sum(axis=1)

    def _embedded(self, model: Model, split: str, ids: str, mask: str, rows: np.ndarray | None) -> np.ndarray:
        import torch

        from eutectic.evaluation.networks import pooled

        tokens, masks = self.column(split, ids), self.column(split, mask)
        found = []
        for part in batches(np.arange(len(tokens)) if rows is None else rows, tokens.shape[1] * 16):
            x, m = torch.from_numpy(tokens[part]).long(), torch.from_numpy(masks[part]).long()
            means = ask(model, lambda network, x=x, m=m: pooled(network, x, m))
            found.append(torch.nn.functional.normalize(means.double(), dim=-1).numpy())
        return np.concatenate(found)
