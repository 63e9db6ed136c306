"""Embeddings follow the vocabulary: for each tensor of each model, which row becomes which.

A token that a model has keeps that model's row. A token that it lacks takes, as in mergekit: the row that the recipe
names; or that of the only model that has it; or the base's; or the average over the models that have it; or zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np

from eutectic.errors import RecipeError
from eutectic.recipes.layers import layer_of
from eutectic.recipes.tokenizer import OtherToken, TokenSource, ZeroRow
from eutectic.weights.checkpoint import Checkpoint
from eutectic.weights.chosen_rows import MEAN, ZERO, Rows
from eutectic.weights.tensor_ref import TensorRef
from eutectic.weights.vocabulary import Vocabulary

__all__ = ["Donor", "TokenRows", "vocabulary_sizes", "vocabulary_tensors"]

# Parts of the names of tensors that are indexed by token, where lengths alone do not tell.
_WORDS = {
    "embed_tokens", "wte", "word_embeddings", "tok_embeddings", "token_embedding", "embed_in", "shared", "lm_head",
    "embed_out", "tokens_embed", "embed_tokens_per_layer", "final_logits_bias", "predictions", "proj_out", "embeddings",
    "embedding", "output", "decoder", "emb",
}  # fmt: skip


def vocabulary_sizes(config: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Where config.json states a number of embeddings, nested configurations included, and that number.

    >>> list(vocabulary_sizes({"vocab_size": 8, "text_config": {"vocab_size": 9}}))
    [(('vocab_size',), 8), (('text_config', 'vocab_size'), 9)]
    """
    for key, value in config.items():
        if key.startswith("vocab_size") and isinstance(value, int) and not isinstance(value, bool):
            yield (key,), value
        elif isinstance(value, Mapping) and (key == "text_config" or key == "decoder"):
            yield from (((key, *path), size) for path, size in vocabulary_sizes(value))


def vocabulary_tensors(checkpoint: Checkpoint) -> list[str]:
    """Names of the tensors whose first axis is indexed by token.

    They lie outside the layers and are as long as config.json's vocab_size; where layers have that length, too,
    familiar names decide.
    """
    sizes = {size for _, size in vocabulary_sizes(checkpoint.config)}
    inside = {length for name, ref in checkpoint.items() if layer_of(name) for length in ref.shape}
    return [
        name
        for name, ref in checkpoint.items()
        if ref.shape and ref.shape[0] in sizes and layer_of(name) is None
        and (ref.shape[0] not in inside or _WORDS & set(name.split(".")))
        and "position" not in name and "wpe" not in name.split(".")
    ]  # fmt: skip


class Donor:
    """One model as a source of embeddings: its tokens and its tensors."""

    def __init__(self, label: str, vocabulary: Vocabulary, tensors: Mapping[str, TensorRef]) -> None:
        self.label, self.vocabulary, self.tensors = label, vocabulary, tensors


