"""Short texts with labels, from manual pages and Python's standard library, for encoders of sentences.

    order     a docstring's sentence: as it is, two neighbouring words swapped, its halves swapped, or all shuffled
    typo      a docstring's sentence: as it is, or two neighbouring letters of one word swapped
    article   a French sentence of a manual page without one of its articles: which one is missing
    syntax    the tokens of a line of Python: as they are, or two neighbours swapped, so that it does not parse
    value     a line of Python that assigns or returns a value: which kind of expression that is

and pairs for retrieval: the first sentence of a docstring, and the rest of it. What is changed, and how, follows from a
text's digest, so every text is there in one form only.
"""

from __future__ import annotations

import ast
import io
import re
import sysconfig
import tokenize
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

from eutectic.errors import MissingDependencyError
from eutectic.weights.digest import hash_bytes
from eutectic.zoo.byte_text import LANGUAGES, man_pages, split_of
from eutectic.zoo.family import SPLITS

__all__ = ["load_pairs", "load_texts"]

MASK = "[MASK]"  # as BERT's tokenizers write it
FOLDERS = ("asyncio", "email", "http", "unittest", "xml", "multiprocessing", "logging", "ctypes", "concurrent", "json")
ORDERS = ("intact", "neighbours", "halves", "shuffled")
ARTICLES = ("le", "la", "les", "un", "une", "du", "des", "de")
VALUES = ("Call", "Name", "Attribute", "BinOp", "Constant", "Subscript", "Compare", "IfExp")  # of the module ast
Texts = dict[str, list[tuple[str, int]]]  # split -> texts with their labels
Labelled = tuple[str, str, int]  # document, text, label
Item = TypeVar("Item")


