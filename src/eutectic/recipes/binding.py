"""Which tensors, merged how, make each tensor of the result: slices, modules, gradients, filters resolved by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from eutectic.errors import RecipeError
from eutectic.methods.dense import dense_counterpart
from eutectic.recipes.modules import module_of
from eutectic.recipes.tree import Leaf, Merge, Node, Part, Stack, Tree
from eutectic.recipes.vocabulary import Unified
from eutectic.weights.layers import follows_layers, layer_of, main_stack, position_of, stacks_of
from eutectic.weights.layout import is_log_space, vocabulary_tensors
from eutectic.weights.tensor_ref import TensorRef

__all__ = ["Binding", "Bound", "Renumbered"]


class _Place(NamedTuple):
    """Where a stack finds one of its tensors: the part, the position in its layers, and each input's name for it."""

    part: Part
    t: float
    names: tuple[str, ...]


@dataclass(frozen=True)
class Renumbered:
    """A stack of layers whose numbers changed: `layers[i]` is the reference's number of the result's layer i."""

    stack: str
    depth: int
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Bound:
    """One tensor of the result: its merge with the tensor's own parameters, and one handle per leaf (None: absent)."""

    merge: Merge
    refs: tuple[TensorRef | None, ...]

    @property
    def needed(self) -> list[TensorRef | None]:
        """A handle for every leaf that the merge reads, the leaf that lends its name and type first."""
        node: Node = self.merge
        while isinstance(node, Merge):
            node = node.reference
        first = (node,) if isinstance(node, Leaf) else ()
        leaves = dict.fromkeys((*first, *self.merge.leaves))
        return [self.refs[leaf.index] for leaf in leaves]


