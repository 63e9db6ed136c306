"""`Blend`: the tensors of a planned recipe as functions of one open parameter, and the gradient by it.

With θ_l = m_l(w_g) the merge of tensor l at the values w_g of its group g, and L a loss of the merged model:

    dL/dw_g = Σ_{l in g} (dm_l/dw_g)' dL/dθ_l

The network's graph ends at the θ_l; those of the merges are built and dropped tensor by tensor. In memory are
the inputs once in their own types, the merged tensors, and the gradient by them. For task arithmetic the gradient is
the sum of <dL/dθ_l, τ_l>.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from eutectic.errors import EutecticError, MethodError, RecipeError
from eutectic.methods.method import Parameter
from eutectic.ops.random import Draws
from eutectic.recipes.adapter_plan import AdapterPlan
from eutectic.recipes.compute import Workspace, row_dtype
from eutectic.recipes.executors.local import solve_one
from eutectic.recipes.match import Step
from eutectic.recipes.plan import Plan
from eutectic.recipes.semantics import check_inputs
from eutectic.recipes.source_statistics import read_statistics
from eutectic.recipes.tree import Merge
from eutectic.weights.layers import layer_of

if TYPE_CHECKING:
    import torch

__all__ = ["Blend", "Granularity", "inputs_of"]

Granularity = Literal["source", "layer", "tensor"]


@dataclass(frozen=True, eq=False)
class _Open:
    """A tensor that the parameter changes: its inputs (the base first where there is one), shaped, and its group."""

    step: Step
    inputs: Sequence[torch.Tensor]
    statistics: Sequence[torch.Tensor | None] | None
    group: int


class Blend:
    """A planned recipe, its inputs in memory, its parameter `name` open: one value a group of tensors and source.

    Args:
        plan: of a recipe of models. name: a number of its method, such as weight, for each source or (lambda) for all.
        granularity: whether a group is all tensors, those of a layer, or one tensor.

    Raises:
        RecipeError: the recipe, its method or the parameter cannot be learned; says why.
    """

    def __init__(self, plan: Plan, name: str = "weight", granularity: Granularity = "source") -> None:
        import torch

        self.plan, self.name = plan, name
        self.merge = _checked(plan)
        self.parameter = _parameter(self.merge, name)
        self.columns = len(self.merge.sources) if self.parameter.per_source else 1
        self.fixed: dict[str, torch.Tensor] = {}
        self.groups: dict[str, list[str]] = {}
        self._open: list[_Open] = []
        worker = Workspace()
        numbers: dict[str, int] = {}
        starts: list[list[list[float]]] = []
        for step in plan.steps:
            if step.action != "merge" or name not in step.root.method.parameters:
                self.fixed[step.name] = plan[step.name].to_torch()
                continue
            label = _group(step.name, granularity)
            group = numbers.setdefault(label, len(numbers))
            starts += [[]] if group == len(starts) else []
            starts[group].append(self._start(step))
            self.groups.setdefault(label, []).append(step.name)
            found = read_statistics(step.root, step, torch.device("cpu")) if step.root.statistics else None
            self._open.append(_Open(step, inputs_of(plan, step, worker), found, group))
        if not self._open:
            raise RecipeError(f"{self.merge.place}: no tensor of the result is merged, so there is no {name} to learn")
        self.start = torch.stack([torch.tensor(rows, dtype=torch.float64).mean(0) for rows in starts])

    def _start(self, step: Step) -> list[float]:
        value = step.root.parameters[self.name]
        values = list(value) if self.parameter.per_source else [value]
        if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            raise RecipeError(f"{self.merge.place}: {self.name} starts at {values}; give it numbers to start from")
        return values

    def tensors(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Every tensor of the result at these values [groups, columns], not rounded to the result's type."""
        import torch

        with torch.no_grad():
            merged = {one.step.name: self._merged(one, values[one.group].tolist()) for one in self._open}
        return {**self.fixed, **merged}

    def gradient(self, values: torch.Tensor, upstream: Mapping[str, torch.Tensor | None]) -> torch.Tensor:
        """dL/dvalues [groups, columns] from the gradients dL/dθ_l by name; None or absent: no effect on the loss.

        Raises:
            MethodError: the method does not let gradients through to the parameter.
        """
        import torch

        total = torch.zeros_like(values)
        for one in self._open:
            arriving = upstream.get(one.step.name)
            if arriving is None:
                continue
            row = values[one.group].detach().clone().requires_grad_(True)
            merged = self._merged(one, list(row.unbind()))
            if not merged.requires_grad:
                raise MethodError(
                    f"{self.merge.method.name} lets no gradient through to {self.name} ({one.step.name}): choose a "
                    "parameter that scales tensors, such as weight or lambda"
                )
            (found,) = torch.autograd.grad(merged, row, arriving.to(merged.dtype))
            total[one.group] += found
        return total

    def clamp(self, values: torch.Tensor) -> torch.Tensor:
        """The nearest values that the method takes."""
        return values.clamp(self.parameter.range.low, self.parameter.range.high)

    def _merged(self, one: _Open, row: Sequence[Any]) -> torch.Tensor:
        merge, inputs = one.step.root, list(one.inputs)
        base = inputs.pop(0) if merge.base is not None else None
        parameters = {**merge.parameters, self.name: list(row) if self.parameter.per_source else row[0]}
        draws = Draws(merge.seed, one.step.name)
        try:
            return merge.method.apply(inputs, base, parameters, draws, one.statistics)
        except (EutecticError, MemoryError):
            raise
        except Exception as error:  # a method that turns its parameters into plain numbers, or a plug-in's own fault
            raise MethodError(
                f"{merge.method.name} cannot be differentiated by {self.name} ({one.step.name}): "
                f"{type(error).__name__}: {str(error)[:200]}"
            ) from error


