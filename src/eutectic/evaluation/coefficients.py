"""Least squares over the sums of a pass: coefficients, their standard errors, and what cannot be told apart.

    minimise  sum_t |c_t - sum_i a_i p_i,t|^2 / v_t      over the tensors t, v_t the noise of one element

with sum_i a_i = 1, or free; elements are measured by their size, as the sums are. Of the standard error that holds
where all errors are alike and the one that holds where they grow with the changes (White 1980), the larger is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eutectic.evaluation.gram import Sums, solve

__all__ = ["Fit", "Together", "explained", "fit"]

APART = 1e-6  # share of a candidate's direction that lies in the null space, from which its coefficient is unknown


@dataclass(frozen=True)
class Together:
    """Candidates (by position) whose coefficients cannot be told apart; `total` is their sum, None if not known."""

    members: tuple[int, ...]
    total: float | None


@dataclass(frozen=True)
class Fit:
    """Coefficients of the candidates, in their order, with standard errors; None where not identified.

    `residual` is |c - fit| / |c - p_0|, the share of the change that the fit leaves (0 where nothing changed), and
    `over_rounding` the root mean square of what is left over what rounding explains. `spare` counts the elements
    beyond the unknowns; without any, nothing is tested. `free` tells whether the sum was free. `condition` is that
    of the changes, at one length each.
    """

    coefficients: tuple[float | None, ...]
    errors: tuple[float | None, ...]
    together: tuple[Together, ...]
    condition: float
    residual: float
    over_rounding: float
    spare: int
    free: bool
    solution: np.ndarray  # of the columns of `Sums`; the least one where some are not identified

    def differ(self, other: Fit) -> bool:
        """Whether a coefficient that both know is another in the other by more than its error allows."""
        pairs = zip(self.coefficients, self.errors, other.coefficients, other.errors, strict=True)
        return any(
            a is not None and b is not None and abs(a - b) > max(1e-3, 4 * math.hypot(da or 0.0, db or 0.0))
            for a, da, b, db in pairs
        )


def explained(over_rounding: float, elements: int) -> bool:
    """Whether rounding explains a root mean square of so many times its own.

    A single rounding never gives more than sqrt(3); the limit leaves room for a few more, made by merges that are
    calculated in the type that is stored, and for chance where the elements are few.
    """
    return over_rounding <= 2 + 8 / math.sqrt(max(elements, 1))


def fit(sums: Sequence[Sums], *, free: bool = False) -> Fit:
    """One set of coefficients for all these tensors. `free`: their sum is free; else it is 1.

    >>> gram = np.array([[4.0, 0.0], [0.0, 2.0]])  # |p_0|^2, and |p_1 - p_0|^2
    >>> cross, none = np.array([0.0, 1.0]), np.zeros(2)
    >>> half = Sums("w", 100, 0, gram, cross, 0.5, none, 0.5, 1e-9, 1e-11, (100, 100), np.zeros((2, 2)))
    >>> fit([half]).coefficients
    (0.5, 0.5)
    """
    size = len(sums[0].guess)
    columns = np.arange(0 if free else 1, size)
    weights = [1 / t.noise for t in sums]
    gram = sum((w * t.gram for w, t in zip(weights, sums, strict=True)), np.zeros((size, size)))[columns][:, columns]

    def pull(at: np.ndarray) -> np.ndarray:
        """Half the gradient of what is minimised."""
        pulls = [w * (t.cross - t.gram @ (at - t.guess)) for w, t in zip(weights, sums, strict=True)]
        return np.sum(pulls, axis=0)[columns]

    solution = np.zeros(size)
    solution[columns], pseudo, null, condition = solve(gram, pull(solution))
    solution[columns] += pseudo @ pull(solution)  # the digits that the first solution left over
    elements = sum(t.elements for t in sums)
    spare = max(elements - (len(columns) - null.shape[1]), 0)
    lefts = [t.left(solution) for t in sums]
    variance = sum(w * left for w, left in zip(weights, lefts, strict=True)) / spare if spare else math.inf
    # from columns to candidates: a = (1, 0, ..) + (x_0, x_1 - x_0, ..) b
    to = np.eye(size)
    to[0, 1:] = -1.0
    values = to @ solution + np.eye(size)[0]
    across = to[:, columns] @ pseudo
    scatter = sum((w * w * t.scatter for w, t in zip(weights, sums, strict=True)), np.zeros((size, size)))
    spread = np.maximum(
        np.einsum("ij,ij->i", across, to[:, columns]) * (variance if spare else 0.0),
        np.einsum("ij,jk,ik->i", across, scatter[columns][:, columns], across),
    )
    lost = _lost(to[:, columns] @ null)
    known = np.diagonal(lost) <= APART
    change = math.sqrt(sum(t.change for t in sums))
    return Fit(
        tuple(float(v) if k else None for v, k in zip(values, known, strict=True)),
        tuple(math.sqrt(max(s, 0.0)) if k and spare else None for s, k in zip(spread, known, strict=True)),
        tuple(_together(lost, values)),
        condition,
        math.sqrt(sum(lefts)) / change if change else 0.0,
        math.sqrt(variance) if spare else 0.0,
        spare,
        free,
        solution,
    )


def _lost(null: np.ndarray) -> np.ndarray:
    """The projector on a null space given in candidates' coefficients."""
    if not null.shape[1]:
        return np.zeros((len(null), len(null)))
    basis, _ = np.linalg.qr(null / np.linalg.norm(null, axis=0))
    return basis @ basis.T


def _together(lost: np.ndarray, values: np.ndarray) -> list[Together]:
    """The candidates that the null space links, in groups."""
    groups: list[list[int]] = []
    for i in range(len(lost)):
        if lost[i, i] > APART:
            linked = [g for g in groups if any(abs(lost[i, j]) > APART for j in g)]
            groups = [g for g in groups if g not in linked] + [[*(j for g in linked for j in g), i]]
    found = []
    for group in map(sorted, groups):
        chosen = np.zeros(len(lost))
        chosen[group] = 1.0
        sure = float(chosen @ lost @ chosen) <= APART
        found.append(Together(tuple(group), float(values[group].sum()) if sure else None))
    return sorted(found, key=lambda t: t.members)
