"""Spherical linear interpolation between two models, tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from eutectic.methods.method import Setting, merge_method
from eutectic.ops.program import Program
from eutectic.ops.sphere import slerp_coefficients
from eutectic.ops.weighted_sum import GramSum, sum_weighted

if TYPE_CHECKING:
    import torch

__all__ = ["slerp"]


def _lower(setting: Setting) -> Program:
    t = setting.parameters["t"]
    return GramSum(2, lambda gram: slerp_coefficients(gram.tolist(), t))


@merge_method(
    summary="spherical interpolation between two models",
    reference="Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985",
    scope="tensor",
    base="first",
    sources=(2, 2),
    symmetric=False,
    lower=_lower,
)
def slerp(
    tensors: Sequence[torch.Tensor],
    *,
    t: Annotated[float, "0 gives the base (or first) model, 1 the other"],
) -> torch.Tensor:
    """Interpolation along the great circle: θ = sin((1-t)Ω)/sin Ω · a + sin(tΩ)/sin Ω · b, cos Ω = <a,b>/(‖a‖‖b‖).

    Each tensor is one vector. Linear where the ends are nearly parallel (abs(cos Ω) > 0.9995); a vector of length
    zero counts as orthogonal to the other (both as in mergekit).

    Args:
        tensors: exactly two, a and b; a `base` given by keyword comes first.
        t: position between them; below 0 and above 1 it extrapolates; required.

    >>> import torch
    >>> slerp([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])], t=0.5)
    tensor([0.7071, 0.7071])
    """
    import torch

    a, b = (tensor.double().reshape(-1) for tensor in tensors)
    gram = torch.stack([torch.stack([a @ a, a @ b]), torch.stack([a @ b, b @ b])])
    plain = slerp_coefficients(gram.tolist(), t)
    if not gram.requires_grad or plain == (1.0 - t, t) or gram.diagonal().min() == 0:
        return sum_weighted(tensors, plain)
    angle = torch.acos(gram[0, 1] / (gram[0, 0] * gram[1, 1]).sqrt())  # the same, with its gradient
    return sum_weighted(tensors, [torch.sin((1.0 - t) * angle) / angle.sin(), torch.sin(t * angle) / angle.sin()])