def inputs_of(plan: Plan, step: Step, worker: Workspace) -> list[torch.Tensor]:
    """Every input of a tensor's merge, whole, in its own type; inner recipes are merged.

    Raises:
        NonFiniteError: one holds NaN or infinity.
    """
    import numpy as np
    import torch

    merge = step.root
    tile = worker.inputs(solve_one(plan, step, worker), merge, 0, step.numel)
    found = []
    for node, row in zip(merge.inputs, tile.rows, strict=True):
        dtype = row_dtype(node, step)
        raw = torch.from_numpy(np.array(row[: step.numel * dtype.size]))
        found.append(raw.view(getattr(torch, dtype.torch)).reshape(step.shape))
    check_inputs(merge, step, [tensor.reshape(-1) for tensor in found], 0)
    return found


def _checked(plan: Plan) -> Merge:
    """The recipe's one merge of whole models, by a method that gradients go through."""
    root = plan.tree.root
    if isinstance(plan, AdapterPlan):
        raise RecipeError("a merge of adapters is no model that answers; merge base+adapter sources instead")
    if not isinstance(root, Merge):
        raise RecipeError("slices and modules have sources of their own each; learn the weights of a recipe of models")
    if not root.method.differentiable:
        raise RecipeError(
            f"{root.method.name} has no finite gradient everywhere (singular directions, thresholds of order "
            "statistics); `eutectic list` names the methods, task_arithmetic is one that can be learned"
        )
    if len(root.sources) != len(plan.recipe.models):
        raise RecipeError(
            f"the base is a source of {root.method.name}; learn the weights of a method of deltas or models"
        )
    if "model" in (root.method.scope, root.parameters.get("scope")):
        raise RecipeError(f"{root.method.name} over the whole model cannot be learned tensor by tensor; scope: tensor")
    return root


def _parameter(merge: Merge, name: str) -> Parameter:
    faults = merge.method.unknown(name)
    if faults:
        raise RecipeError(faults[0][1])
    found = merge.method.parameters.get(name)
    if found is None or float not in found.types:
        numbers = [p.name for p in merge.method.parameters.values() if float in p.types]
        raise RecipeError(f"{name} of {merge.method.name} is no number to learn; it has {', '.join(numbers) or 'none'}")
    return found


def _group(name: str, granularity: Granularity) -> str:
    if granularity == "source":
        return ""
    layer = layer_of(name) if granularity == "layer" else None
    return name if layer is None else f"{layer.stack}{layer.number}"
