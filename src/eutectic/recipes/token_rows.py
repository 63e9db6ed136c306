"""Embeddings follow the vocabulary: for each tensor of each model, which row becomes which.

A token that a model has keeps that model's row. A token that it lacks takes, as in mergekit: the row that the recipe
names; or that of the only model that has it; or the base's; or the average over the models that have it; or zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat

import numpy as np

from eutectic.errors import RecipeError
from eutectic.recipes.tokenizer import OtherToken, TokenSource, ZeroRow
from eutectic.weights.chosen_rows import MEAN, ZERO, Rows
from eutectic.weights.tensor_ref import TensorRef
from eutectic.weights.vocabulary import Vocabulary

__all__ = ["Donor", "TokenRows"]


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
