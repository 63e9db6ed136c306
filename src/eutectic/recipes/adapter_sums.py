"""Merges of adapters that are weighted sums: their coefficients, and their factors side by side.

Σ c_k s_k B_k A_k = [c_1 s_1 B_1, c_2 s_2 B_2, ...] [A_1; A_2; ...]: what a weighted sum makes of changes is a product
again, exactly. So it is where the coefficients come of a Gram matrix, for <s B A, s' B' A'> = s s' <B'B', A A''> needs
no more than the small products of factors. Whether a merge is such a sum its program tells, not its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eutectic.ops.weighted_sum import GramSum, WeightedSum
from eutectic.recipes.compute import twin
from eutectic.recipes.match import Step
from eutectic.recipes.tree import Leaf, Merge, Node
from eutectic.weights.adapter_delta import ChangeTensor
from eutectic.weights.lora import Pair

if TYPE_CHECKING:
    import torch

    Product = tuple[torch.Tensor, torch.Tensor]
    """L [outputs, k] and R [k, inputs] in float64; k may be 0."""

__all__ = ["coefficients", "is_sum", "pair_of", "pairs_of", "sides_of", "stacked"]


def pair_of(node: Leaf, step: Step) -> Pair | None:
    """The factors of one source for one weight; None where it has none."""
    ref = step.refs[node.index]
    return ref.pair if isinstance(ref, ChangeTensor) else None


def pairs_of(step: Step) -> dict[int, Pair]:
    """The factors of every source that has some, by the index of its leaf."""
    found = {leaf.index: pair_of(leaf, step) for leaf in step.root.leaves}
    return {index: pair for index, pair in found.items() if pair is not None}


def sides_of(step: Step) -> tuple[int, int]:
    """Outputs and inputs of a weight: the rows of B, the columns of A."""
    pair = next(iter(pairs_of(step).values()))
    return pair.b.shape[0], pair.a.numel // pair.rank


def is_sum(step: Step) -> bool:
    """Whether what is made of a weight is a weighted sum of the sources' tensors."""
    return all(isinstance(twin(merge, step), (WeightedSum, GramSum)) for merge in step.merges)


def coefficients(step: Step) -> dict[int, float] | None:
    """The coefficient of every source by the index of its leaf; None where only the tensors' values tell them."""
    found: dict[int, float] = {}
    return found if _add(step.root, step, 1.0, found) else None


def _add(node: Node, step: Step, factor: float, found: dict[int, float]) -> bool:
    if isinstance(node, Leaf):
        if node.checkpoint:  # not the base of all, whose change is zero
            found[node.index] = found.get(node.index, 0.0) + factor
        return True
    assert isinstance(node, Merge)  # a bound merge holds no stack
    program = twin(node, step)
    if not isinstance(program, WeightedSum):
        return False
    weights = _weights(program, [float(c) for c in program.coefficients])
    return all(_add(inner, step, factor * c, found) for inner, c in zip(node.inputs, weights, strict=True))


def _weights(program: WeightedSum | GramSum, found: list[float]) -> list[float]:
    """Coefficients of all inputs: x_0 + Σ c_k (x_k - x_0) is a sum with 1 - Σ c_k for x_0."""
    return [1.0 - sum(found[1:]), *found[1:]] if program.anchored else found


def stacked(step: Step) -> Product:
    """The merged change of one weight as a product in PEFT's orientation, of a step that `is_sum`."""
    return _stacked(step.root, step)


def _stacked(node: Node, step: Step) -> Product:
    import torch

    if isinstance(node, Leaf):
        pair = pair_of(node, step)
        if pair is None:
            outputs, inputs = sides_of(step)
            return torch.zeros(outputs, 0, dtype=torch.float64), torch.zeros(0, inputs, dtype=torch.float64)
        a, b = pair.a.to_torch().double(), pair.b.to_torch().double()
        return pair.scale * b.reshape(-1, pair.rank), a.reshape(pair.rank, -1)
    assert isinstance(node, Merge)
    parts = [_stacked(inner, step) for inner in node.inputs]
    program = twin(node, step)
    if isinstance(program, WeightedSum):
        found = [float(c) for c in program.coefficients]
    else:
        assert isinstance(program, GramSum)
        found = _solved(program, parts)
    return _joined(parts, _weights(program, found))


def _joined(parts: list[Product], weights: list[float]) -> Product:
    import torch

    left = torch.cat([weight * left for (left, _), weight in zip(parts, weights, strict=True)], dim=1)
    return left, torch.cat([right for _, right in parts])


def _solved(program: GramSum, parts: list[Product]) -> list[float]:
    import torch

    if program.anchored:
        parts = [_joined([part, parts[0]], [1.0, -1.0]) for part in parts[1:]]
    gram = torch.zeros(len(parts), len(parts), dtype=torch.float64)
    for i, (left, right) in enumerate(parts):
        for j, (other, beside) in enumerate(parts[: i + 1]):
            gram[i, j] = gram[j, i] = ((left.T @ other) * (right @ beside.T)).sum()
    reduction = program.wants(None)
    assert reduction is not None
    return [float(c) for c in program.solve(reduction, gram[None].numpy(), None)]
