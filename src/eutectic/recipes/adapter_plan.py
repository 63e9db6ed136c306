"""The plan of a merge of adapters. As a `Checkpoint` it is that of the merged changes; what it writes is an adapter."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from eutectic.errors import ResourceError
from eutectic.recipes.adapter_checks import check_alike, check_factors, check_whole
from eutectic.recipes.adapter_form import AdapterForm
from eutectic.recipes.adapter_sums import coefficients, is_sum, pairs_of, sides_of
from eutectic.recipes.match import Account, Step, match_tensors
from eutectic.recipes.options import Options
from eutectic.recipes.plan import TORCH_BYTES, Plan
from eutectic.recipes.schema import Recipe
from eutectic.recipes.tree import Leaf, Merge, Stack, Tree
from eutectic.weights.adapter_delta import Changes, ZeroTensor
from eutectic.weights.dtypes import DType, dtype_of
from eutectic.weights.lora import ADAPTER_WEIGHTS, PREFIX
from eutectic.weights.sink import Shard, Written, split_into_shards
from eutectic.weights.tensor_ref import TensorRef

__all__ = ["AdapterPlan", "Planned", "factor_tensors", "make_adapter_plan", "module_of", "shard_of", "stored_name"]

MOST_SHOWN = 6
COPIES = 4  # of a module's matrices, while it is decomposed


@dataclass(frozen=True)
class Planned:
    """A tensor of the adapter: its name in the file, type and shape."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return math.prod(self.shape) * self.dtype.size


def module_of(step: Step) -> str:
    """The module that a change belongs to."""
    return step.name.removesuffix(".weight")


def stored_name(step: Step) -> str:
    """The name in the file of a tensor that was saved whole: that of the first source that has it."""
    return next(ref.name for ref in step.refs if ref is not None and not isinstance(ref, ZeroTensor))


def factor_tensors(step: Step, rank: int, dtype: DType) -> tuple[Planned, Planned]:
    """A and B of one module as PEFT names and shapes them."""
    pair = next(iter(pairs_of(step).values()))
    a, b = ("embedding_A", "embedding_B") if pair.embeds else ("A.weight", "B.weight")
    name = f"{PREFIX}{module_of(step)}.lora_"
    behind = (1,) * len(pair.b.shape[2:])
    return (
        Planned(name + a, dtype, (rank, *pair.a.shape[1:])),
        Planned(name + b, dtype, (pair.b.shape[0], rank, *behind)),
    )


def shard_of(tensors: Sequence[Written]) -> Shard:
    """The one weight file of an adapter."""
    return replace(split_into_shards(tensors, sys.maxsize)[0], name=ADAPTER_WEIGHTS)


