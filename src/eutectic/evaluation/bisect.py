"""Bisection of a regression: the run of layers that carries it, or the expert with which it begins.

With f(a, b) the share of a regression that is restored by leaving out the parts a to b - 1 of n, and a wanted share s:

    b* = min{b : f(0, b) >= s}      a* = max{a : f(a, b*) >= s}

by halving, which assumes that leaving out more never restores less; the run that is found has itself been measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from eutectic.errors import RecipeError
from eutectic.evaluation.ablation import BASE, Ablation
from eutectic.evaluation.blame import Effect, Regression, effect_of, regression

__all__ = [
    "First", "OfExperts", "OfLayers", "Probe", "Run", "bisect_experts", "bisect_first", "bisect_layers", "bisect_run",
]  # fmt: skip

TIE = 1e-9  # shares are quotients of sums


@dataclass(frozen=True)
class Probe:
    """One measurement: the places of the parts that were left out, and the share of the regression restored."""

    removed: frozenset[int]
    restored: float


@dataclass(frozen=True)
class Run:
    """The parts `start` to `stop` (not included), what leaving them out restores, and what leaving out the rest does.

    `verdict`: "found"; "elsewhere", where leaving out all parts restores too little; "spread", where no run of half of
    the parts is enough, or the parts outside of the run would do as well.
    """

    verdict: str
    start: int
    stop: int
    restored: float
    rest: float
    probes: tuple[Probe, ...]


@dataclass(frozen=True)
class First:
    """With which of the parts, added in order, a regression begins.

    `verdict`: "found", then `at` is its place; "never"; "before", where the fewest parts regress already. `probes`:
    every (number of parts, whether they regress) that was measured.
    """

    verdict: str
    at: int
    probes: tuple[tuple[int, bool], ...]


@dataclass(frozen=True)
class OfLayers:
    """The run of one expert's layers that carries a regression; None, with `effect`, where there is no regression.

    `effect`: of leaving the run out.
    """

    regression: Regression
    expert: str
    layers: tuple[str, ...]
    run: Run | None
    effect: Effect | None


@dataclass(frozen=True)
class OfExperts:
    """The expert with which a regression begins as experts are added in the recipe's order.

    `shortfalls`: by the number of experts, what each merge lacks against the reference. `effect`: of leaving out the
    expert that was found, and none other. None where there is no regression.
    """

    regression: Regression
    experts: tuple[str, ...]
    first: First | None
    shortfalls: dict[int, float]
    effect: Effect | None


def bisect_layers(case: Ablation, expert: str, against: str = BASE, share: float = 0.5) -> OfLayers:
    """Find the run of an expert's layers without which a share of the regression is gone.

    Raises:
        RecipeError: there is no such expert. SourceError: a merge cannot be measured.
    """
    case.expert(expert)
    _check(share)
    found, layers = regression(case, against), tuple(case.depths)
    if not found.found:
        return OfLayers(found, expert, layers, None, None)

    def without(places: Iterable[int]) -> Effect:
        return effect_of(case.without_layers(expert, [layers[at] for at in places]) - found.merged, "run")

    run = bisect_run(len(layers), lambda places: found.restored(without(places).difference.value), share)
    return OfLayers(found, expert, layers, run, without(range(run.start, run.stop)))


def bisect_experts(case: Ablation, against: str = BASE, share: float = 0.5) -> OfExperts:
    """Find the expert with which the merge of the first k experts lacks a share of what the whole merge lacks.

    Raises:
        SourceError: a merge cannot be measured.
    """
    _check(share)
    found, experts = regression(case, against), case.experts
    if not found.found:
        return OfExperts(found, experts, None, {}, None)
    shortfalls: dict[int, float] = {}

    def regressed(k: int) -> bool:
        scores = found.merged if k == len(experts) else case.without(experts[k:])
        shortfalls[k] = float((found.reference - scores).mean())
        return found.restored(shortfalls[k]) >= share - TIE

    first = bisect_first(len(experts), regressed, fewest=0 if case.recipe.base_model is not None else 1)
    gone = [experts[first.at]] if first.verdict == "found" else []
    effect = effect_of(case.without(gone) - found.merged, "expert") if gone else None
    return OfExperts(found, experts, first, dict(sorted(shortfalls.items())), effect)


def _check(share: float) -> None:
    if not 0 < share <= 1:
        raise RecipeError(f"the share of the regression must lie above 0 and be at most 1, not {share:g}")


def bisect_run(count: int, restored: Callable[[frozenset[int]], float], share: float = 0.5) -> Run:
    """The run of parts that restores a share of the regression, by at most 2 log2(count) + 4 measurements.

    Args:
        count: of parts. restored: the share that is restored without the parts at these places. share: wanted.

    >>> found = bisect_run(12, lambda removed: 0.9 * (7 in removed))
    >>> found.verdict, found.start, found.stop, len(found.probes)
    ('found', 7, 8, 9)
    """
    known: dict[frozenset[int], float] = {}

    def measure(places: Iterable[int]) -> float:
        removed = frozenset(places)
        if removed not in known:
            known[removed] = restored(removed)
        return known[removed]

    def enough(start: int, stop: int) -> bool:
        return measure(range(start, stop)) >= share - TIE

    def found(verdict: str, start: int, stop: int, rest: float) -> Run:
        probes = tuple(Probe(removed, value) for removed, value in known.items())
        return Run(verdict, start, stop, measure(range(start, stop)), rest, probes)

    if not enough(0, count):
        return found("elsewhere", 0, count, 0.0)
    stop = _least(0, count, lambda end: enough(0, end))
    start = stop - _least(0, stop, lambda width: enough(stop - width, stop))
    others = frozenset(range(count)) - frozenset(range(start, stop))
    rest = measure(others) if others else 0.0
    narrow = stop - start <= max(1, count // 2)
    return found("found" if narrow and rest < share - TIE else "spread", start, stop, rest)


def bisect_first(count: int, regressed: Callable[[int], bool], fewest: int = 0) -> First:
    """The part with which a regression begins, by about log2(count) + 2 measurements.

    Args:
        count: of parts. regressed: whether the first k parts regress, of which k = `fewest` is the least that can be
            measured. Once regressed, more parts are assumed not to mend it.

    >>> bisect_first(10, lambda k: k > 6).at
    6
    """
    probes: dict[int, bool] = {}

    def bad(k: int) -> bool:
        if k not in probes:
            probes[k] = regressed(k)
        return probes[k]

    if not bad(count):
        verdict, at = "never", count
    elif bad(fewest):
        verdict, at = "before", fewest
    else:
        verdict, at = "found", _least(fewest, count, bad) - 1
    return First(verdict, at, tuple(sorted(probes.items())))


def _least(fails: int, holds: int, test: Callable[[int], bool]) -> int:
    """The least number for which a test holds that holds from there on, known to fail and to hold at two numbers."""
    while holds - fails > 1:
        middle = (fails + holds) // 2
        fails, holds = (fails, middle) if test(middle) else (middle, holds)
    return holds
