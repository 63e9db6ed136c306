"""Short texts with labels, from manual pages and Python's standard library, for encoders of sentences.

    language   a paragraph of a manual page (or an English docstring): its language
    section    a paragraph of a German manual page: the manual's section
    module     three lines of Python: the package that they are from
    topic      a docstring: the package that it is from
    kind       a line of Python: code, comment (without its sign) or docstring

and pairs for retrieval: the first sentence of a docstring, and the rest of it.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from eutectic.errors import MissingDependencyError
from eutectic.weights.digest import hash_bytes
from eutectic.zoo.byte_text import LANGUAGES, man_pages, split_of
from eutectic.zoo.family import SPLITS

__all__ = ["load_pairs", "load_texts"]

PACKAGES = ("asyncio", "email", "http", "unittest", "xml", "multiprocessing", "logging", "ctypes")
SECTIONS = (1, 5, 7, 8)
Texts = dict[str, list[tuple[str, int]]]  # split -> texts with their labels
Labelled = tuple[str, str, int]  # document, text, label


def load_texts(man: Path, counts: dict[str, int]) -> dict[str, tuple[list[str], Texts]]:
    """Task -> the labels' names and the texts of each split, as many of each label as `counts` allows.

    A document is in one split. Raises MissingDependencyError where a language's manual pages are not there.
    """
    makers: dict[str, tuple[list[str], Callable[[], Iterator[Labelled]]]] = {
        "language": (["en", *LANGUAGES], lambda: _languages(man)),
        "section": ([str(section) for section in SECTIONS], lambda: _sections(man)),
        "module": (list(PACKAGES), _modules),
        "topic": (list(PACKAGES), _topics),
        "kind": (["code", "comment", "docstring"], _kinds),
    }
    found = {}
    for task, (labels, make) in makers.items():
        most = {split: counts[split] // len(labels) for split in SPLITS}
        piles: dict[tuple[str, int], list[str]] = {(s, label): [] for s in SPLITS for label in range(len(labels))}
        for name, text, label in sorted(set(make()), key=lambda row: hash_bytes(row[1].encode())):
            piles[split_of(name), label].append(text)
        texts: Texts = {split: [] for split in SPLITS}
        for (split, label), pile in piles.items():
            if not pile:
                raise MissingDependencyError(
                    f"{man}: has no text for the task {task}, label {labels[label]}, split {split}; "
                    f"apt-get install {' '.join(LANGUAGES.values())}, or name another folder with --data"
                )
            texts[split] += [(text, label) for text in pile[: most[split]]]
        found[task] = labels, texts
    return found


def load_pairs(counts: dict[str, int]) -> dict[str, list[tuple[str, str]]]:
    """Split -> (first sentence, rest) of docstrings."""
    pairs: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    for name, text in _docstrings(sorted(_root().glob("*.py"))):
        first, _, rest = text.partition("\n\n")
        if (
            20 < len(first) < 100
            and "\n" not in first
            and len(rest) > 60
            and len(pairs[split_of(name)]) < counts[split_of(name)]
        ):
            pairs[split_of(name)].append((first, " ".join(rest.split())))
    return pairs


def _root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _paragraphs(text: str) -> Iterator[str]:
    """Four lines of a page at a time."""
    lines = [line for line in text.splitlines() if len(line) > 30]
    for start in range(0, len(lines) - 3, 4):
        yield " ".join(lines[start : start + 4])


def _languages(man: Path) -> Iterator[Labelled]:
    for label, language in enumerate(LANGUAGES, start=1):
        for number, (name, _, text) in enumerate(man_pages(man / language)):
            yield from ((name, paragraph, label) for paragraph in list(_paragraphs(text))[:3])
            if number > 400:
                break
    for name, text in _docstrings(sorted(_root().glob("*.py"))):
        yield name, " ".join(text.split()), 0


def _sections(man: Path) -> Iterator[Labelled]:
    for name, section, text in man_pages(man / "de"):
        if section in SECTIONS:
            yield from ((name, paragraph, SECTIONS.index(section)) for paragraph in list(_paragraphs(text))[1:6])


def _files() -> Iterator[tuple[str, int, str]]:
    for label, package in enumerate(PACKAGES):
        for file in sorted((_root() / package).rglob("*.py")):
            if "test" not in file.relative_to(_root() / package).parts:
                name = file.relative_to(_root()).as_posix()
                yield name, label, file.read_text(encoding="utf-8", errors="replace")


def _modules() -> Iterator[Labelled]:
    """Split by chunk, as a package has few files: neighbouring lines can be in two splits."""
    for name, label, text in _files():
        lines = [
            line.strip() for line in text.splitlines() if len(line.strip()) > 15 and not line.strip().startswith("#")
        ]
        yield from ((f"{name}:{at}", " ".join(lines[at : at + 3]), label) for at in range(0, len(lines) - 2, 3))


def _topics() -> Iterator[Labelled]:
    """Split by docstring, for the same reason."""
    for name, label, text in _files():
        yield from ((f"{name} {i}", " ".join(part.split()), label) for i, part in enumerate(_strings(text)))


def _kinds() -> Iterator[Labelled]:
    for file in sorted(_root().glob("*.py")):
        text = file.read_text(encoding="utf-8", errors="replace")
        inside = {" ".join(line.split()) for part in _strings(text) for line in part.splitlines()}
        for line in map(str.strip, text.splitlines()):
            words = line.lstrip("# ")
            if len(words) > 25:
                plain = " ".join(words.split())
                yield file.name, plain, 1 if line.startswith("#") else 2 if plain in inside else 0


def _docstrings(files: list[Path]) -> Iterator[tuple[str, str]]:
    for file in files:
        yield from ((file.name, part) for part in _strings(file.read_text(encoding="utf-8", errors="replace")))


@cache
def _strings(text: str) -> list[str]:
    """The docstrings of a source file that say something."""
    try:
        nodes = ast.walk(ast.parse(text))
    except SyntaxError:
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in nodes if isinstance(node, kinds))
    return [part for part in found if part and len(part) > 40]
