"""YAML text to a node graph and to plain data: strict, bounded, every fault with its line and column.

PyYAML composes the nodes; the plain data are made here, so that no tag can run code, a duplicate key is
an error instead of a silent loss, and an alias bomb is refused by arithmetic instead of by expansion.
Scalars follow YAML 1.1 as PyYAML (and so mergekit) reads them, except that `1e-5` is a float, a date or
`12:30:00` stays text, and an integer with a leading zero stays text instead of turning octal.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from eutectic.errors import RecipeError
from eutectic.recipes.documents import join_documents

__all__ = ["MOST_DEPTH", "MOST_NODES", "dump_yaml", "integer", "position", "read_yaml", "refused", "well_formed"]

MOST_NODES = 100_000  # after every alias is expanded
MOST_DEPTH = 64  # sixteen nested recipes take 51

_STANDARD = "tag:yaml.org,2002:"
_FLOAT = re.compile(
    r"(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN))\Z"
)
_INT = re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)\Z")
_BOOL = re.compile(r"(?:yes|no|true|false|on|off|Yes|No|True|False|On|Off|YES|NO|TRUE|FALSE|ON|OFF)\Z")
_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")

# What PyYAML says -> what the user should do.
_ADVICE = (
    ("'\\t'", "a tab cannot indent YAML; use spaces"),
    ("mapping values are not allowed", "': ' is not expected here; mend the indentation, or quote the text"),
    ("could not find expected ':'", "this line is not 'key: value'; a colon is missing"),
    ("expected <block end>", "this line does not fit the indentation of the lines above"),
    ("cannot start any token", "a text that starts with this character needs quotes"),
    ("expected ',' or", "a '[' or '{' is not closed, or a comma is missing"),
)


class _Loader(yaml.SafeLoader):
    """Composes nodes, at most `MOST_NODES` of them and `MOST_DEPTH` deep; constructs nothing."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  PyYAML's own class attribute
    nodes = depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.nodes += 1
        self.depth += 1
        if self.nodes > MOST_NODES or self.depth > MOST_DEPTH:
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem=_too_large(self.nodes), problem_mark=mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


