"""One vocabulary for all sources of a recipe: every embedding of every model brought to the tokens of the result."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eutectic.errors import SourceError
from eutectic.recipes.references import resolve_model
from eutectic.recipes.schema import Recipe
from eutectic.recipes.token_rows import Donor, TokenRows
from eutectic.recipes.tokenizer import BASE, UNION, OtherToken, Tokenizer, TokenSource
from eutectic.recipes.tree import Leaf, Tree
from eutectic.weights.chosen_rows import ChosenRows
from eutectic.weights.files import Place, RemotePath, is_folder, open_file
from eutectic.weights.layout import vocabulary_tensors
from eutectic.weights.tensor_ref import TensorRef
from eutectic.weights.vocabulary import TOKENIZER, Vocabulary, read_vocabulary

__all__ = ["Unified", "folder_of", "unify"]

MOST_SHOWN = 6


@dataclass(frozen=True)
class Unified:
    """What the recipe's tokenizer key comes to.

    `tensors` holds, for each leaf by its index, the tensors that are read in another form; `result` the tokens of the
    result, which are those of `source` and `fresh` ones; `rows` the number of embeddings where it is not the reference
    model's.
    """

    result: Vocabulary
    source: Vocabulary
    reference: Vocabulary
    tensors: Mapping[int, Mapping[str, TensorRef]]
    rows: int | None
    lines: tuple[str, ...]

    @property
    def fresh(self) -> list[Mapping[str, Any]]:
        """Tokens that the source of the tokenizer lacks, as tokenizer.json describes them."""
        return [entry for token, entry in self.result.added.items() if token not in self.source.ids]

    @property
    def digest(self) -> str:
        """Of the tokens and their numbers."""
        text = "\0".join(f"{token}\0{number}" for token, number in self.result.ids.items())
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def folder_of(leaf: Leaf) -> Place:
    """The folder in which a source's tokenizer and configuration lie."""
    path = leaf.checkpoint.path or Path(leaf.label)
    return path if is_folder(path) else path.parent


