"""What a checkpoint was merged from: the coefficients of candidate parents, and whether a linear merge explains it.

    c = sum_i a_i p_i        fitted over the whole model, then layer by layer, then tensor by tensor, each first with
                             sum_i a_i = 1 and then with a free sum; the first that rounding explains is the verdict

With a base among the candidates sum_i a_i = 1 is no restriction on task arithmetic: the base's own coefficient is one
less the weights of the others. All tensors are read once, together, in bounded memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from eutectic.errors import SourceError, nearest
from eutectic.evaluation.coefficients import Fit, explained, fit
from eutectic.evaluation.distance import comparable
from eutectic.evaluation.gram import Sums, sum_tensor
from eutectic.weights.checkpoint import Checkpoint
from eutectic.weights.layers import layer_of

__all__ = ["NEGLIGIBLE", "Part", "Trace", "trace"]

NEGLIGIBLE = 1e-3  # coefficients up to this, or up to three standard errors, count as no part
LEANING = 0.05  # and up to this or five, where the merge was not linear: what it leaves leans on any candidate a little
MOST_SHOWN = 6


@dataclass(frozen=True)
class Part:
    """One set of coefficients: of a layer, or of a tensor. `explained`: rounding explains what it leaves."""

    label: str
    tensors: tuple[str, ...]
    fit: Fit
    explained: bool


@dataclass(frozen=True)
class Trace:
    """What `trace` found. `candidates` are in order, the reference (the base, if `based`) first.

    `kind` is the verdict: ``equal`` (to `equal_to`), ``linear`` (one set of coefficients), ``linear_by_layer``,
    ``linear_by_tensor`` or ``not_linear``; `free` tells whether the coefficients' sum had to be free. `whole` is the
    fit over all tensors, `layers` and `tensors` those of the parts, layers by number; `shares` the share of elements
    that equal each candidate's; `skipped` names what was not compared, with the reason.
    """

    candidates: tuple[str, ...]
    based: bool
    kind: str
    free: bool
    equal_to: tuple[str, ...]
    whole: Fit
    layers: tuple[Part, ...]
    tensors: tuple[Part, ...]
    shares: tuple[float, ...]
    elements: int
    nonfinite: int
    skipped: Mapping[str, str]
    slerp: tuple[float, float] | None  # least and greatest t, where every tensor is a slerp of the two candidates

    @cached_property
    def parts(self) -> tuple[Fit, ...]:
        """The fits that the verdict rests on."""
        parts = {"linear_by_layer": self.layers, "linear_by_tensor": self.tensors}.get(self.kind, ())
        return tuple(part.fit for part in parts) or (self.whole,)

    @cached_property
    def parents(self) -> tuple[str, ...]:
        """Candidates with a part in the checkpoint: coefficients that are not negligible.

        Where the merge was not linear, only what is far from zero counts. Of candidates that cannot be told apart all
        are named, if their sum is not negligible or not known.
        """
        if self.equal_to:
            return self.equal_to
        return tuple(name for i, name in enumerate(self.candidates) if any(self._takes_part(f, i) for f in self.parts))

    def _takes_part(self, found: Fit, i: int) -> bool:
        least, errors = (LEANING, 5) if self.kind == "not_linear" else (NEGLIGIBLE, 3)
        value, error = found.coefficients[i], found.errors[i]
        if value is not None:
            return abs(value) > max(least, errors * (error or 0.0))
        return any(i in t.members and (t.total is None or abs(t.total) > least) for t in found.together)


def trace(
    checkpoint: Checkpoint,
    candidates: Mapping[str, Checkpoint],
    *,
    base: str | None = None,
    report: Callable[[int], None] | None = None,
) -> Trace:
    """Estimate how `checkpoint` was made from `candidates`, which are named as the result shall name them.

    Args:
        base: the name of the candidate that the others were trained from (default: none is known; differences are
            then taken from the first). It decides the words, and the digits where fine-tunes are close; not the fit.
        report: called with the number of the checkpoint's bytes done since the last call (for a progress bar).

    Raises:
        SourceError: no candidate, `base` is none of them, or no tensor of floats that all of them have.

    >>> import numpy, tempfile
    >>> from eutectic.weights.checkpoint import open_checkpoint
    >>> from eutectic.weights.safetensors import write_safetensors
    >>> folder, random = tempfile.mkdtemp(), numpy.random.default_rng(0)
    >>> a, b = random.standard_normal((2, 99))
    >>> for name, values in {"a": a, "b": b, "merged": 0.25 * a + 0.75 * b}.items():
    ...     write_safetensors(f"{folder}/{name}.safetensors", {"w": values})
    >>> open_ = lambda name: open_checkpoint(f"{folder}/{name}.safetensors")
    >>> found = trace(open_("merged"), {"a": open_("a"), "b": open_("b")})
    >>> found.kind, [round(c, 6) for c in found.whole.coefficients]
    ('linear', [0.25, 0.75])
    """
    if not candidates:
        raise SourceError("no candidate parents; name at least one")
    if base is not None and base not in candidates:
        raise SourceError(f"the base {base!r} is none of the candidates{nearest(base, candidates)}")
    names = sorted(candidates, key=lambda name: name != base)  # stable: the base comes first, the others as given
    models = [candidates[name] for name in names]
    sums: list[Sums] = []
    skipped: dict[str, str] = {}
    for name, tensor in checkpoint.items():
        reason = _unfit(name, checkpoint, names, models)
        if reason is None and tensor.numel:
            sums.append(sum_tensor(tensor, [model[name] for model in models], report))
            continue
        skipped[name] = reason or "it is empty"
        if report:
            report(tensor.nbytes)
    if not any(t.elements for t in sums):
        shown = "".join(f"\n  - {name}: {why}" for name, why in list(skipped.items())[:MOST_SHOWN])
        raise SourceError(f"nothing to trace: no tensor of floats is in the checkpoint and all candidates{shown}")
    return _judge(tuple(names), base is not None, [t for t in sums if t.elements], skipped)


def _unfit(name: str, checkpoint: Checkpoint, names: Sequence[str], models: Sequence[Checkpoint]) -> str | None:
    """Why a tensor cannot be fitted; None if it can."""
    tensor = checkpoint[name]
    lacking = [label for label, model in zip(names, models, strict=True) if name not in model]
    if lacking:
        return f"not in {', '.join(lacking)}"
    for label, model in zip(names, models, strict=True):
        if model[name].shape != tensor.shape:
            return f"{list(tensor.shape)}, in {label} {list(model[name].shape)}"
        if not tensor.dtype.floating or not comparable("F64", tensor.dtype.name):
            return f"{tensor.dtype}: no floating-point numbers with known values"
        if not comparable("F64", model[name].dtype.name):
            return f"in {label} {model[name].dtype}: no floating-point numbers with known values"
    return None


# ---------------------------------------------------------------- the verdict


def _in_order(sums: Sequence[Sums]) -> list[Sums]:
    """In file order, but the layers of a stack by their numbers: files often hold layer 10 before layer 2."""
    first: dict[str, int] = {}

    def place(at: int) -> tuple[int, int, int]:
        found = layer_of(sums[at].name)
        return first.setdefault(found.stack if found else sums[at].name, at), found.number if found else 0, at

    return [sums[at] for at in sorted(range(len(sums)), key=place)]


def _judge(names: tuple[str, ...], based: bool, sums: Sequence[Sums], skipped: Mapping[str, str]) -> Trace:
    sums = _in_order(sums)
    layers: dict[str, list[Sums]] = {}
    for t in sums:
        found = layer_of(t.name)
        layers.setdefault(t.name if found is None else f"{found.stack}{found.number}", []).append(t)
    levels = {
        "linear": [("whole model", list(sums))],
        "linear_by_layer": list(layers.items()),
        "linear_by_tensor": [(t.name, [t]) for t in sums],
    }
    kind, free = next(
        (
            (kind, free)
            for kind, groups in levels.items()
            for free in (False, True)
            if all(_parts(groups, free, stop=True))
        ),
        ("not_linear", False),
    )
    elements = sum(t.elements for t in sums)
    differing = np.sum([t.differing for t in sums], axis=0)
    counted = elements + sum(t.nonfinite for t in sums)
    tensors = tuple(part for part in _parts(levels["linear_by_tensor"], free) if part)
    return Trace(
        names,
        based,
        "equal" if not differing.all() else kind,
        free,
        tuple(name for name, count in zip(names, differing, strict=True) if not count),
        fit(sums, free=free),
        tuple(part for part in _parts(levels["linear_by_layer"], free) if part),
        tensors,
        tuple(float(1 - count / counted) for count in differing),
        elements,
        counted - elements,
        skipped,
        _slerp(sums, tensors) if kind == "linear_by_tensor" and len(names) == 2 else None,
    )


def _parts(groups: Sequence[tuple[str, list[Sums]]], free: bool, *, stop: bool = False) -> Iterator[Part | None]:
    """The fit of each group; with `stop`, None in place of those that rounding does not explain."""
    for label, sums in groups:
        found = fit(sums, free=free)
        fine = all(explained(_over_rounding(t, found.solution), t.elements) for t in sums)
        yield Part(label, tuple(t.name for t in sums), found, fine) if fine or not stop else None


def _over_rounding(t: Sums, solution: np.ndarray) -> float:
    left = t.left(solution)
    return math.sqrt(left / t.rounding) if t.rounding else math.inf if left else 0.0


def _slerp(sums: Sequence[Sums], tensors: Sequence[Part]) -> tuple[float, float] | None:
    """The range of t if every tensor is a slerp of the two candidates (Shoemake 1985), else None.

    a_0 = sin((1 - t) w) / sin w and a_1 = sin(t w) / sin w, with w the angle between the candidates, are the points of
    (a_0 + a_1 cos w)^2 + (a_1 sin w)^2 = 1 at the angle t w. Where w is small that is a_0 + a_1 = 1.
    """
    found = []
    for t, part in zip(sums, tensors, strict=True):
        (a, b), w = part.fit.coefficients, t.angle
        if a is None or b is None or part.fit.spare < 1:
            continue
        slack = max(NEGLIGIBLE, 4 * max(error or 0.0 for error in part.fit.errors))
        if w is None or abs(math.hypot(a + b * math.cos(w), b * math.sin(w)) - 1) > slack:
            return None
        found.append(math.atan2(b * math.sin(w), a + b * math.cos(w)) / w if w > 1e-6 else b)
    return (min(found), max(found)) if found else None