def load_texts(man: Path, counts: dict[str, int]) -> dict[str, tuple[list[str], Texts]]:
    """Task -> the labels' names and the texts of each split, as many of each label as `counts` allows.

    A document is in one split. Raises MissingDependencyError where a language's manual pages are not there.
    """
    makers: dict[str, tuple[Sequence[str], Callable[[], Iterator[Labelled]]]] = {
        "order": (ORDERS, _orders),
        "typo": (("right", "typo"), _typos),
        "article": (ARTICLES, lambda: _articles(man)),
        "syntax": (("right", "wrong"), _syntax),
        "value": (VALUES, _values),
    }
    found = {}
    for task, (labels, make) in makers.items():
        most = {split: counts[split] // len(labels) for split in SPLITS}
        piles: dict[tuple[str, int], list[str]] = {(s, label): [] for s in SPLITS for label in range(len(labels))}
        for name, text, label in _once(make()):
            piles[split_of(name), label].append(text)
        texts: Texts = {split: [] for split in SPLITS}
        for (split, label), pile in piles.items():
            if not pile:
                raise MissingDependencyError(
                    f"{man}: has no text for the task {task}, label {labels[label]}, split {split}; "
                    f"apt-get install {LANGUAGES['fr']}, or name another folder with --data"
                )
            texts[split] += [(text, label) for text in pile[: most[split]]]
        found[task] = list(labels), texts
    return found


def load_pairs(counts: dict[str, int]) -> dict[str, list[tuple[str, str]]]:
    """Split -> (first sentence, rest) of docstrings."""
    pairs: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    for name, text in _docstrings():
        first, _, rest = text.partition("\n\n")
        if (
            20 < len(first) < 100
            and "\n" not in first
            and len(rest) > 60
            and len(pairs[split_of(name)]) < counts[split_of(name)]
        ):
            pairs[split_of(name)].append((first, " ".join(rest.split())))
    return pairs


def _once(rows: Iterator[Labelled]) -> list[Labelled]:
    """The rows in an order that looks random; of equal texts, in whatever documents, only one."""
    texts: dict[str, Labelled] = {}
    for row in sorted(rows):
        texts.setdefault(row[1], row)
    return sorted(texts.values(), key=lambda row: hash_bytes(row[1].encode()))


def _number(text: str) -> int:
    return int(hash_bytes(text.encode())[:8], 16)


def _orders() -> Iterator[Labelled]:
    for name, sentence in _english():
        words = sentence.lower().rstrip(".").split()
        number, middle = _number(sentence), len(words) // 2
        label, at = number % 4, 1 + number // 4 % (len(words) - 3)
        if label == 1:
            words = _swapped(words, at)
        elif label == 2:
            words = words[middle:] + words[:middle]
        elif label == 3:
            words = [words[i] for i in sorted(range(len(words)), key=lambda i: _number(f"{i} {sentence}"))]
        yield name, " ".join(words), label


def _typos() -> Iterator[Labelled]:
    for name, sentence in _english():
        words, number = sentence.split(), _number(f"typo {sentence}")
        long = [i for i, w in enumerate(words) if len(w) > 5 and w.isalpha() and len(set(w[1:-1])) > 1]
        if long:
            place = long[number // 2 % len(long)]
            word = words[place]
            pairs = [i for i in range(1, len(word) - 2) if word[i] != word[i + 1]]
            if number % 2:
                words[place] = "".join(_swapped(word, pairs[number // 64 % len(pairs)]))
            yield name, " ".join(words), number % 2


def _articles(man: Path) -> Iterator[Labelled]:
    for name, _, text in man_pages(man / "fr"):
        for sentence in _sentences(text):
            words = sentence.split()
            places = [i for i, word in enumerate(words) if word in ARTICLES]
            if places:
                at = places[_number(sentence) % len(places)]
                yield name, " ".join([*words[:at], MASK, *words[at + 1 :]]), ARTICLES.index(words[at])


def _syntax() -> Iterator[Labelled]:
    for name, line, _ in _statements():
        tokens = [t.string for t in tokenize.generate_tokens(io.StringIO(line).readline) if t.string.strip()]
        number = _number(line)
        if len(tokens) < 5:
            continue
        if number % 2:
            places = sorted(range(len(tokens) - 1), key=lambda i: _number(f"{i} {line}"))
            changed = (_swapped(tokens, place) for place in places)
            wrong = next((found for found in changed if _parse(" ".join(found)) is None), None)
            if wrong is None:
                continue
            tokens = wrong
        yield name, " ".join(tokens), number % 2


def _values() -> Iterator[Labelled]:
    for name, line, statement in _statements():
        if isinstance(statement, (ast.Assign, ast.Return)):
            kind = type(statement.value).__name__
            if kind in VALUES:
                yield name, line, VALUES.index(kind)


def _swapped(items: Sequence[Item], at: int) -> list[Item]:
    return [*items[:at], items[at + 1], items[at], *items[at + 2 :]]


def _english() -> Iterator[tuple[str, str]]:
    return ((name, sentence) for name, text in _docstrings() for sentence in _sentences(text))


def _sentences(text: str) -> Iterator[str]:
    """Of 6 to 14 words, most of which are plain."""
    for sentence in re.split(r"(?<=\.)\s+|\n\s*\n", text):
        words = sentence.split()
        if 6 <= len(words) <= 14 and sum(word.rstrip(".,").isalpha() for word in words) > 0.7 * len(words):
            yield " ".join(words)


@cache
def _files() -> dict[str, str]:
    """The standard library's source files, without its tests."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [*root.glob("*.py"), *(file for folder in FOLDERS for file in (root / folder).rglob("*.py"))]
    names = {file.relative_to(root).as_posix(): file for file in files if "test" not in file.relative_to(root).parts}
    return {name: names[name].read_text(encoding="utf-8", errors="replace") for name in sorted(names)}


@cache
def _statements() -> list[tuple[str, str, ast.stmt]]:
    """(file, line, what it parses to): lines that are a statement by themselves."""
    lines = [
        (name, line.strip())
        for name, text in _files().items()
        for line in text.splitlines()
        if 18 <= len(line.strip()) <= 60 and not line.strip().startswith(("#", '"', "'"))
    ]
    return [(name, line, statement) for name, line in lines if (statement := _parse(line)) is not None]


def _parse(line: str) -> ast.stmt | None:
    """The one statement of a line, or None; a line that opens a block is given one."""
    try:
        found = ast.parse(f"{line} pass" if line.endswith(":") else line).body
    except SyntaxError:
        return None
    return found[0] if len(found) == 1 else None


def _docstrings() -> Iterator[tuple[str, str]]:
    """(file, docstring) of those that say something."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for name, text in _files().items():
        try:
            nodes = ast.walk(ast.parse(text))
        except SyntaxError:
            continue
        found = (ast.get_docstring(node) for node in nodes if isinstance(node, kinds))
        yield from ((name, part) for part in found if part and len(part) > 40)
