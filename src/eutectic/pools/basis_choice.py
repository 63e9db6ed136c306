"""What the scheme `rmm` keeps of each tensor: how many directions in which gauge, or the factors or values themselves.

Every way to keep a tensor costs bytes and leaves a squared error of the changes: that of the product of what would be
stored (`product_errors`), and what factors of that rank leave out before. `ranks.py` chooses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eutectic.errors import RecipeError
from eutectic.pools.basis import basis_parts, fitted, principal_of, rows_of
from eutectic.pools.change import Change, change_of, is_weight, stacked, widest
from eutectic.pools.gauge import GAUGES
from eutectic.pools.principal import Principal, most_directions, product_errors
from eutectic.pools.ranks import Point, allot
from eutectic.weights.dtypes import DType, dtype_of
from eutectic.weights.tensor_ref import TensorRef

if TYPE_CHECKING:
    import torch

    Settings = Mapping[str, Any]

__all__ = ["choose"]


def choose(
    core: Mapping[str, TensorRef],
    experts: Mapping[str, Mapping[str, TensorRef]],
    names: Sequence[str],
    settings: Settings,
) -> dict[str, dict[str, Any]]:
    """The settings of every tensor in `names`; experts are checkpoints by name.

    Raises:
        RecipeError: a number of directions and an error are both given, or a budget that nothing fits.
        NonFiniteError: an expert holds NaN or infinity.
    """
    p, error = settings["directions"], settings["error"]
    if p and error:
        raise RecipeError("directions and error are both given; the one fixes what the other would choose")
    offers: list[list[Point]] = []
    whole, square = 0, 0.0
    for name in names:
        found = [(label, expert[name]) for label, expert in experts.items()]
        points, changed = _points(core[name], found, settings)
        exact = min(point.nbytes for point in points if point.choice["kept"] != "basis")
        whole, square = whole + exact, square + changed
        offers.append([_fixed(points)] if p else points)
    if p:
        chosen = [points[0] for points in offers]
    elif error:
        chosen = allot(offers, most_error=error**2 * square)
    else:
        least = sum(min(point.nbytes for point in points) for points in offers)
        share = settings["budget"] or max(0.5, least / max(1, whole))
        if least > share * whole * (1 + 1e-12):
            raise RecipeError(
                f"budget: {settings['budget']:g} of {whole} bytes is too little; "
                f"the means alone take {least}, a share of {math.ceil(1000 * least / whole) / 1000:g}"
            )
        chosen = allot(offers, most_bytes=max(least, share * whole))
    return {name: point.choice for name, point in zip(names, chosen, strict=True)}


def _fixed(points: Sequence[Point]) -> Point:
    """The basis, or what is nearer and no larger."""
    basis = next((point for point in points if point.choice["kept"] == "basis"), None)
    others = [point for point in points if point is not basis]
    if basis is not None:
        others = [point for point in others if point.nbytes <= basis.nbytes and point.error <= basis.error]
    return min(others, key=lambda point: point.nbytes) if others else basis or points[0]


def _points(core: TensorRef, experts: Sequence[tuple[str, TensorRef]], settings: Settings) -> tuple[list[Point], float]:
    """All ways to keep a tensor, and the squared norm of all experts' changes of it."""
    values = Point(len(experts) * core.nbytes, 0.0, {"kept": "values"})
    if not is_weight(core):
        return [values], 0.0
    changes = [change_of(core, ref, settings["rank"], f"expert {label}") for label, ref in experts]
    width = max(1, *(change.rank for change in changes))
    kinds = [change.dtype for change in changes if change.dtype is not None]
    kind = dtype_of(settings["dtype"]) if settings["dtype"] != "auto" else widest(kinds)
    assert kind is not None
    missed = math.fsum(change.missed for change in changes)
    common = {"width": width, "dtype": kind.torch}
    rows, columns = core.shape[0], core.numel // core.shape[0]
    nbytes = len(experts) * ((rows + columns) * width * kind.size + 4)
    factors = Point(nbytes, missed + _rounding(changes, kind), {"kept": "factors", **common})
    found = [values, factors]
    for p, gauge, lost in _bases(changes, width, kind, settings):
        shared, own = basis_parts(rows, columns, width, p, settings["share"], kind)
        nbytes = sum(part.nbytes for part in shared.values())
        nbytes += len(experts) * sum(part.nbytes for part in own.values())
        choice = {"kept": "basis", **common, "directions": p, "gauge": gauge}
        found.append(Point(nbytes, missed + lost, choice))
    return found, math.fsum(change.square for change in changes)


def _rounding(changes: Sequence[Change], kind: DType) -> float:
    """The squared error of the factors themselves in the type that is stored."""
    import torch

    stored, lost = getattr(torch, kind.torch), 0.0
    for change in changes:
        left, right = (torch.from_numpy(side)[None] for side in (change.left, change.right))
        near = left.to(stored), right.to(stored)
        lost += change.scale**2 * float(product_errors(left.double(), right.double(), *near))
    return lost


def _bases(changes: Sequence[Change], width: int, kind: DType, settings: Settings) -> Iterator[tuple[int, str, float]]:
    """Numbers of directions to choose from, each with the gauge that loses least and what it loses."""
    if len(changes) == 1:
        return  # its mean is itself
    share, wanted = settings["share"], settings["directions"]
    left, right = stacked(changes, width)
    gauges: dict[str, tuple[torch.Tensor, torch.Tensor, list[torch.Tensor], list[Principal]]] = {}
    for gauge in GAUGES if settings["gauge"] == "auto" else (settings["gauge"],):
        a, b = GAUGES[gauge](left, right)
        rows = rows_of(a, b, share)
        gauges[gauge] = a, b, rows, principal_of(rows)
    most = max(most_directions(len(changes), side.shape[2]) for side in rows_of(left, right, share))
    for p in [min(wanted, most)] if wanted else range(most + 1):
        lost = {gauge: _lost(a, b, rows, found, p, kind) for gauge, (a, b, rows, found) in gauges.items()}
        best = min(lost, key=lambda gauge: lost[gauge])
        yield p, best, lost[best]


def _lost(
    a: torch.Tensor, b: torch.Tensor, rows: Sequence[torch.Tensor], found: Sequence[Principal], p: int, kind: DType
) -> float:
    near = []
    for side, directions in zip(rows, found, strict=True):
        mean, kept, coefficients = (part.double() for part in fitted(side, directions, p, kind))
        near.append(mean + (coefficients.transpose(0, 1) @ kept).transpose(0, 1))
    tall, wide = near[0].reshape(a.shape), near[1].reshape(len(b), -1, b.shape[1]).transpose(1, 2)
    return float(product_errors(a, b, tall, wide).sum())