class TokenRows:
    """The rows of every model for the tokens of the result.

    Args:
        result: the tokens of the result.
        donors: the merged models, the base first.
        tokens: what the recipe says about single tokens; its models are labels of donors.
        rows: number of embeddings of the result, `result.size` at least.
        keeps: whether rows beyond the tokens stay what they are, where a model has them; else they are the mean.
    """

    def __init__(
        self, result: Vocabulary, donors: Sequence[Donor], tokens: Mapping[str, TokenSource], rows: int, *, keeps: bool
    ) -> None:
        self.result, self.donors, self.tokens, self.rows, self.keeps = result, donors, tokens, rows, keeps
        self._found: dict[tuple[int | None, ...], tuple[list[np.ndarray], dict[int, list[tuple[int, int]]]]] = {}
        self.nowhere: set[str] = set()

    def of(self, name: str, at: int) -> Rows:
        """The rows of tensor `name` of donor `at`."""
        lengths = tuple(d.tensors[name].shape[0] if name in d.tensors else None for d in self.donors)
        if lengths not in self._found:
            self._found[lengths] = self._choose(lengths)
        own, lent = self._found[lengths]
        table = own[at].copy()
        mine: dict[int, list[tuple[TensorRef, int]]] = {}
        for row, found in lent.items():
            if table[row] < 0:
                mine[row] = [(self.donors[donor].tensors[name], number) for donor, number in found]
        return Rows(table, mine, self.result.size)

    def _choose(self, lengths: tuple[int | None, ...]) -> tuple[list[np.ndarray], dict[int, list[tuple[int, int]]]]:
        """For tensors of these lengths: each donor's own rows, and what tokens are lent, by (donor, row)."""
        tables = [np.full(self.rows, ZERO, dtype=np.int64) for _ in self.donors]
        for donor, table, length in zip(self.donors, tables, lengths, strict=True):
            ids, limit = donor.vocabulary.ids, length or 0
            if donor.vocabulary.ids is self.result.ids:
                table[:] = np.arange(self.rows)
                table[min(limit, self.rows) :] = ZERO
            else:
                count = len(self.result.ids)
                rows = np.fromiter(self.result.ids.values(), dtype=np.int64, count=count)
                numbers = np.fromiter(map(ids.get, self.result.ids, repeat(limit)), dtype=np.int64, count=count)
                table[rows[numbers < limit]] = numbers[numbers < limit]
        lent = self._lend(tables, lengths)
        for donor, table, length in zip(self.donors, tables, lengths, strict=True):
            for row in range(self.result.size, self.rows):
                stays = self.keeps and row < (length or 0) and row >= donor.vocabulary.size
                table[row] = row if stays else MEAN
        return tables, lent

    def _lend(self, tables: list[np.ndarray], lengths: Sequence[int | None]) -> dict[int, list[tuple[int, int]]]:
        present: np.ndarray = np.stack(tables) >= 0
        lent: dict[int, list[tuple[int, int]]] = {}
        for token, source in self.tokens.items():
            row = self.result.ids[token]
            if source.source is not None and (source.force or not present[:, row].all()):
                given = self._given(token, source, tables, lengths)
                for table in tables:
                    table[row] = ZERO if source.force else table[row]
                present[:, row] = True  # settled
                if given is not None:
                    lent[row] = [given]
        holes = np.logical_not(present.all(axis=0))
        holes[self.result.size :] = False
        for row in np.flatnonzero(holes):
            owners = np.flatnonzero(present[:, row])
            chosen = owners[:1] if len(owners) and owners[0] == 0 else owners
            if len(chosen):
                lent[int(row)] = [(int(donor), int(tables[donor][row])) for donor in chosen]
            elif int(row) in self.result.tokens:
                self.nowhere.add(self.result.tokens[int(row)])
        return lent

    def _given(
        self, token: str, source: TokenSource, tables: list[np.ndarray], lengths: Sequence[int | None]
    ) -> tuple[int, int] | None:
        """The row that the recipe names for a token, by (donor, row); None for zeros."""
        if isinstance(source.source, ZeroRow):
            return None
        wanted = source.source.model if isinstance(source.source, OtherToken) else source.source
        at = next((at for at, donor in enumerate(self.donors) if donor.label == wanted), None)
        place = f"tokenizer.tokens.{token}"
        if at is None:
            known = ", ".join(donor.label for donor in self.donors)
            raise RecipeError("the tokens do not fit", [f"{place}: {wanted} is none of the merged models: {known}"])
        number = int(tables[at][self.result.ids[token]])
        if isinstance(source.source, OtherToken):
            ids, asked = self.donors[at].vocabulary.ids, source.source
            number = ids.get(asked.token, -1) if asked.token is not None else asked.token_id or 0
            if number >= (lengths[at] or 0):
                number = -1
        if number < 0:
            raise RecipeError("the tokens do not fit", [f"{place}: {wanted} has no embedding for it"])
        return at, number