def unify(tree: Tree, recipe: Recipe) -> Unified | None:
    """Read every source's tokenizer and bring its embeddings to the tokens that the recipe asks for.

    None where the recipe says nothing about tokens.

    Raises:
        SourceError: a source has no tokenizer, or one that cannot be read.
        RecipeError: an embedding that the recipe names does not exist.
    """
    wanted = recipe.vocabulary
    if wanted is None:
        return None
    reader = _Reader()
    reference = reader.read(folder_of(tree.reference))
    if reference is None:
        raise SourceError(
            f"{tree.reference.label}: has no tokenizer ({TOKENIZER}), so its embeddings cannot follow one; remove "
            "'tokenizer_source' and 'tokenizer', or put its tokenizer's files beside its weights"
        )
    lines: list[str] = []
    donors = []
    for leaf in tree.sources:
        found = reader.read(folder_of(leaf))
        if found is None:
            _same_size(leaf, tree.reference)
            lines.append(f"{leaf.label} has no tokenizer: taken to have that of {tree.reference.label}")
        donors.append(Donor(leaf.label, found or reference, dict(leaf.checkpoint.items())))
    source = _source(wanted, recipe, reader, donors, tree)
    result = _result(wanted, source, donors, tree)
    names = vocabulary_tensors(tree.reference.checkpoint)
    if not names:
        raise SourceError(
            f"{tree.reference.label}: which tensors are its embeddings? None outside the layers is as long as "
            "config.json's vocab_size; mend that file, or remove 'tokenizer_source' and 'tokenizer'"
        )
    stored = tree.reference.checkpoint[names[0]].shape[0]
    rows, keeps = max(result.size, stored if result.folder == reference.folder else 0), True
    if wanted.pad_to_multiple_of is not None:
        rows, keeps = -(-result.size // wanted.pad_to_multiple_of) * wanted.pad_to_multiple_of, False
    chosen = TokenRows(result, donors, _resolved(wanted, donors, recipe, tree), rows, keeps=keeps)
    tensors: dict[int, dict[str, TensorRef]] = {}
    for at, leaf in enumerate(tree.sources):
        found = {name: chosen.of(name, at) for name in vocabulary_tensors(leaf.checkpoint)}
        made: dict[str, TensorRef] = {
            name: ChosenRows(leaf.checkpoint[name], own) for name, own in found.items()
            if not own.is_identity or len(own.own) != leaf.checkpoint[name].shape[0]
        }  # fmt: skip
        if made:
            tensors.update((other.index, made) for other in tree.leaves if other.checkpoint is leaf.checkpoint)
    lines.insert(0, _summary(result, reference, rows, wanted))
    if chosen.nowhere:
        some = ", ".join(repr(token) for token in sorted(chosen.nowhere)[:MOST_SHOWN])
        lines.append(f"zeros for tokens that no model has an embedding for: {len(chosen.nowhere)} ({some})")
    return Unified(result, source, reference, tensors, rows if rows != stored else None, tuple(lines))


class _Reader:
    """Reads vocabularies, equal files once."""

    def __init__(self) -> None:
        self._known: dict[bytes, Vocabulary] = {}

    def read(self, folder: Place) -> Vocabulary | None:
        names = (TOKENIZER, "vocab.json", "vocab.txt", "added_tokens.json")
        key = hashlib.blake2b(digest_size=32)
        for path in (folder / name for name in names):
            key.update(_digest(path) if path.is_file() else b"\0")
        digest = key.digest()
        if digest not in self._known:
            found = read_vocabulary(folder)
            if found is None:
                return None
            self._known[digest] = found
        known = self._known[digest]
        return Vocabulary(folder, known.ids, known.added, known.trained)


def _digest(path: Place) -> bytes:
    file = open_file(path)
    return hashlib.blake2b(file.read(0, file.size), digest_size=32).digest()


def _same_size(leaf: Leaf, reference: Leaf) -> None:
    for name in vocabulary_tensors(reference.checkpoint):
        mine = leaf.checkpoint.get(name)
        if mine is not None and mine.shape != reference.checkpoint[name].shape:
            raise SourceError(
                f"{leaf.label}: has no tokenizer, and {name} {list(mine.shape)} is not as long as that of "
                f"{reference.label} {list(reference.checkpoint[name].shape)}; put its tokenizer's files beside it"
            )


def _source(wanted: Tokenizer, recipe: Recipe, reader: _Reader, donors: list[Donor], tree: Tree) -> Vocabulary:
    """The tokenizer that the result takes, with nothing added yet."""
    if wanted.source in (UNION, BASE):
        return donors[0].vocabulary
    path, adapter = resolve_model(wanted.source, recipe)
    folder = path if adapter is None else adapter
    if isinstance(folder, RemotePath):
        folder = tree.pinned.get(str(folder)) or folder.pinned()
    found = reader.read(folder) if is_folder(folder) else None
    if found is None:
        raise SourceError(f"tokenizer source {wanted.source}: no folder with a tokenizer ({TOKENIZER})")
    return found


def _result(wanted: Tokenizer, source: Vocabulary, donors: list[Donor], tree: Tree) -> Vocabulary:
    """The tokens of the result."""
    fresh: dict[str, Mapping[str, Any]] = {}
    if wanted.source == UNION:
        lengths = [_length(leaf) for leaf in tree.sources]
        for trained in (True, False):  # as in mergekit: every model's trained tokens before any added one
            for donor, length in zip(donors[1:], lengths[1:], strict=True):
                own = donor.vocabulary
                lacking = [(n, token) for token, n in own.ids.items() if n < length and token not in source.ids]
                for _, token in sorted(lacking, key=lambda item: item[0]):
                    if (token not in own.added) == trained:
                        fresh.setdefault(token, {} if trained else own.added[token])
    return source.extended({**fresh, **{token: {} for token in wanted.tokens if token not in fresh}})


def _length(leaf: Leaf) -> int:
    return max((leaf.checkpoint[name].shape[0] for name in vocabulary_tensors(leaf.checkpoint)), default=0)


def _resolved(wanted: Tokenizer, donors: list[Donor], recipe: Recipe, tree: Tree) -> dict[str, TokenSource]:
    """The recipe's words about tokens, with models named as the tree names them."""
    by_path = {resolve_model(leaf.label, recipe): leaf.label for leaf in tree.sources}

    def label(model: str) -> str:
        return by_path.get(resolve_model(model, recipe), model)

    found: dict[str, TokenSource] = {}
    for token, words in wanted.tokens.items():
        source = words.source
        if isinstance(source, OtherToken):
            source = source.model_copy(update={"model": label(source.model)})
        elif isinstance(source, str):
            source = label(source)
        found[token] = words.model_copy(update={"source": source})
    return found


def _summary(result: Vocabulary, reference: Vocabulary, rows: int, wanted: Tokenizer) -> str:
    fresh = [token for token in result.ids if token not in reference.ids]
    lost = len(reference.ids) - sum(token in result.ids for token in reference.ids)
    some = ", ".join(repr(token) for token in fresh[:MOST_SHOWN]) + (", ..." if len(fresh) > MOST_SHOWN else "")
    more = f"; {len(fresh)} not in the reference model ({some})" if fresh else ""
    less = f"; {lost} of the reference model's left out" if lost else ""
    return f"tokens ({wanted.source}): {len(result.ids):,} in {rows:,} rows{more}{less}"
