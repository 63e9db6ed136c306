"""Several recipes in one text: each with a name by which the others take its result, in memory, as a source."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

__all__ = ["join_documents"]

_KEYS = ("model", "base_model")


def join_documents(roots: list[yaml.Node]) -> tuple[yaml.Node | None, list[tuple[yaml.Mark, str]]]:
    """The recipe that no other one uses, with the others written in where they are named; or what is wrong, and where.

    Works on YAML nodes, so that every value keeps its line and column.
    """
    problems: list[tuple[yaml.Mark, str]] = []
    named: dict[str, yaml.MappingNode] = {}
    for root in roots:
        name = _name(root)
        if not isinstance(root, yaml.MappingNode):
            problems.append((root.start_mark, "every document must be a recipe, a mapping of keys to values"))
        elif name is not None and name.value in named:
            problems.append((name.start_mark, f"another document is named {name.value[:60]!r}, too"))
        elif name is not None:
            named[name.value] = root
    if problems:
        return None, problems
    used: dict[str, set[str]] = {}
    for root in roots:
        own = _name(root)
        for holder, at in _references(root, set()):
            key, value = holder.value[at]
            if value.value in named and not (own is not None and own.value == value.value):
                holder.value[at] = key, named[value.value]
                used.setdefault(value.value, set()).add("" if own is None else own.value)
    if (ring := _ring(used)) is not None:
        return None, [(named[ring].start_mark, f"the recipe {ring[:60]!r} is made, by way of others, from itself")]
    final = [root for root in roots if (own := _name(root)) is None or own.value not in used]
    if len(final) == 1:
        return final[0], []
    cure = "exactly one recipe must be left that no other uses: that is the result; the others need a name and a use"
    return None, [(root.start_mark, cure) for root in final[1:] or roots[:1]]


def _name(root: yaml.Node) -> yaml.ScalarNode | None:
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    return next((v for k, v in pairs if k.value == "name" and isinstance(v, yaml.ScalarNode) and v.value), None)


def _references(node: yaml.Node, seen: set[int]) -> Iterator[tuple[yaml.MappingNode, int]]:
    """Every place below a node where a model is named by text: the mapping, and the pair in it."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for at, (key, value) in enumerate(node.value):
            if key.value in _KEYS and isinstance(value, yaml.ScalarNode):
                yield node, at
            else:
                yield from _references(value, seen)
    elif isinstance(node, yaml.SequenceNode):
        for child in node.value:
            yield from _references(child, seen)


def _ring(used: dict[str, set[str]]) -> str | None:
    """A name that is used, directly or not, by itself."""
    for start in used:
        reached, fresh = set[str](), set(used[start])
        while fresh:
            reached |= fresh
            fresh = {by for name in fresh for by in used.get(name, ())} - reached
        if start in reached:
            return start
    return None
