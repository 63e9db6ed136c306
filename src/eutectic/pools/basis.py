"""The scheme `rmm`: experts that change weights by matrices of low rank, kept in a basis from which each comes back.

Every expert's change of a weight is L R. The rows of L and the columns of R are kept as in `principal.py`, at each
position in the same p directions for all experts: a mean and directions that are shared, coefficients of each expert.
With `share` layer there is one vector of coefficients for the whole of L and one for R. Where a weight's factors
themselves are no larger, or all of its values, those are kept: nothing is ever stored larger than it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eutectic.errors import NonFiniteError
from eutectic.pools.change import Change, change_of, stacked
from eutectic.pools.gauge import GAUGES, turned_to
from eutectic.pools.principal import Principal, coordinates, decompose, rebuild
from eutectic.pools.scheme import Parameter, Part, Parts, Scheme, Span
from eutectic.weights.dtypes import BY_NAME, DType, dtype_of
from eutectic.weights.tensor_ref import TensorRef

if TYPE_CHECKING:
    import torch

    Arrays = dict[str, np.ndarray]
    Settings = Mapping[str, Any]

__all__ = ["RMM", "basis_parts", "fitted", "principal_of", "rows_of"]

SIDES = ("left", "right")


def _parts(shape: tuple[int, ...], dtype: DType, count: int, settings: Settings) -> tuple[Parts, Parts]:
    if settings["kept"] == "values":
        return {}, {"values": Part(dtype, shape)}
    kind = dtype_of(settings["dtype"])
    assert kind is not None
    width = settings["width"]
    rows, columns = shape[0], Span(shape, 0, 0).row
    if settings["kept"] == "factors":
        left, right = Part(kind, (rows, width), "row"), Part(kind, (columns, width), "whole")
        return {}, {"left": left, "right": right, "scale": Part(BY_NAME["F32"], (1,), "whole")}
    return basis_parts(rows, columns, width, settings["directions"], settings["share"], kind)


def basis_parts(rows: int, columns: int, width: int, p: int, share: str, kind: DType) -> tuple[Parts, Parts]:
    """What is stored of a weight [rows, columns] in a basis of p directions of `width` numbers."""
    shared: dict[str, Part] = {}
    own: dict[str, Part] = {}
    for side, positions in zip(SIDES, (rows, columns), strict=True):
        along = "row" if side == "left" else "whole"
        shared[f"{side}_mean"] = Part(kind, (positions, width), along)
        shared[f"{side}_basis"] = Part(kind, (positions, p, width), along)
        own[side] = Part(kind, (positions, p), along) if share == "position" else Part(kind, (p,), "whole")
    return shared, own


def rows_of(left: torch.Tensor, right: torch.Tensor, share: str) -> list[torch.Tensor]:
    """Both factors as experts, positions and numbers [n, P, r]; a factor is one position where a layer shares."""
    sides = [left, right.transpose(1, 2)]
    return sides if share == "position" else [side.reshape(len(side), 1, -1) for side in sides]


def principal_of(rows: Sequence[torch.Tensor]) -> list[Principal]:
    """The principal directions of both factors."""
    return [decompose(side) for side in rows]


def fitted(
    rows: torch.Tensor, found: Principal, p: int, kind: DType
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """μ [P, r], p directions [P, p, r] and coefficients [n, P, p] of rows [n, P, r], as they are after storing."""
    import torch

    stored = getattr(torch, kind.torch)
    p = min(p, found.directions.shape[1])  # a factor of few numbers has fewer
    mean, directions = found.mean.to(stored), found.directions[:, :p].to(stored)
    return mean, directions, coordinates(rows, mean, directions).to(stored)


def _encode(
    span: Span, core: TensorRef, experts: Sequence[TensorRef], settings: Sequence[Settings], totals: Any
) -> tuple[Arrays, list[Arrays]]:
    chosen = settings[0]
    if chosen["kept"] == "values":
        return {}, [_whole_values(expert) for expert in experts]
    changes = [change_of(core, expert, chosen["rank"], expert.name).within(chosen["width"]) for expert in experts]
    if chosen["kept"] == "factors":
        return {}, [_whole_factors(change, chosen["width"]) for change in changes]
    left, right = GAUGES[chosen["gauge"]](*stacked(changes, chosen["width"]))
    kind, p = dtype_of(chosen["dtype"]), chosen["directions"]
    assert kind is not None
    shared: Arrays = {}
    own: list[Arrays] = [{} for _ in experts]
    rows = rows_of(left, right, chosen["share"])
    for side, found, here in zip(SIDES, principal_of(rows), rows, strict=True):
        mean, directions, coefficients = fitted(here, found, p, kind)
        shared |= _shared(side, mean, directions, p, chosen)
        for arrays, one in zip(own, coefficients, strict=True):
            arrays[side] = _padded(one, p).float().numpy().reshape(-1)
    return shared, own


def _shared(side: str, mean: torch.Tensor, directions: torch.Tensor, p: int, chosen: Settings) -> Arrays:
    directions = _padded(directions.transpose(1, 2), p).transpose(1, 2)
    if chosen["share"] == "layer":  # [1, p, P r] to [P, p, r]
        directions = directions.reshape(p, -1, chosen["width"]).transpose(0, 1)
    return {
        f"{side}_mean": mean.float().numpy().reshape(-1),
        f"{side}_basis": directions.float().contiguous().numpy().reshape(-1),
    }


def _padded(values: torch.Tensor, p: int) -> torch.Tensor:
    """The last axis brought to p entries with zeros."""
    import torch

    return torch.nn.functional.pad(values, (0, p - values.shape[-1]))


def _whole_values(expert: TensorRef) -> Arrays:
    values = expert.to_numpy().reshape(-1)
    if not np.isfinite(values).all():
        raise NonFiniteError(f"{expert.name!r} holds NaN or infinity; repair it first")
    return {"values": values}


def _whole_factors(change: Change, width: int) -> Arrays:
    grown = ((0, 0), (0, width - change.rank))
    left, right = np.pad(change.left, grown), np.pad(change.right.T, grown)
    return {"left": left.reshape(-1), "right": right.reshape(-1), "scale": np.array([change.scale], np.float32)}


def _decode(
    span: Span, core: np.ndarray, shared: Mapping[str, np.ndarray], own: Mapping[str, np.ndarray], settings: Settings
) -> np.ndarray:
    if settings["kept"] == "values":
        return own["values"]
    from eutectic.weights.adapter_kernels import add_product

    left, right = (_rebuilt(side, shared, own, settings) for side in SIDES)
    values, scale = core.copy(), own["scale"][0] if settings["kept"] == "factors" else np.float32(1)
    halves, first = np.empty(0, dtype=np.uint16), span.start // span.row
    add_product(halves, values, left, np.ascontiguousarray(right.T), scale, span.start - first * span.row)
    return values


def _rebuilt(
    side: str, shared: Mapping[str, np.ndarray], own: Mapping[str, np.ndarray], settings: Settings
) -> np.ndarray:
    """Rows of L, or columns of R [P, r]."""
    width, p = settings["width"], settings["directions"]
    if settings["kept"] == "factors":
        return own[side].reshape(-1, width)
    mean = shared[f"{side}_mean"].reshape(-1, width)
    coefficients = own[side].reshape(-1, p) if p else own[side].reshape(len(mean), 0)
    if settings["share"] == "layer":
        coefficients = np.broadcast_to(own[side], (len(mean), p))
    return rebuild(mean, shared[f"{side}_basis"].reshape(len(mean), p, width), coefficients)


def _extend(
    span: Span, core: TensorRef, shared: Mapping[str, np.ndarray], expert: TensorRef, settings: Settings, total: Any
) -> Arrays:
    import torch

    if settings["kept"] == "values":
        return _whole_values(expert)
    width, p = settings["width"], settings["directions"]
    change = change_of(core, expert, settings["rank"], expert.name).within(width)
    if settings["kept"] == "factors":
        return _whole_factors(change, width)
    means = [torch.from_numpy(shared[f"{side}_mean"].reshape(-1, width)) for side in SIDES]
    left, right = turned_to(settings["gauge"], *stacked([change], width), torch.cat(means))
    own: Arrays = {}
    for side, mean, rows in zip(SIDES, means, rows_of(left, right, settings["share"]), strict=True):
        directions = torch.from_numpy(shared[f"{side}_basis"]).reshape(len(mean), p, width)
        if settings["share"] == "layer":
            directions = directions.transpose(0, 1).reshape(1, p, -1)
        own[side] = coordinates(rows, mean.reshape(rows.shape[1:]), directions)[0].numpy().reshape(-1)
    return own


def _choose(core: Mapping[str, TensorRef], experts: Any, names: Sequence[str], settings: Settings) -> Any:
    from eutectic.pools.basis_choice import choose

    return choose(core, experts, names, settings)


RMM = Scheme(
    name="rmm",
    summary="Changes of low rank in a basis that all experts share; the natural home of LoRA adapters.",
    reference="Alipour and Amiri 2025, Towards Reversible Model Merging For Low-rank Weights, arXiv 2510.14163",
    parameters={
        "budget": Parameter(
            0.0, "Bytes, as a share of the experts' own factors, spent where they help most; 0: half, or the least "
            "that is possible.",
            least=0.0, most=1.0,
        ),
        "error": Parameter(
            0.0, "In place of a budget: the relative error of all changes together that is allowed.",
            least=0.0, most=1.0,
        ),
        "directions": Parameter(
            0, "In place of both: directions kept at every position, the same number in all layers.",
            least=0, most=1 << 16,
        ),
        "rank": Parameter(16, "Of each change of an expert that is no adapter, at most.", least=1, most=1 << 16),
        "gauge": Parameter(
            "auto", "Factors as they are stored, as singular directions, or those turned towards one another; auto: "
            "what leaves the least error, layer by layer.", choices=("auto", "stored", "balanced", "aligned"),
        ),
        "share": Parameter(
            "position", "What has coefficients of its own: every row of a factor, or the layer's factor as a whole.",
            choices=("position", "layer"),
        ),
        "dtype": Parameter(
            "auto", "Of everything stored; auto: that of the experts' factors.",
            choices=("auto", "float32", "bfloat16", "float16"),
        ),
    },
    parts=_parts,
    encode=_encode,
    decode=_decode,
    encodes="tensor",
    reads="tensors",
    extend=_extend,
    choose=_choose,
)  # fmt: skip