class Binding:
    """The names of a tree's result in order, and what each of them is made of.

    Raises:
        RecipeError: layers that a source does not have, modules that no tensor belongs to, tensors of no module.
    """

    def __init__(self, tree: Tree, unified: Unified | None = None) -> None:
        self.tree = tree
        self._names: dict[int, tuple[str, ...]] = {}
        self._tables: dict[int, dict[str, _Place]] = {}
        self._depths: dict[int, dict[str, int]] = {}
        self._known: dict[tuple[Any, ...], Merge] = {}
        changed = {} if unified is None else unified.tensors
        self._tensors = [
            {**leaf.checkpoint, **tree.absent.get(leaf.index, {}), **changed.get(leaf.index, {})}
            for leaf in tree.leaves
        ]
        self.renumbered: list[Renumbered] = []
        self._by_token: frozenset[str] = frozenset()
        self.by_token: dict[str, str] = {}
        """Tensors with a row per token that another method merges, and its name, as far as they were bound."""
        if any(merge.method.vocabulary is not None for merge in tree.merges):
            self._by_token = frozenset(vocabulary_tensors(tree.reference.checkpoint))

    @property
    def names(self) -> tuple[str, ...]:
        """Every name of the result."""
        return self.names_of(self.tree.root)

    def bound(self, name: str) -> Bound | None:
        """What a tensor of the result is made of; None where no part of the recipe has it."""
        refs: list[TensorRef | None] = [None] * len(self.tree.leaves)
        merge = self._bind(self.tree.root, name, refs)
        return Bound(merge, tuple(refs)) if isinstance(merge, Merge) else None

    def check_filters(self) -> None:
        """Refuse filters that took no tensor, once every name was bound."""
        lines = []
        for merge in self.tree.merges:
            if merge.settings is not None:
                where = f"{merge.settings.place}: " if merge.settings.place else ""
                lines += [f"{where}{name}: filter {pattern!r}" for name, pattern in sorted(merge.settings.unused)]
        if lines:
            found = ", ".join(self.names[:2])
            raise RecipeError(
                f"{len(lines)} filter(s) match no tensor; names look like {found}", list(dict.fromkeys(lines))
            )

    # ------------------------------------------------------------------ names

    def names_of(self, node: Node) -> tuple[str, ...]:
        """The names of a node's tensors: in the order of its reference, then what only others have."""
        if id(node) not in self._names:
            if isinstance(node, Leaf):
                found = tuple(node.checkpoint)
            elif isinstance(node, Merge):
                found = tuple(dict.fromkeys(n for part in (node.reference, *node.inputs) for n in self.names_of(part)))
            else:
                found = tuple(self._table(node))
            self._names[id(node)] = found
        return self._names[id(node)]

    def _table(self, stack: Stack) -> dict[str, _Place]:
        if id(stack) not in self._tables:
            table: dict[str, _Place] = {}
            if None not in stack.modules:
                self._check_modules(stack)
            for module, parts in stack.modules.items():
                table.update(self._sliced(parts, stack) if parts[0].ranges else self._whole(parts[0], module, stack))
            self._tables[id(stack)] = table
        return self._tables[id(stack)]

    def _check_modules(self, stack: Stack) -> None:
        known = [str(module) for module in stack.modules]
        names = dict.fromkeys(name for part in stack.parts for name in self.names_of(part.merge))
        owners = {name: module_of(name, known) for name in names}
        empty = [module for module in known if module not in owners.values()]
        lost = [name for name, owner in owners.items() if owner is None]
        if empty or lost:
            lines = [f"modules.{module}: no tensor belongs to it" for module in empty]
            lines += [f"{name} belongs to no module" for name in lost[:6]]
            lines += [f"... and {len(lost) - 6} more"] if len(lost) > 6 else []
            raise RecipeError("the modules do not divide the model (see docs/recipe.md for their names)", lines)

    def _belongs(self, name: str, module: str | None, stack: Stack) -> bool:
        return module is None or module_of(name, [str(known) for known in stack.modules]) == module

    def _whole(self, part: Part, module: str | None, stack: Stack) -> Iterator[tuple[str, _Place]]:
        names = [name for name in self.names_of(part.merge) if self._belongs(name, module, stack)]
        depths = stacks_of(names)
        for name in names:
            yield name, _Place(part, _position(name, depths), (name,) * len(part.merge.inputs))

    def _sliced(self, parts: Sequence[Part], stack: Stack) -> Iterator[tuple[str, _Place]]:
        """Unnumbered tensors of the first slice, layers of all, and of the last slice what follows the layers."""
        module = parts[0].module
        numbered = {id(part): self._layers(part, module, stack) for part in parts}
        target = numbered[id(parts[0])][0].stack
        edges = [
            (name, _Place(part, 0.0, (name,) * len(part.merge.inputs)))
            for part, behind in ((parts[0], False), (parts[-1], True))
            for name in dict.fromkeys(n for node in part.merge.inputs for n in self.names_of(node))
            if self._belongs(name, module, stack)
            and not any((layer := layer_of(name)) and layer.stack == rows.stack for rows in numbered[id(part)])
            and follows_layers(name) == behind
        ]
        yield from ((name, place) for name, place in edges if place.part is parts[0] and not follows_layers(name))
        first, order = 0, []
        for part in parts:
            rows = numbered[id(part)]
            count = part.ranges[0][1] - part.ranges[0][0]
            for at in range(count):
                layers = [(row, start + at) for row, (start, _) in zip(rows, part.ranges, strict=True)]
                t = position_of(at, count)
                for rest in dict.fromkeys(rest for row, number in layers for rest in row.rests.get(number, ())):
                    names = tuple(f"{row.stack}{number}{rest}" for row, number in layers)
                    yield f"{target}{first + at}{rest}", _Place(part, t, names)
                order.append(layers[0][1])
            first += count
        rows = numbered[id(parts[0])][0]
        if stack is self.tree.root:
            self.renumbered.append(Renumbered(target, rows.depth, tuple(order)))
        yield from ((name, place) for name, place in edges if follows_layers(name))

    def _layers(self, part: Part, module: str | None, stack: Stack) -> list[_Layers]:
        """For each input of a slice its layers, the range that the slice asks for checked."""
        found, problems = [], []
        for node, (first, stop) in zip(part.merge.inputs, part.ranges, strict=True):
            names = [name for name in self.names_of(node) if self._belongs(name, module, stack)]
            depths = stacks_of(names)
            main = main_stack(names, self._config(node))
            label = node.label if isinstance(node, Leaf) else "the inner recipe"
            if main is None:
                which = ", ".join(f"{name}0-{count - 1}" for name, count in depths.items()) or "none"
                problems.append(f"{part.place}: which layers of {label} are meant? It has {which}; use 'modules'")
            elif stop > depths[main]:
                problems.append(
                    f"{part.place}: layer_range [{first}, {stop}] goes beyond {label}, whose layers {main}0 to "
                    f"{main}{depths[main] - 1} are [0, {depths[main]}]"
                )
            else:
                rests: dict[int, list[str]] = {}
                for layer in map(layer_of, names):
                    if layer is not None and layer.stack == main:
                        rests.setdefault(layer.number, []).append(layer.rest)
                found.append(_Layers(main, depths[main], rests))
        if problems:
            raise RecipeError("the slices do not fit the models", problems)
        return found

    def _config(self, node: Node) -> Mapping[str, Any]:
        while not isinstance(node, Leaf):
            node = node.reference
        return node.checkpoint.config

    # ------------------------------------------------------------------ tensors

    def _bind(self, node: Node, name: str, refs: list[TensorRef | None]) -> Node | None:
        if isinstance(node, Leaf):
            refs[node.index] = self._tensors[node.index].get(name)
            return node
        if isinstance(node, Stack):
            place = self._table(node).get(name)
            return None if place is None else self._bind_merge(place.part.merge, name, place.t, place.names, refs)
        if node.settings is not None and id(node) not in self._depths:
            self._depths[id(node)] = stacks_of(self.names_of(node))
        t = _position(name, self._depths[id(node)]) if node.settings is not None else 0.0
        return self._bind_merge(node, name, t, (name,) * len(node.inputs), refs)

    def _bind_merge(
        self, merge: Merge, name: str, t: float, names: Sequence[str], refs: list[TensorRef | None]
    ) -> Merge | None:
        """The merge of one tensor; equal ones are one object, so that whatever depends on it is found once."""
        inputs = [self._bind(node, own, refs) for node, own in zip(merge.inputs, names, strict=True)]
        if not any(node is merge.reference for node in merge.inputs):
            self._bind(merge.reference, name, refs)
        if any(node is None for node in inputs):
            return None
        for leaf, own in zip(merge.statistics, names[len(names) - len(merge.sources) :], strict=False):
            self._bind(leaf, own, refs)
        whole = merge.method.sparsifies and is_log_space(name)
        by_token = name in self._by_token and merge.method.vocabulary is not None
        unchanged = merge.settings is None and all(a is b for a, b in zip(inputs, merge.inputs, strict=True))
        if unchanged and not whole and not by_token:
            return merge
        parameters = merge.parameters if merge.settings is None else merge.settings.at(name, t)
        method = merge.method
        if by_token:
            method, parameters = method.by_token(parameters, len(merge.sources))
            self.by_token[name] = method.name
        flat = tuple((key, tuple(v) if isinstance(v, list) else v) for key, v in sorted(parameters.items()))
        known = (merge.index, method.name, whole, flat, repr(flat), *map(id, inputs))  # repr: 1, 1.0, true are equal
        if known not in self._known:
            base, *rest = inputs if merge.base is not None else (None, *inputs)
            at = next((at for at, node in enumerate(merge.inputs) if node is merge.reference), None)
            bound = replace(
                merge, method=method, parameters=parameters, base=base, settings=None,
                sources=tuple(node for node in rest if node is not None),
                reference=merge.reference if at is None else inputs[at],
            )  # fmt: skip
            self._known[known] = self._whole_entries(bound) if whole else bound
        return self._known[known]

    def _whole_entries(self, merge: Merge) -> Merge:
        """The same merge without leaving entries out."""
        method, parameters = dense_counterpart(merge.method, merge.parameters, len(merge.sources))
        index = len(self.tree.merges) + merge.index  # its own, as its programs are
        return replace(merge, index=index, method=method, parameters=parameters, instead=merge.index)


@dataclass(frozen=True)
class _Layers:
    """The layers of one input: their stack, how many there are, and the rest of each tensor's name by number."""

    stack: str
    depth: int
    rests: Mapping[int, Sequence[str]]


def _position(name: str, depths: Mapping[str, int]) -> float:
    layer = layer_of(name)
    return 0.0 if layer is None else position_of(layer.number, depths[layer.stack])