for _tag, _pattern, _first in (
    ("bool", _BOOL, [*"yYnNtTfFoO"]),
    ("float", _FLOAT, [*"-+0123456789."]),
    ("int", _INT, [*"-+0123456789"]),
    ("null", _NULL, ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(_STANDARD + _tag, _pattern, _first)


def read_yaml(text: str, name: str) -> tuple[Any, yaml.Node | None]:
    """The plain data of a YAML text and its root node; ``(None, None)`` where there is no document.

    Of several documents, the one that is the result, with those that it names written in (`join_documents`).

    >>> read_yaml("eps: 1e-5", "r.yaml")[0]
    {'eps': 1e-05}
    >>> read_yaml("t: 1\\nt: 2", "r.yaml")
    Traceback (most recent call last):
    ...
    eutectic.errors.RecipeError: r.yaml cannot be read:
      - r.yaml:2:1: key 't' appears twice; first at r.yaml:1:1
    """
    root = _compose(text, name)
    if root is None:
        return None, None
    _measure(root, name, {}, set())
    builder = _Builder(name)
    data = builder.build(root)
    if builder.problems:
        raise refused(name, *dict.fromkeys(builder.problems))
    return data, root


class _Dumper(yaml.SafeDumper):
    """Quotes a text that either PyYAML or this module would read as something else, such as ``'1e5'``."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar(_STANDARD + "str", text, None if text.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.text)
_Dumper.add_implicit_resolver(_STANDARD + "float", _FLOAT, [*"-+0123456789."])


def dump_yaml(data: Any) -> str:
    """Plain data as YAML that `read_yaml` reads back equal, keys in their order.

    >>> dump_yaml({"name": "1e5", "seed": 7})
    "name: '1e5'\\nseed: 7\\n"
    """
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def position(root: yaml.Node, loc: tuple[str | int, ...]) -> tuple[int, int]:
    """Line and column (from 1) of the key or list item at `loc`, or of the nearest one around it."""
    node, mark = root, root.start_mark
    for step in loc:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == step), None)
            if found is None:
                break
            mark, node = found[0].start_mark, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and 0 <= step < len(node.value):
            node = node.value[step]
            mark = node.start_mark
        else:
            break
    return mark.line + 1, mark.column + 1


def refused(name: str, *problems: str) -> RecipeError:
    """The error for text that cannot be turned into data."""
    return RecipeError(f"{name} cannot be read:", problems)


def integer(digits: str) -> int:
    """A decimal, 0x or 0b integer of at most 64 bits; ValueError with a sentence otherwise."""
    plain = digits.replace("_", "")
    value = int(plain, 0) if len(plain) < 80 else 1 << 64  # long strings would meet Python's digit limit
    if not -(1 << 63) <= value < 1 << 64:
        raise ValueError(f"the integer {digits[:24]}... does not fit in 64 bits")
    return value


def well_formed(text: str) -> str:
    """`text` with escaped surrogate pairs joined (JSON spells an emoji so); ValueError for a lone one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise ValueError(f"{text[:40]!r} is not Unicode text (a lone surrogate)") from None
    return text


def _place(name: str, mark: yaml.Mark) -> str:
    return f"{name}:{mark.line + 1}:{mark.column + 1}"


def _too_large(nodes: int) -> str:
    what = f"more than {MOST_NODES:,} values" if nodes > MOST_NODES else f"nested more than {MOST_DEPTH} deep"
    return f"{what}, aliases expanded; a recipe never needs that"


def _compose(text: str, name: str) -> yaml.Node | None:
    loader = None
    try:
        loader = _Loader(text)
        roots: list[yaml.Node] = []
        while loader.check_node() and (node := loader.get_node()) is not None:
            roots.append(node)
        roots = [node for node in roots if node.value or not isinstance(node, yaml.ScalarNode)] or roots[:1]
        if len(roots) < 2:
            return roots[0] if roots else None
        for node in roots:
            _measure(node, name, {}, set())  # before it is walked: bounded, and no anchor holds itself
        joined, problems = join_documents(roots)
        if problems:
            raise refused(name, *(f"{_place(name, mark)}: {sentence}" for mark, sentence in problems))
        return joined
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = f"{name}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
        what = f"{error.character:#04x}" if isinstance(error.character, int) else repr(error.character)
        raise refused(name, f"{place}: the character {what} is not allowed in YAML") from None
    except yaml.MarkedYAMLError as error:
        raise refused(name, _syntax(error, name)) from None
    except (ValueError, OverflowError):  # PyYAML on an escape such as "\UFFFFFFFF", or a huge %YAML version
        place = _place(name, loader.get_mark()) if loader else name
        raise refused(name, f"{place}: not valid YAML: a number or an escape here is out of range") from None
    finally:
        if loader is not None:
            loader.dispose()


def _syntax(error: yaml.MarkedYAMLError, name: str) -> str:
    mark = error.problem_mark or error.context_mark
    problem = " ".join((error.problem or error.context or "syntax error").split())
    advice = next((advice for sign, advice in _ADVICE if sign in problem), None)
    if advice is None:
        advice = problem if "a recipe never needs" in problem else f"not valid YAML: {problem}"
    start = error.context_mark
    if "a colon" in advice:
        mark, start = start or mark, None  # PyYAML notices one line late
    if start is not None and mark is not None and start.line != mark.line and error.context:
        advice += f" ({' '.join(error.context.split())} that starts in line {start.line + 1})"
    return f"{_place(name, mark) if mark else name}: {advice}"


def _measure(node: yaml.Node, name: str, sizes: dict[int, tuple[int, int]], open_: set[int]) -> tuple[int, int]:
    """Values and depth under `node` with every alias expanded. An anchor precedes its aliases, so that the
    recursion is never deeper than the text; each node is visited once."""
    known = sizes.get(id(node))
    if known is not None:
        return known
    if id(node) in open_:
        raise refused(name, f"{_place(name, node.start_mark)}: this anchor holds an alias to itself")
    open_.add(id(node))
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    measured = [_measure(child, name, sizes, open_) for child in children]
    open_.discard(id(node))
    size = 1 + sum(size for size, _ in measured)
    depth = 1 + max((depth for _, depth in measured), default=0)
    if size > MOST_NODES or depth > MOST_DEPTH:
        raise refused(name, f"{_place(name, node.start_mark)}: {_too_large(size)}")
    sizes[id(node)] = size, depth
    return size, depth


class _Builder:
    """Plain data from nodes; collects every fault instead of stopping at the first."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.problems: list[str] = []

    def fault(self, node: yaml.Node, sentence: str) -> None:
        self.problems.append(f"{_place(self.name, node.start_mark)}: {sentence}")

    def build(self, node: yaml.Node) -> Any:
        kind = node.tag.removeprefix(_STANDARD)
        if isinstance(node, yaml.ScalarNode) and kind in ("str", "int", "float", "bool", "null"):
            try:
                return _scalar(kind, node.value)
            except ValueError as error:
                self.fault(node, str(error))
        elif isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self.build(child) for child in node.value]
        elif isinstance(node, yaml.MappingNode) and kind == "map":
            return self.mapping(node)
        else:
            self.fault(node, f"the tag {node.tag[:60]!r} is not allowed here; recipes hold plain data")
        return None

    def mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        data: dict[str, Any] = {}
        first: dict[str, yaml.Node] = {}
        for key_node, value_node in node.value:
            value = self.build(value_node)
            key = self.build(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                shown = repr(key_node.value)[:40] if isinstance(key_node, yaml.ScalarNode) else "a collection"
                self.fault(key_node, f"a key must be text; found {shown}; put it in quotes if text is meant")
            elif key == "<<":
                self.fault(key_node, "merge keys ('<<') are not supported; write the keys out")
            elif key in data:
                where = _place(self.name, first[key].start_mark)
                self.fault(key_node, f"key {key[:60]!r} appears twice; first at {where}")
            else:
                data[key], first[key] = value, key_node
        return data


def _scalar(kind: str, text: str) -> Any:
    if kind == "str":
        return well_formed(text)
    if kind == "null" and _NULL.match(text):
        return None
    if kind == "bool" and _BOOL.match(text):
        return text.lower() in ("yes", "true", "on")
    if kind in ("int", "float") and _INT.match(text):
        return integer(text) if kind == "int" else float(integer(text))
    if kind == "float" and _FLOAT.match(text):
        plain = text.replace("_", "").lower()
        return float(plain.replace(".inf", "inf").replace(".nan", "nan"))
    raise ValueError(f"{text[:40]!r} is not a {kind}")