class AdapterPlan(Plan):
    """A recipe of adapters bound to them. Ranks, and so the sizes of what is written, are at most what it says."""

    def __init__(self, recipe: Recipe, tree: Tree, account: Account, options: Options) -> None:
        self.form = recipe.adapter or AdapterForm.model_validate({})
        stored = recipe.out_dtype or recipe.dtype
        self.stored = None if stored is None else dtype_of(stored)
        steps = tuple(
            step if self.stored is None or pairs_of(step) or step.action == "copy" else replace(step, dtype=self.stored)
            for step in account.steps
        )
        super().__init__(recipe, tree, replace(account, steps=steps), options)
        self.changes = [step for step in self.steps if pairs_of(step)]
        self.whole = [step for step in self.steps if not pairs_of(step)]
        self.exact = all(is_sum(step) for step in self.changes)
        check_whole(self.whole, self.tree.root.method)
        if self.form.space == "factors":
            check_factors(self.changes, self.tree.root.method, len(self.adapters))
        self.account = replace(self.account, lines=tuple(self._lines()))

    @cached_property
    def adapters(self) -> list[tuple[str, Changes]]:
        """The sources with their labels, the first of the recipe first."""
        return [(leaf.label, leaf.checkpoint) for leaf in self.tree.sources if isinstance(leaf.checkpoint, Changes)]

    @cached_property
    def copies(self) -> dict[str, list[tuple[str, TensorRef]]]:
        """Tensors of the base that PEFT stored, by name: the label and the handle of every adapter that has it."""
        found: dict[str, list[tuple[str, TensorRef]]] = {}
        for label, changes in self.adapters:
            for name, ref in changes.copies.items():
                found.setdefault(name, []).append((label, ref))
        return found

    @cached_property
    def unchanged(self) -> bool:
        """Whether the result is the one adapter that it is made of, byte for byte."""
        if self.form.rank or self.form.max_error or self.stored or len(self.adapters) > 1:
            return False
        return all(list((coefficients(step) or {}).values()) == [1.0] for step in self.steps)

    def factor_dtype(self, step: Step) -> DType:
        """The type of a module's factors: what the recipe says, or that of the first adapter that has the module."""
        return self.stored or next(iter(pairs_of(step).values())).a.dtype

    def most_rank(self, step: Step) -> int:
        """The largest rank that a module can come out with."""
        ranks, least = [pair.rank for pair in pairs_of(step).values()], min(sides_of(step))
        if self.form.space == "factors" or self.unchanged:
            return max(ranks)
        if self.exact:
            return min(sum(ranks), least, self.form.rank or least)
        return min(self.form.rank or (least if self.form.max_error else max(ranks)), least)

    # ------------------------------------------------------------------ bytes

    @cached_property
    def tensors(self) -> list[Planned]:
        """What the file will hold, at the largest ranks."""
        if self.unchanged:
            stored = self.adapters[0][1].adapter.stored
            return [Planned(name, ref.dtype, ref.shape) for name, ref in stored.items()]
        pairs = [factor_tensors(step, self.most_rank(step), self.factor_dtype(step)) for step in self.changes]
        return [*(tensor for pair in pairs for tensor in pair), *self.kept]

    @cached_property
    def kept(self) -> list[Planned]:
        """The tensors of the file that are no factors."""
        copied = [found[0][1] for found in self.copies.values()]
        return [
            *(Planned(stored_name(step), step.dtype, step.shape) for step in self.whole),
            *(Planned(ref.name, ref.dtype, ref.shape) for ref in copied),
        ]

    @cached_property
    def shards(self) -> list[Shard]:
        """The one weight file, at most as large as this."""
        return [shard_of(self.tensors)]

    @property
    def bytes_written(self) -> int:
        """Bytes of all tensors of the adapter, at most."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @cached_property
    def passes(self) -> int:
        """Reductions before tensors can be combined; stacked factors need none."""
        return 0 if self.exact and not self.whole else super().passes

    @cached_property
    def bytes_read(self) -> int:
        """Bytes that are read; methods that choose entries find factors in memory after the first time."""
        return sum(changes.adapter.stored.nbytes for _, changes in self.adapters)

    @property
    def bytes_moved(self) -> int:
        """Bytes that a whole run tells its watcher of."""
        return self.bytes_read + self.bytes_written

    @cached_property
    def work_bytes(self) -> int:
        """Bytes that the decomposition of the largest module takes."""
        most = 0
        for step in self.changes:
            outputs, inputs = sides_of(step)
            rank = sum(pair.rank for pair in pairs_of(step).values())
            most = max(most, 8 * rank * (outputs + inputs) if self.exact else 4 * outputs * inputs)
        return COPIES * most

    @property
    def workers(self) -> int:
        """Modules at a time: as many as the budget holds, at least one."""
        return max(1, min(self.shape.threads, self.options.max_memory // max(1, self.work_bytes)))

    @property
    def peak(self) -> int:
        """Most resident bytes: the factors of the result are held until all of them are known."""
        held = sum(tensor.nbytes for tensor in self.tensors)
        return TORCH_BYTES + self.shape.buffers + self.workers * self.work_bytes + held

    @property
    def kind(self) -> str:
        """What the rate is measured for."""
        return f"adapter:{super().kind}"

    def _lines(self) -> Iterator[str]:
        """What becomes of every tensor of every adapter."""
        count = f"{len(self.changes)} module{'s' if len(self.changes) != 1 else ''}"
        most = max(self.most_rank(step) for step in self.changes)
        if self.unchanged:
            yield f"one adapter at weight 1: {count}, copied as they are"
            return
        if self.form.space == "factors":
            yield f"averaged: A and B of {count}, which is not the average of the changes"
        elif self.exact:
            yield f"merged: the changes of {count}, exactly, as factors of rank {most} or less"
        else:
            yield f"merged: the changes of {count}, entry by entry, then the nearest factors of rank {most} or less"
        lacking = [
            f"{module_of(step)} (not in {', '.join(label for label, c in self.adapters if step.name not in c)})"
            for step in self.changes
            if len(pairs_of(step)) < len(self.adapters)
        ]
        yield from _listing("zero where an adapter has none", lacking)
        yield from _listing("merged as they are, saved whole", [s.name for s in self.whole if s.action == "merge"])
        taken = [s.name for s in self.whole if s.action == "copy"]
        yield from _listing("copied from the first adapter that has it", taken)
        yield from _listing("copied, PEFT stored the base's", list(self.copies))

    def to_json(self) -> dict[str, Any]:
        """The plan for programs; the keys are those of docs/plan.md."""
        return {
            **super().to_json(),
            "tensors": len(self.tensors),
            "parameters": sum(math.prod(tensor.shape) for tensor in self.tensors),
            "adapter": {
                "space": self.form.space,
                "modules": len(self.changes),
                "rank": max(self.most_rank(step) for step in self.changes),
                "exact": (self.exact and not self.form.rank and not self.form.max_error) or self.unchanged,
            },
        }


def _places(root: Merge | Stack) -> dict[int, str]:
    """Where the outermost recipe names its sources, by the index of the leaf."""
    assert isinstance(root, Merge)  # adapters have no slices and no modules
    return {node.index: f"{root.place}[{at}]: " for at, node in enumerate(root.sources) if isinstance(node, Leaf)}


def _listing(what: str, names: list[str]) -> Iterator[str]:
    if names:
        shown = ", ".join(names[:MOST_SHOWN]) + (", ..." if len(names) > MOST_SHOWN else "")
        yield f"{what}: {len(names)} ({shown})"


def make_adapter_plan(recipe: Recipe, tree: Tree, options: Options) -> AdapterPlan:
    """Check the adapters against one another, and account for every change.

    Raises:
        SourceError, RecipeError: they do not fit together, or the method cannot merge them without their base.
        ResourceError: another device or executor than this process.
    """
    if options.on_gpu or options.executor != "local":
        raise ResourceError("adapters are small and merged in this process; leave out --device and --executor")
    places = _places(tree.root)
    found = [
        (places.get(leaf.index, "") + leaf.label, leaf.checkpoint)
        for leaf in tree.sources
        if isinstance(leaf.checkpoint, Changes)
    ]
    check_alike(found, allow_mismatch=options.allow_mismatch)
    return AdapterPlan(recipe, tree, match_tensors(tree, allow_mismatch=options.allow_mismatch), options)
