"""One module of a merge of adapters: its merged change as a pair B [outputs, r], A [r, inputs], and what that loses."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from eutectic.errors import NonFiniteError
from eutectic.ops.lowrank import factors, numerical_rank, product_svd, rank_for, truncated_svd
from eutectic.ops.weighted_sum import sum_weighted
from eutectic.recipes.adapter_plan import AdapterPlan, module_of
from eutectic.recipes.adapter_sums import coefficients, pair_of, pairs_of, sides_of, stacked
from eutectic.recipes.lora_output import Factored
from eutectic.recipes.match import Step

if TYPE_CHECKING:
    import torch

    Made = tuple[Factored, torch.Tensor, torch.Tensor]

__all__ = ["factorise"]


def factorise(plan: AdapterPlan, step: Step) -> Made:
    """What became of a module, and its factors B and A, not yet of their type.

    Raises:
        NonFiniteError: a factor holds NaN or infinity.
    """
    if plan.form.space == "factors":
        return _averaged(plan, step)
    return _compressed(plan, step) if plan.exact else _approximated(plan, step)


def _compressed(plan: AdapterPlan, step: Step) -> Made:
    """From stacked factors: nothing is lost but what a rank or an error asks for."""
    _check_finite(plan, step)
    left, right = stacked(step)
    u, s, v = product_svd(left, right)
    square = float((s**2).sum())
    whole = numerical_rank(s, max(sides_of(step)))
    most = min(plan.form.rank or whole, whole)
    kept = _enough(plan, s[:most], square)
    count = max(1, most if kept is None else kept)
    error = math.sqrt(float((s[count:whole] ** 2).sum()) / square) if count < whole else 0.0
    b, a = factors(u[:, :count], s[:count], v[:, :count])
    return Factored(module_of(step), step.shape, count, error, math.sqrt(square)), b, a


def _approximated(plan: AdapterPlan, step: Step) -> Made:
    """From the dense change, which exists for one module at a time."""
    dense = plan[step.name].to_torch().reshape(step.shape[0], -1)
    if next(iter(pairs_of(step).values())).turned:
        dense = dense.T.contiguous()
    square = _square(dense)
    rank = most = plan.most_rank(step)
    if plan.form.max_error is not None:  # few may be enough
        rank = min(rank, max(pair.rank for pair in pairs_of(step).values()))
    u, s, v = truncated_svd(dense, rank, name=step.name)
    kept = _enough(plan, s, square)
    while kept is None and rank < most:
        rank = min(2 * rank, most)
        u, s, v = truncated_svd(dense, rank, name=step.name)
        kept = _enough(plan, s, square)
    count = rank if kept is None else kept
    b, a = factors(u[:, :count], s[:count], v[:, :count])
    error = math.sqrt(_square(dense.addmm_(b, a, alpha=-1)) / square) if square else 0.0
    return Factored(module_of(step), step.shape, count, error, math.sqrt(square)), b, a


def _averaged(plan: AdapterPlan, step: Step) -> Made:
    """mean(B) and mean(A); the error is how far their product lies from the mean of the products."""
    import torch

    weights, pairs = coefficients(step), pairs_of(step)
    assert weights is not None
    _check_finite(plan, step)
    known = next(iter(pairs.values()))
    b = sum_weighted([pair.b.to_torch() for pair in pairs.values()], [weights[at] for at in pairs])
    a = sum_weighted([pair.a.to_torch() for pair in pairs.values()], [weights[at] for at in pairs])
    b, a = b.reshape(-1, known.rank), a.reshape(known.rank, -1)
    left, right = stacked(step)
    change = float(product_svd(left, right)[1].square().sum())
    missed = product_svd(torch.cat([left, -known.scale * b], dim=1), torch.cat([right, a]))[1]
    error = math.sqrt(float(missed.square().sum()) / change) if change else 0.0
    return Factored(module_of(step), step.shape, known.rank, error, math.sqrt(change)), b, a


def _square(dense: torch.Tensor) -> float:
    """Its squared Frobenius norm, added up in float64."""
    import torch

    return float(torch.linalg.vector_norm(dense, dtype=torch.float64)) ** 2


def _enough(plan: AdapterPlan, s: torch.Tensor, square: float) -> int | None:
    """The smallest rank within the error that the recipe allows; None where it names none, or no rank reaches it."""
    return None if plan.form.max_error is None else rank_for(s, square, plan.form.max_error)


def _check_finite(plan: AdapterPlan, step: Step) -> None:
    for leaf in plan.tree.leaves:
        pair = pair_of(leaf, step)
        for ref in () if pair is None else (pair.a, pair.b):
            if not ref.to_torch().float().isfinite().all():
                raise NonFiniteError(f"{leaf.label}: {ref.name!r} holds NaN or infinity; repair that adapter")
