"""The documentation is true: its commands and code run and print what it says, and its generated pages are fresh.

In README.md and docs/*.md, fenced blocks run in order in one folder per page, unless the info string has `norun`:

    ```yaml recipe.yaml      written to that file
    ```console               lines after `$ ` are commands, which must succeed; the lines below are what they print
    ```python                a script, or (with `>>> `) an interactive session, all in one namespace

`...` stands for anything. Figures differ between machines and are not compared; words are.
"""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import eutectic
from eutectic.methods.method import Method

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = sorted(module.name for module in pkgutil.walk_packages(eutectic.__path__, "eutectic."))
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
SIDE_NOTES = ("Compiling the merge kernels",)  # printed on a machine's first merge only
_FENCE = re.compile(r"^```(\w+)(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
_FIGURE = re.compile(r"(?<![\w.])[<>]?[-±]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?(?!\w)( ([kMG]?B|bytes)(/s)?)?")


class Block(NamedTuple):
    """A fenced block: where it starts, its language, the rest of its info string, and its text."""

    line: int
    language: str
    info: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        block = Block(text.count("\n", 0, match.start()) + 1, match[1], match[2].strip(), match[3])
        named = block.language in ("yaml", "toml", "python") and "." in block.info
        if "norun" not in block.info and (block.language in ("console", "python") or named):
            yield block


@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page))], ids=lambda page: page.name)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.syspath_prepend(str(tmp_path))
    namespace: dict[str, Any] = {"__name__": page.stem}
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if "." in block.info:
            (tmp_path / block.info).write_text(block.text, encoding="utf-8")
        elif block.language == "console":
            run_console(block.text, where)
        elif ">>> " in block.text:
            run_session(block.text, namespace, where)
        else:
            exec(compile(block.text, where, "exec"), namespace)


def run_console(text: str, where: str) -> None:
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, expected = split_continued(part)
        ran = subprocess.run(
            ["bash", "-c", command],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, f"{where}: `{command}` exits with {ran.returncode}: {ran.stdout}"
        printed = "".join(line for line in ran.stdout.splitlines(keepends=True) if not line.startswith(SIDE_NOTES))
        if expected.strip():
            assert agree(expected, printed), f"{where}: `{command}` prints\n{printed}\nnot\n{expected}"


def split_continued(part: str) -> tuple[str, str]:
    """A command (with lines that end in a backslash joined) and the lines below it."""
    lines = part.splitlines(keepends=True)
    count = 1
    while count < len(lines) and lines[count - 1].rstrip().endswith("\\"):
        count += 1
    return "".join(lines[:count]).strip(), "".join(lines[count:])


def agree(expected: str, printed: str) -> bool:
    """Whether the words are the same; figures count as equal."""
    want, got = (_FIGURE.sub("#", text) for text in (expected, printed))
    return doctest.OutputChecker().check_output(want, got, FLAGS)


def run_session(text: str, namespace: dict[str, Any], where: str) -> None:
    class Words(doctest.OutputChecker):
        def check_output(self, want: str, got: str, optionflags: int) -> bool:
            return super().check_output(_FIGURE.sub("#", want), _FIGURE.sub("#", got), optionflags)

    session = doctest.DocTestParser().get_doctest(text, namespace, where, where, 0)
    failed: list[str] = []
    doctest.DocTestRunner(checker=Words(), optionflags=FLAGS).run(session, out=failed.append, clear_globs=False)
    assert not failed, "".join(failed)
    namespace.update(session.globs)


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("5 tensors, 1.2 MB/s", "6 tensors, 340 kB/s", True),
        ("5 tensors", "5 files", False),
        (".../out: ... ok", "/somewhere/out: all ok", True),
        ("layers.0.weight", "layers.1.weight", False),
    ],
)
def test_figures_are_not_compared_and_words_are(expected: str, printed: str, same: bool) -> None:
    assert agree(expected, printed) is same


def test_pages_are_fresh_and_complete() -> None:
    command = [sys.executable, "-W", "error", str(ROOT / "docs" / "generate.py"), "--check"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_pages_are_made_without_torch() -> None:
    code = "import generate, sys; list(generate.problems()); sys.exit('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "docs", capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr or "docs/generate.py imports torch"


def test_keys_of_a_plan_are_explained(family: dict[str, Path], write_recipe: Callable[..., Path]) -> None:
    page = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    facts = eutectic.plan(write_recipe("linear", [family["a"], family["b"]], weight=1.0)).to_json()
    inner = [f"memory.{name}" for name in facts["memory"]]
    inner += [f"shards.{name}" for name in facts["shards"][0]]
    assert [key for key in [*facts, *inner] if f"`{key}`" not in page] == []


@pytest.mark.parametrize("name", ["eutectic", *MODULES])
def test_examples_in_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    finder, found = doctest.DocTestFinder(), {}
    for test in finder.find(module, name):
        found[test.name] = test
    for key, value in vars(module).items():
        if isinstance(value, Method) and value.__module__ == name:  # doctest passes over instances
            for test in finder.find(value.function, f"{name}.{key}", module=module, globs=vars(module).copy()):
                found[test.name] = test
    failed: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for test in found.values():
            doctest.DocTestRunner(optionflags=FLAGS).run(test, out=failed.append)
    assert not failed, "".join(failed)


def test_methods_have_examples() -> None:
    for method in eutectic.list_methods().values():
        assert ">>> " in (method.__doc__ or ""), f"{method.name} has no example"
