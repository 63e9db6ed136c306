"""NuSLERP: spherical interpolation of two models by weights, of task vectors or of rows if asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from eutectic.methods.method import PerSource, Setting, merge_method
from eutectic.ops.program import Program
from eutectic.ops.row_sum import NUSLERP, RowGramSum, lengths_of, sum_products
from eutectic.ops.sphere import COLLINEAR, SHORTEST, nuslerp_coefficients
from eutectic.ops.weighted_sum import GramSum

if TYPE_CHECKING:
    import torch

__all__ = ["nuslerp"]


def _position(weight: Sequence[float]) -> float:
    total = sum(weight)
    return 0.5 if abs(total) < 1e-6 else weight[1] / total


def _lower(setting: Setting) -> Program | None:
    p = setting.parameters
    t = _position(p["weight"])
    if p["nuslerp_flatten"] or len(setting.shape) < 2:
        return GramSum(2, lambda gram: nuslerp_coefficients(gram.tolist(), t), anchored=setting.anchored)
    if p["nuslerp_row_wise"]:
        return None  # vectors along the first axis cross every tile
    return RowGramSum(setting.shape[-1], NUSLERP, anchored=setting.anchored, t=t)


@merge_method(
    summary="spherical interpolation by weights, of tensors, task vectors or rows",
    reference="Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985; options as in mergekit 0.1.5",
    scope="tensor",
    base="optional",
    sources=(2, 2),
    lower=_lower,
)
def nuslerp(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor | None = None,
    weight: Annotated[PerSource[float], "weight of each end: the position is w_2 / (w_1 + w_2)"],
    nuslerp_flatten: Annotated[bool, "one angle for the whole tensor"] = True,
    nuslerp_row_wise: Annotated[bool, "without flatten: along the first axis instead of the last"] = False,
) -> torch.Tensor:
    """Slerp at t = w_2 / (w_1 + w_2): sin((1-t)Ω)/sin Ω · a + sin(tΩ)/sin Ω · b; with a base, of a - θ0 and b - θ0.

    Linear where the ends are collinear. With `nuslerp_row_wise` the whole tensor is held in memory.

    Args:
        tensors: exactly two, a and b; base: θ0, or none.
        weight: w_1 and w_2; required. Weights that sum to zero mean t = 0.5.
        nuslerp_flatten: the tensor is one vector; else every row along the last axis is one.
        nuslerp_row_wise: without flatten, vectors run along the first axis.

    >>> import torch
    >>> nuslerp([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])], weight=1.0)
    tensor([0.7071, 0.7071])
    """
    import torch

    t, shape = _position(weight), tensors[0].shape
    origin = None if base is None else base.double()
    ends = [x.double() if origin is None else x.double() - origin for x in tensors]
    if nuslerp_flatten or len(shape) < 2:
        a, b = (end.reshape(1, -1) for end in ends)
    else:
        a, b = (end.transpose(0, -1) if nuslerp_row_wise else end for end in ends)
    length = lengths_of(a).clamp(min=SHORTEST) * lengths_of(b).clamp(min=SHORTEST)
    cosine = ((a * b).sum(-1) / length).clamp(-1, 1)
    straight = 1.0 - cosine * cosine <= COLLINEAR
    angle = torch.acos(cosine.where(~straight, 0.0))  # another angle there, so that no gradient is infinite
    first = (torch.sin((1.0 - t) * angle) / torch.sin(angle)).where(~straight, 1.0 - t)
    second = (torch.sin(t * angle) / torch.sin(angle)).where(~straight, t)
    merged = sum_products([a, b], [first[..., None], second[..., None]])
    if not (nuslerp_flatten or len(shape) < 2) and nuslerp_row_wise:
        merged = merged.transpose(0, -1)
    merged = merged.reshape(shape)
    return merged if origin is None else merged + origin
