"""Multi-SLERP: the weighted mean direction of several models, at their mean length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from eutectic.errors import MethodError
from eutectic.methods.method import PerSource, Range, Setting, merge_method
from eutectic.ops.program import Program
from eutectic.ops.sphere import direction_coefficients
from eutectic.ops.weighted_sum import GramSum, add_weighted, gram_of, sum_weighted

if TYPE_CHECKING:
    import torch

__all__ = ["multislerp"]


def _coefficients(gram: Any, weight: Sequence[float], normalize: bool, eps: float, fn: Any, where: str) -> list[Any]:
    if len(weight) == 1:
        return [1.0]
    total = sum(weight) if normalize else 1.0
    if abs(total) < 1e-8:
        raise MethodError(
            f"multislerp: the weights {list(weight)} sum to {total:g} and cannot be normalised; "
            "change them or set normalize_weights: false"
        )
    weights = [w / total for w in weight]
    found = direction_coefficients(gram, weights, eps, fn)
    if found is not None:
        return found
    if len(weights) == 2 or all(gram[k][k] <= 0 for k in range(len(weights))):
        return weights
    raise MethodError(
        f"multislerp{where}: the directions of the sources cancel out under the weights {weights}; change the weights"
    )


def _lower(setting: Setting) -> Program:
    p, where = setting.parameters, f" on {setting.tensor!r}"

    def solve(gram: Any) -> list[float]:
        return _coefficients(gram.tolist(), p["weight"], p["normalize_weights"], p["eps"], math, where)

    return GramSum(setting.sources, solve, anchored=setting.anchored)


@merge_method(
    summary="weighted mean direction of several models, at their mean length",
    reference="Goddard, Multi-SLERP (2024), as in mergekit 0.1.5",
    scope="tensor",
    base="optional",
    departures=(
        "mergekit adds the exponential of a mean tangent vector at the mean direction; that vector is zero by "
        "construction, so the mean direction is the result",
    ),
    lower=_lower,
)
def multislerp(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor | None = None,
    weight: Annotated[PerSource[float], "weight of each source"],
    normalize_weights: Annotated[bool, "divide the weights by their sum"] = True,
    eps: Annotated[float, Range(0), "directions shorter than this do not exist"] = 1e-8,
) -> torch.Tensor:
    """Barycentre on the sphere: θ = (Σ w_k ‖θ_k‖) m / ‖m‖, m = Σ w_k θ_k / ‖θ_k‖; with a base, of θ_k - θ0.

    Two sources whose directions cancel are interpolated linearly.

    Args:
        tensors: the sources θ_k; base: θ0, or none.
        weight: w_k, one number or one per source; required.
        normalize_weights: whether to divide them by their sum.
        eps: added to lengths, and the shortest mean direction that counts.

    Raises:
        MethodError: weights that sum to zero, or three and more directions that cancel.

    >>> import torch
    >>> multislerp([torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])], weight=1.0)
    tensor([1.4142, 1.4142])
    """
    import torch

    vectors = [t.double() - base.double() for t in tensors] if base is not None else list(tensors)
    found = _coefficients(gram_of(vectors), weight, normalize_weights, eps, torch, "")
    return sum_weighted(tensors, found) if base is None else add_weighted(base, tensors, found)
