"""Text of several domains from what packages install: manual pages, Python's standard library, and sums.

    de fr es pl   manual pages in that language (Debian: manpages-de, ...), their markup stripped
    python        source of the standard library        prose    its docstrings
    sums          lines such as ``12+7=19``, generated

A document goes to one split by the digest of its name, so the splits are disjoint; a page's translations, which share
its name, go to the same one. Texts depend on the packages of the machine, not on a seed.
"""

from __future__ import annotations

import ast
import gzip
import re
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from eutectic.errors import MissingDependencyError
from eutectic.weights.digest import hash_bytes
from eutectic.zoo.family import SPLITS

__all__ = ["LANGUAGES", "MAN", "load_domain", "man_pages", "slices", "split_of", "strip_roff"]

LANGUAGES = {"de": "manpages-de", "fr": "manpages-fr", "es": "manpages-es", "pl": "manpages-pl"}  # Debian's packages
MAN = Path("/usr/share/man")
LEAST = 60_000  # bytes, below which a corpus is not worth training on
PAGE = re.compile(r"(.+\.[1-8][a-z]*)(\.gz)?")
DROPPED = re.compile(
    r"""[.'](\\"|\\#|TH|TP|PP|LP|P|IP|RS|RE|nf|fi|sp|br|in|ad|de|ie|el|if|ds|nr|ne|na|hy|ft|UE|ME|EX|EE)"""
)
MACRO = re.compile(r"[.'][ \t]*[A-Za-z]{1,3}\b[ \t]*")
SYMBOL = re.compile(
    r"\\\".*|\\\((..)|\\\[([^\]]*)\]|\\f(\([A-Z]{2}|\[[^\]]*\]|.)|\\s[-+]?\d|\\[&,/|^)%:c]|\\([-e ~'.\\])"
)
NAMED = {"aq": "'", "cq": "'", "oq": "'", "dq": '"', "lq": '"', "rq": '"', "em": "-", "en": "-", "ti": "~", "ha": "^"}


def load_domain(domain: str, *, most: int, man: Path = MAN, least: int = LEAST) -> dict[str, bytes]:
    """The bytes of a domain's splits; the training split has `most` bytes at the most, the others a fifth of it.

    Raises:
        MissingDependencyError: the package with the texts is not installed.
    """
    limits = {"train": most, "validation": most // 5, "test": most // 5}
    found: dict[str, bytes] = dict.fromkeys(SPLITS, b"")
    for name, text in _documents(domain, man):
        split = split_of(name)
        if len(found[split]) < limits[split]:
            found[split] += text
        if all(len(found[s]) >= limits[s] for s in SPLITS):
            break
    if len(found["train"]) < min(least, most) or min(map(len, found.values())) < least // 20:
        if domain not in LANGUAGES:
            raise MissingDependencyError(
                f"the domain {domain} needs the sources of Python's standard library, which are not in {_stdlib()}"
            )
        size = sum(map(len, found.values()))
        raise MissingDependencyError(
            f"the domain {domain} needs the manual pages in {man / domain}, where {size} bytes of text were found; "
            f"apt-get install {LANGUAGES[domain]}, or name another folder with --data"
        )
    return {split: found[split][: limits[split]] for split in SPLITS}


def slices(text: bytes, length: int, most: int | None = None) -> np.ndarray:
    """uint8 [n, length]: consecutive pieces of a text, or `most` of them, evenly spread."""
    count = len(text) // length
    pieces = np.frombuffer(text[: count * length], dtype=np.uint8).reshape(count, length)
    if most is not None and count > most:
        pieces = pieces[np.linspace(0, count - 1, most).astype(int)]
    return pieces.copy()


def split_of(name: str) -> str:
    """Eight documents of ten train, one validates, one tests."""
    return SPLITS[max(0, int(hash_bytes(name.encode())[:8], 16) % 10 - 7)]


def _documents(domain: str, man: Path) -> Iterator[tuple[str, bytes]]:
    if domain == "sums":
        return _sums()
    if domain in ("python", "prose"):
        return _library(_source if domain == "python" else _docstrings)
    return ((name, text.encode()) for name, _, text in man_pages(man / domain))


def man_pages(folder: Path) -> Iterator[tuple[str, int, str]]:
    """(name, section, text) of the pages of a language, in an order that mixes the sections."""
    files = [file for file in folder.glob("man[1-8]/*") if PAGE.fullmatch(file.name) and not file.is_symlink()]
    named = {PAGE.fullmatch(file.name)[1]: file for file in sorted(files)}  # type: ignore[index]  (matched above)
    for name in sorted(named, key=lambda name: hash_bytes(name.encode())):
        data = named[name].read_bytes()
        try:
            text = strip_roff((gzip.decompress(data) if named[name].suffix == ".gz" else data).decode())
        except (OSError, EOFError, UnicodeDecodeError):
            continue  # a page that is damaged or in an encoding of old is no text for us
        if len(text) > 200:
            yield name, int(named[name].parent.name[3]), text


def strip_roff(source: str) -> str:
    """The words of a manual page, roughly: macros, tables and font changes go, headings and text stay.

    >>> strip_roff('.SH NAME\\nls \\\\- list \\\\fIfiles\\\\fP\\n.PP\\n.B \\\\-\\\\-all\\nof \\\\(dqall\\\\(dq')
    'NAME\\nls - list files\\n--all\\nof "all"\\n'
    """
    lines, table = [], False
    for line in source.splitlines():
        table = (table or line.startswith(".TS")) and not line.startswith(".TE")
        if table or line.startswith((".TE", ".so")) or DROPPED.match(line):
            continue
        if line[:1] in (".", "'"):
            line = MACRO.sub("", line, count=1).replace('"', "")
        line = SYMBOL.sub(_plain, line).rstrip()
        if line:
            lines.append(line)
    return "\n".join(lines) + "\n" if lines else ""


def _plain(match: re.Match[str]) -> str:
    name, escaped = match[1] or match[2], match[4]
    if name:
        return NAMED.get(name, "")
    return {"e": "\\", "~": " "}.get(escaped, escaped) if escaped else ""


def _library(take: Callable[[str], str]) -> Iterator[tuple[str, bytes]]:
    root = _stdlib()
    folders = [root, *(root / name for name in ("asyncio", "collections", "concurrent", "email", "http", "json"))]
    files = sorted(file for folder in folders for file in folder.glob("*.py"))
    for file in sorted(files, key=lambda file: hash_bytes(file.relative_to(root).as_posix().encode())):
        text = take(file.read_text(encoding="utf-8", errors="replace"))
        if text:
            yield file.relative_to(root).as_posix(), text.encode()


def _stdlib() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _source(text: str) -> str:
    return text


def _docstrings(text: str) -> str:
    try:
        nodes = ast.walk(ast.parse(text))
    except SyntaxError:
        return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in nodes if isinstance(node, kinds)]
    return "".join(f"{part}\n" for part in found if part and len(part) > 40)


def _sums() -> Iterator[tuple[str, bytes]]:
    """Every sum and difference of numbers below 100, in an order that looks random."""
    lines = [
        f"{a}{sign}{b}={a + b if sign == '+' else a - b}\n" for a in range(100) for b in range(100) for sign in "+-"
    ]
    for line in sorted(lines, key=lambda line: hash_bytes(line.encode())):
        yield line, line.encode()
