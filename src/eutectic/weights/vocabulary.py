"""The tokens of a tokenizer, read from its files as JSON and text; no tokenizer is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from eutectic.errors import FormatError, SourceError
from eutectic.weights.checkpoint import read_json
from eutectic.weights.files import Place, open_file

__all__ = ["TOKENIZER", "Vocabulary", "read_vocabulary"]

TOKENIZER = "tokenizer.json"
MOST_TOKENS = 1 << 24
_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens of one tokenizer.

    `ids` maps every token to its number; `added` holds those that were added to the trained vocabulary, each as
    tokenizer.json describes it; `trained` is the number of the others.
    """

    folder: Place
    ids: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]]
    trained: int

    @cached_property
    def size(self) -> int:
        """One more than the largest number."""
        return 1 + max(self.ids.values(), default=-1)

    @cached_property
    def tokens(self) -> Mapping[int, str]:
        """The token of each number."""
        return {number: token for token, number in self.ids.items()}

    def extended(self, tokens: Mapping[str, Mapping[str, Any]]) -> Vocabulary:
        """With tokens appended, numbered as the tokenizers library numbers what is added to a tokenizer.

        Raises:
            SourceError: the numbers have holes, so that a new token's would be taken already.
        """
        fresh = [token for token in tokens if token not in self.ids]
        if not fresh:
            return self
        first = max(self.trained, 1 + max((self.ids[token] for token in self.added), default=-1))
        if first != self.size:
            raise SourceError(
                f"{self.folder}: its tokenizer numbers {len(self.ids)} tokens up to {self.size - 1}; a token added to "
                f"it would get {first}, which is taken; save it once with transformers, which numbers it anew"
            )
        ids = {**self.ids, **{token: first + at for at, token in enumerate(fresh)}}
        added = {token: {**_PLAIN, **tokens[token], "content": token, "id": ids[token]} for token in fresh}
        return Vocabulary(self.folder, ids, {**self.added, **added}, self.trained)


def read_vocabulary(folder: Place) -> Vocabulary | None:
    """The tokens of the tokenizer in a model folder, or None where it has no tokenizer.

    Read are tokenizer.json, or else vocab.json or vocab.txt with added_tokens.json.

    Raises:
        SourceError: the only tokenizer there is a SentencePiece model.
        FormatError: a file breaks its format.
    """
    if (folder / TOKENIZER).is_file():
        return _from_tokenizer_json(folder)
    if (folder / "vocab.json").is_file():
        trained = _numbers(read_json(folder / "vocab.json"), folder / "vocab.json")
    elif (folder / "vocab.txt").is_file():
        file = open_file(folder / "vocab.txt")
        lines = file.read(0, file.size).decode("utf-8", "replace").split("\n")
        trained = {line.rstrip("\r"): at for at, line in enumerate(lines[: -1 if lines[-1] == "" else None])}
    elif any(entry.suffix == ".model" for entry in folder.iterdir()):
        raise SourceError(
            f"{folder}: its tokenizer is a SentencePiece model without a {TOKENIZER}; save it once with transformers "
            "(AutoTokenizer.from_pretrained(folder).save_pretrained(folder)), which writes that file"
        )
    else:
        return None
    path = folder / "added_tokens.json"
    added = _numbers(read_json(path), path) if path.is_file() else {}
    described = {token: {**_PLAIN, "content": token, "id": number} for token, number in added.items()}
    return Vocabulary(folder, {**trained, **added}, described, len(trained))


def _from_tokenizer_json(folder: Place) -> Vocabulary:
    path = folder / TOKENIZER
    document = read_json(path)
    model = document.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, list):  # Unigram: [token, score] pairs in order
        if not all(isinstance(entry, list) and entry and isinstance(entry[0], str) for entry in vocab):
            raise FormatError(f"{path}: model.vocab must list pairs of a token and its score")
        trained = {entry[0]: at for at, entry in reversed(list(enumerate(vocab)))}
        count = len(vocab)
    elif isinstance(vocab, dict):
        trained = _numbers(vocab, path)
        count = len(trained)
    else:
        raise FormatError(f"{path}: model.vocab must map tokens to numbers, or list them")
    added: dict[str, dict[str, Any]] = {}
    for entry in document.get("added_tokens") or ():
        if not (isinstance(entry, dict) and isinstance(entry.get("content"), str)):
            raise FormatError(f"{path}: every entry of added_tokens needs a content and an id")
        _numbers({entry["content"]: entry.get("id")}, path)
        added[entry["content"]] = entry
    return Vocabulary(folder, {**trained, **{token: entry["id"] for token, entry in added.items()}}, added, count)


def _numbers(found: Mapping[str, Any], path: Place) -> dict[str, int]:
    values = found.values()
    if set(map(type, values)) == {int} and min(values) >= 0 and max(values) < MOST_TOKENS:
        return dict(found)  # at once: there are many, and seldom is one wrong
    for token, number in found.items():
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < MOST_TOKENS:
            raise FormatError(f"{path}: the token {token[:40]!r} has the number {str(number)[:40]}")
    return dict(found)
