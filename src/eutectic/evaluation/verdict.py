"""The verdict of a trace in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

from eutectic.evaluation.coefficients import Fit
from eutectic.evaluation.trace import NEGLIGIBLE, Part, Trace

__all__ = ["changes_by_layer", "runs_of", "verdict"]


def verdict(found: Trace) -> str:
    """What `trace` found, in words."""
    if found.equal_to:
        return f"equal to {' and to '.join(found.equal_to)}"
    if found.kind == "linear":
        return _linear(found, found.whole)
    if found.kind == "linear_by_layer":
        return (
            f"linear per layer, with coefficients that change over the layers ({changes_by_layer(found)}): "
            f"{_ranges(found, found.layers)}"
        )
    if found.kind == "linear_by_tensor":
        how = "coefficients that change from tensor to tensor"
        if found.slerp:
            low, high = (f"{t:.3f}" for t in found.slerp)
            how += f", as slerp makes them (t = {low if low == high else f'{low} to {high}'})"
        return f"not one linear merge: linear per tensor, with {how}: {_ranges(found, found.tensors)}"
    inside = sum(part.explained for part in found.tensors)
    alone = f"; {inside} of {len(found.tensors)} tensors are linear on their own" if inside else ""
    return (
        f"not linear in these candidates: the best coefficients leave {found.whole.over_rounding:,.1f} times what "
        f"rounding explains, and {found.whole.residual:.1%} of the change{alone}"
    )


def changes_by_layer(found: Trace) -> str:
    """How coefficients change over the layers: ``slices`` (each part is one candidate), ``steps`` or ``gradient``."""
    known = [part.fit.coefficients for part in found.layers if None not in part.fit.coefficients]
    if all(abs(max(c or 0.0 for c in cs) - 1) < 1e-2 and sum(abs(c or 0.0) > 1e-2 for c in cs) == 1 for cs in known):
        return "slices"
    runs = runs_of(found.layers)
    return "steps" if len(runs) * 2 <= len(found.layers) and len(found.layers) > 2 else "gradient"


def runs_of(parts: Sequence[Part]) -> list[list[Part]]:
    """Neighbours of one stack of layers with the same coefficients."""
    runs: list[list[Part]] = []
    for part in parts:
        last = runs[-1][-1] if runs else None
        if last and _stack(last) == _stack(part) != "" and not runs[-1][0].fit.differ(part.fit):
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs


def _stack(part: Part) -> str:
    """What stands before a layer's number; empty for a part that is one tensor without a number."""
    return part.label.rpartition(".")[0] if part.label not in part.tensors else ""


def _linear(found: Trace, fit: Fit) -> str:
    weights = _weights(found, fit)
    own = fit.coefficients[0]
    if found.based and not fit.free and (own is None or abs(own) > NEGLIGIBLE):
        return f"task arithmetic on {found.candidates[0]} with weights {_weights(found, fit, skip=0)}"
    sentence = f"linear merge with weights {weights}"
    if fit.free:
        total = sum(c for c in fit.coefficients if c is not None)
        sentence += f", not normalised (their sum is {total:.4f})"
    negative = [n for n, c in zip(found.candidates, fit.coefficients, strict=True) if c is not None and c < -NEGLIGIBLE]
    if not found.based and len(negative) == 1:
        sentence += f"; the same as task arithmetic on {negative[0]}"
    return sentence


def _weights(found: Trace, fit: Fit, skip: int | None = None) -> str:
    shown = [
        f"{name} {value:.4f}"
        for i, (name, value) in enumerate(zip(found.candidates, fit.coefficients, strict=True))
        if value is not None and name in found.parents and i != skip
    ]
    for group in fit.together:
        members = " or ".join(found.candidates[i] for i in group.members)
        if group.total is None:
            shown.append(f"{members} (not identified)")
        elif abs(group.total) > NEGLIGIBLE:
            shown.append(f"{members} together {group.total:.4f}")
    return ", ".join(shown) or "that are all negligible"


def _ranges(found: Trace, parts: Sequence[Part]) -> str:
    shown = []
    for i, name in enumerate(found.candidates):
        values = [c for part in parts if (c := part.fit.coefficients[i]) is not None]
        if values and name in found.parents:
            shown.append(f"{name} {min(values):.4f} to {max(values):.4f}")
    return ", ".join(shown) or "none of them identified"
