"""Coefficients on the sphere: what a spherical interpolation needs is in the Gram matrix of its ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

__all__ = ["direction_coefficients", "karcher_coefficients", "nuslerp_coefficients", "slerp_coefficients"]

NEARLY_PARALLEL = 0.9995
EPSILON = 1e-8
SHORTEST = 1e-7  # lengths below count as this in NuSLERP
COLLINEAR = 1e-12  # 1 - cos² below which NuSLERP is linear: opposite ends are, whatever rounding says


def slerp_coefficients(gram: Sequence[Sequence[float]], t: float) -> tuple[float, float]:
    """(c_a, c_b) with slerp(a, b; t) = c_a a + c_b b, given G = [[<a,a>, <a,b>], [<b,a>, <b,b>]].

    cos Ω = <a,b> / (‖a‖ ‖b‖);  c_a = sin((1-t) Ω) / sin Ω,  c_b = sin(t Ω) / sin Ω.
    Linear, (1-t, t), where abs(cos Ω) > 0.9995. An end no longer than 1e-8 counts as orthogonal to the other.

    >>> slerp_coefficients([[1, 0], [0, 1]], 0.5)
    (0.7071067811865475, 0.7071067811865475)
    """
    length_a, length_b = math.sqrt(gram[0][0]), math.sqrt(gram[1][1])
    short = not (length_a > EPSILON and length_b > EPSILON)
    cosine = 0.0 if short else gram[0][1] / (length_a * length_b)
    if not abs(cosine) <= NEARLY_PARALLEL:
        return 1.0 - t, t
    angle = math.acos(cosine)
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def nuslerp_coefficients(gram: Sequence[Sequence[float]], t: float) -> tuple[float, float]:
    """`slerp_coefficients` with NuSLERP's borders: linear only where 1 - cos² Ω <= 1e-12, lengths at least 1e-7.

    >>> nuslerp_coefficients([[1, 1], [1, 1]], 0.25)
    (0.75, 0.25)
    """
    lengths = [max(math.sqrt(gram[k][k]), SHORTEST) for k in range(2)]
    cosine = min(max(gram[0][1] / (lengths[0] * lengths[1]), -1.0), 1.0)  # in this order NaN stays NaN
    if 1.0 - cosine * cosine <= COLLINEAR:
        return 1.0 - t, t
    angle = math.acos(cosine)
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def direction_coefficients(gram: Any, weights: Sequence[float], eps: float, fn: Any = math) -> list[Any] | None:
    """Coefficients of the weighted mean direction times the weighted mean length; None where it has no direction.

    m = Σ w_k x_k / (‖x_k‖ + eps);  result = (Σ w_k ‖x_k‖) m / ‖m‖. `gram` holds numbers, or torch scalars with
    `fn` = torch, through which gradients then pass.

    >>> [round(c, 6) for c in direction_coefficients([[4.0, 0.0], [0.0, 1.0]], [0.5, 0.5], 0.0)]
    [0.53033, 1.06066]
    """
    count = len(weights)
    lengths = [_root(gram[k][k], fn) for k in range(count)]
    scaled = [0.0 if length <= 0 else w / (length + eps) for w, length in zip(weights, lengths, strict=True)]
    square = sum(scaled[i] * scaled[j] * gram[i][j] for i in range(count) for j in range(count))
    norm = _root(square, fn)
    if norm < eps or norm == 0:
        return None
    size = sum(w * length for w, length in zip(weights, lengths, strict=True))
    return [c * size / norm for c in scaled]


def karcher_coefficients(gram: Any, max_iter: int, tol: float, fn: Any = math) -> list[Any]:
    """Coefficients of the Riemannian mean of the directions of x_k on the unit sphere, times their mean length.

    From the normalised mean, steps along the mean of the logarithms log_m(u_k) = θ_k / sin θ_k (u_k - cos θ_k m) until
    one is shorter than `tol`. Vectors no longer than `tol` have no direction and count for the length only. All
    iterates lie in the span of the inputs, so coefficients and the Gram matrix are enough.
    """
    count = len(gram)
    lengths = [_root(gram[k][k], fn) for k in range(count)]
    at = [k for k in range(count) if lengths[k] > tol]
    if not at:
        return [0.0] * count
    share = 1.0 / len(at)
    unit = [[gram[i][j] / (lengths[i] * lengths[j]) for j in at] for i in at]
    mean: list[Any] = [share] * len(at)
    norm = _norm(mean, unit, fn)
    mean = [1.0] + [0.0] * (len(at) - 1) if norm < tol else [c / norm for c in mean]
    for _ in range(max_iter):
        step: list[Any] = [0.0] * len(at)
        for k, row in enumerate(unit):
            cosine = sum(c * g for c, g in zip(mean, row, strict=True))
            if not -1.0 < cosine < 1.0 or fn.acos(cosine) < tol:
                continue
            angle = fn.acos(cosine)
            factor = share * (angle / fn.sin(angle))
            step = [s - factor * cosine * c for s, c in zip(step, mean, strict=True)]
            step[k] = step[k] + factor
        length = _norm(step, unit, fn)
        if length < tol:
            break
        mean = [fn.cos(length) * c + fn.sin(length) / length * s for c, s in zip(mean, step, strict=True)]
        norm = _norm(mean, unit, fn)
        mean = [c / norm for c in mean]
    size = sum(lengths) / count
    found: list[Any] = [0.0] * count
    for k, c in zip(at, mean, strict=True):
        found[k] = size * c / lengths[k]
    return found


def _root(square: Any, fn: Any) -> Any:
    """The square root, a constant 0 at and below zero (where the gradient would be infinite)."""
    return 0.0 if square <= 0 else fn.sqrt(square)


def _norm(coefficients: Sequence[Any], unit: Sequence[Sequence[Any]], fn: Any) -> Any:
    pairs = ((a * b, unit[i][j]) for i, a in enumerate(coefficients) for j, b in enumerate(coefficients))
    return _root(sum(product * g for product, g in pairs), fn)
