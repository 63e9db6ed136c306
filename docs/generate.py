"""Write the generated pages of the documentation, or check all pages: `python docs/generate.py [--check]`.

Generated: methods.md (from the `Method` objects) and help.md (from the commands). `--check` writes nothing; it fails
where a generated page is stale, a link leads nowhere, a public name, method, command, exit code, recipe key or key of
the plan has no place in the documentation, or the changelog and the package name different versions.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

import eutectic
from eutectic import errors
from eutectic.cli.main import COMMANDS, main
from eutectic.methods import BUILT_IN
from eutectic.methods.method import Method, Parameter
from eutectic.recipes.schema import Recipe

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
STAMP = "<!-- Written by docs/generate.py; edit the code, then run `make docs`. -->"
WIDTH = 100
_FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+)\)")


# ---------------------------------------------------------------- methods.md


def methods_page() -> str:
    """The table of methods, and a section for each."""
    lines = [
        "# Methods", "", STAMP, "",
        "A method merges the tensors of one name into one tensor. The facts in this table decide how it is run: what",
        "a tensor must be cut into, how often it is read, and which laws the tests hold it to.",
        "`eutectic list methods NAME` prints a section of this page. [Compatibility](compat.md) compares mergekit's",
        "meaning of each option with the paper's; [writing a method](writing-a-method.md) adds a row.", "",
        "| method | what it does | works on | base | sources | random |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| [{m.name}](#{slug(m.name)}) | {m.summary} | {m.space}s, {_scope(m)} | {m.base} | {_count(m)} "
        f"| {'yes' if m.stochastic else 'no'} |"
        for m in BUILT_IN.values()
    ]
    lines += [
        "",
        "- **works on**: whole weights, or deltas (differences to the base); an element of the result depends on the",
        "  same *element* of each source, or on the whole *tensor*.",
        "- **base**: *required*, *first* (the base, if given, counts as the first source) or *unused*.",
        "- **sources**: how many, the base not counted unless it counts as the first source.",
        "- In the formulas θ0 is the base, θ_k source k, δ_k = θ_k - θ0, w_k its weight, λ the parameter `lambda`.",
        "- In a recipe a parameter goes under `parameters`: one that is **per source** under a source, or at the top",
        "  for all of them; any other at the top.",
    ]
    for method in BUILT_IN.values():
        lines += ["", *_section(method)]
    return "\n".join(lines) + "\n"


def _section(method: Method) -> Iterator[str]:
    formula, notes, example = _docstring(method)
    yield from (f"## {method.name}", "", formula)
    for note in notes:
        yield from ("", note)
    rows = [_row(p, method) for p in method.parameters.values()]
    if rows:
        yield from ("", "| parameter | default | takes | meaning |", "|---|---|---|---|", *rows)
    if method.paper:
        shown = ", ".join(f"`{name}: {_value(value)}`" for name, value in method.paper.items())
        yield from ("", f"Defaults under `semantics: paper`: {shown}.")
    if method.departures:
        yield from ("", "Where mergekit and the paper differ:", "", *(f"- {line}" for line in method.departures))
    if method.ignored:
        shown = ", ".join(f"`{name}`" for name in method.ignored)
        yield from ("", f"Accepted from mergekit's recipes without effect: {shown}.")
    if example:
        yield from ("", "On plain tensors:", "", "```python", "import torch", "")
        yield from (f"from eutectic.methods import {method.name}", "", *example, "```")
    if method.needs is not None:
        yield from ("", f"Needs the statistics `{method.needs}` of every source: see [stats](stats.md).")
    facts = f"`src/{method.__module__.replace('.', '/')}.py`"
    yield from ("", f"Source: {method.reference}. Code: {facts}." if method.reference else f"Code: {facts}.")


def _docstring(method: Method) -> tuple[str, list[str], list[str]]:
    """The first sentence, the paragraphs between it and ``Args:``, and the example without its prompts."""
    text = inspect.cleandoc(method.__doc__ or method.summary)
    prose, _, example = text.partition(">>> import torch\n")
    prose = re.split(r"^(?:Args|Returns|Raises):", prose, maxsplit=1, flags=re.MULTILINE)[0]
    paragraphs = [" ".join(part.split()) for part in prose.split("\n\n") if part.strip()]
    shown = [line[4:] if line.startswith((">>> ", "... ")) else f"# {line}" for line in example.splitlines() if line]
    return paragraphs[0], paragraphs[1:], shown


def _row(parameter: Parameter, method: Method) -> str:
    default = "required" if parameter.required else f"`{_value(parameter.default)}`"
    takes = parameter.expected
    if str(parameter.range) != "-inf to inf":
        takes += f", {parameter.range}"
    if parameter.per_source:
        takes += ", **per source**"
    meaning = parameter.meaning
    if parameter.name in method.paper:
        meaning += f" (paper: `{_value(method.paper[parameter.name])}`)"
    return f"| `{parameter.name}` | {default} | {takes} | {meaning} |"


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _scope(method: Method) -> str:
    return f"{method.scope} by {method.scope}" if method.scope != "model" else "the whole model"


def _count(method: Method) -> str:
    return method.count_in_words().removesuffix("s").removesuffix(" source")


# ---------------------------------------------------------------- help.md


def help_page() -> str:
    """``--help`` of every command."""
    lines = [
        "# Help of every command", "", STAMP, "",
        "What `--help` prints. Each command has a page: "
        + ", ".join(f"[{name}]({name}.md)" for name in COMMANDS)
        + ".",
    ]  # fmt: skip
    for words, command in _commands(main, ["eutectic"]):
        lines += ["", f"## {' '.join(words)}", "", "```text", *_help(command, words).splitlines(), "```"]
    return "\n".join(lines) + "\n"


def _commands(command: click.Command, words: list[str]) -> Iterator[tuple[list[str], click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=words[-1])
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None:
                yield from _commands(inner, [*words, name])


def _help(command: click.Command, words: list[str]) -> str:
    parent = None
    for word in words[:-1]:
        parent = click.Context(main, info_name=word, parent=parent, **main.context_settings)
    settings = main.context_settings if parent is None else {}
    context = click.Context(command, info_name=words[-1], parent=parent, **settings)
    formatter = click.HelpFormatter(width=WIDTH, max_width=WIDTH)
    command.format_help(context, formatter)
    return "\n".join(line.rstrip() for line in formatter.getvalue().rstrip().splitlines())


PAGES = {"methods.md": methods_page, "help.md": help_page}


# ---------------------------------------------------------------- checks


def problems() -> Iterator[str]:
    """One line for everything that is wrong."""
    for name, make in PAGES.items():
        if not (DOCS / name).is_file() or _read(DOCS / name) != make():
            yield f"docs/{name} is stale; run `make docs`"
    pages = {path: _read(path) for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")))}
    for path, text in pages.items():
        yield from _bad_links(path, text)
    written = "\n".join(text for path, text in pages.items() if path.name not in PAGES)
    yield from _missing("the public name", eutectic.__all__, written, r"\b{}\b")
    yield from _missing("the method", BUILT_IN, written, r"`{}`|\b{}\.py\b")
    codes = {str(getattr(errors, name).exit_code) for name in errors.__all__ if name[0].isupper()}
    yield from _missing("the exit code", sorted(codes), _page("exit-codes"), r"^\| {} \|")
    yield from _missing("the error", (n for n in errors.__all__ if n[0].isupper()), _page("exit-codes"), "`{}`")
    yield from _missing("the recipe key", Recipe.model_fields, _page("recipe"), "`{}`")
    yield from (f"docs/{name}.md: the command {name} has no page" for name in COMMANDS if not _page(name))
    yield from _versions()


def _missing(what: str, names: Iterable[str], text: str, form: str) -> Iterator[str]:
    for name in names:
        pattern = form.replace("{}", re.escape(name))
        if not re.search(pattern, text, re.MULTILINE):
            yield f"{what} {name} is not mentioned in the documentation"


def _bad_links(path: Path, text: str) -> Iterator[str]:
    """Relative links that lead to no file, or to no heading in it."""
    where = path.relative_to(ROOT).as_posix()
    for target in _LINK.findall(_FENCE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, heading = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        if not there.exists():
            yield f"{where}: the link {target} leads to no file"
        elif heading and (there.suffix != ".md" or heading not in _headings(_read(there))):
            yield f"{where}: the link {target} leads to no heading"


def _headings(text: str) -> set[str]:
    return {slug(line.lstrip("#").strip()) for line in _FENCE.sub("", text).splitlines() if re.match(r"#{1,6} ", line)}


def slug(heading: str) -> str:
    """The anchor that code forges give a heading.

    >>> slug("What `plan` reads, and why")
    'what-plan-reads-and-why'
    """
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _versions() -> Iterator[str]:
    found = re.search(r"^## \[([0-9][^\]]*)\]", _read(ROOT / "CHANGELOG.md"), re.MULTILINE)
    top = found[1] if found else "none"
    if top != eutectic.__version__:
        yield f"CHANGELOG.md: the top version is {top}, the package's is {eutectic.__version__}"


def _page(name: str) -> str:
    path = DOCS / f"{name}.md"
    return _read(path) if path.is_file() else ""


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def run(arguments: list[str]) -> int:
    """Write the pages, or with ``--check`` report what is wrong; returns the exit code."""
    if arguments not in ([], ["--check"]):
        print("usage: python docs/generate.py [--check]", file=sys.stderr)
        return 2
    if not arguments:
        for name, make in PAGES.items():
            (DOCS / name).write_text(make(), encoding="utf-8")
    found = list(problems())
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
