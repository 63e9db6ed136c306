"""Coefficients on the sphere: what a spherical interpolation needs is in the Gram matrix of its ends."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["slerp_coefficients"]

NEARLY_PARALLEL = 0.9995
EPSILON = 1e-8


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
