"""Blame: which part of a merge (an expert, some layers of one) carries a regression, on the same samples throughout.

With v(S) the score of the merge of the parts S, larger being better, N all parts, r the reference, means over samples:

    regression = r - v(N)      effect_i = v(N without i) - v(N)      restored_i = effect_i / regression
    phi_i = sum over S without i of |S|! (|N| - |S| - 1)! / |N|! (v(S with i) - v(S))           (Shapley 1953)

Everything is linear in a sample's score, so each of these has an interval over samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from eutectic.errors import EutecticError, RecipeError
from eutectic.evaluation.ablation import BASE, Ablation
from eutectic.evaluation.statistics import Interval, holm, mean_interval, sign_flips

__all__ = [
    "MOST_EXHAUSTIVE", "Blame", "Effect", "Part", "Regression", "Score", "blame", "effect_of", "leave_one_out",
    "regression", "shapley",
]  # fmt: skip

Score = Callable[[frozenset[str]], np.ndarray]
"""The samples' scores, larger being better, of the merge without some of its parts."""

ALPHA = 0.05
MOST_EXHAUSTIVE = 5  # parts, of 2^5 merges


@dataclass(frozen=True)
class Effect:
    """A mean difference over samples: its interval, its standard error, and a two-sided p."""

    difference: Interval
    stderr: float
    p: float
    n: int

    @property
    def sure(self) -> bool:
        """Whether it is told apart from none: p and the interval both say so."""
        return self.p < ALPHA and not self.difference.low <= 0 <= self.difference.high


@dataclass(frozen=True)
class Part:
    """What one part of a merge does: `effect` of leaving it out (`p` corrected for the number of parts).

    `verdict` is "harms", "helps" or "no evidence", or "not measured", which `reason` explains.
    """

    name: str
    effect: Effect | None
    verdict: str
    reason: str = ""


@dataclass(frozen=True)
class Regression:
    """A merge against its reference on the same samples: `effect` of the reference less the merge."""

    merged: np.ndarray
    reference: np.ndarray
    effect: Effect

    @property
    def found(self) -> bool:
        """Whether the merge is worse, beyond what chance explains."""
        return self.effect.sure and self.effect.difference.value > 0

    def restored(self, effect: float) -> float:
        """An effect as a share of the regression."""
        return effect / self.effect.difference.value


@dataclass(frozen=True)
class Blame:
    """What carries a regression: `experts` left out one by one; `layers` of the `suspect`; `shapley` of the experts.

    The lists are empty where they were not asked for, or where there is no regression.
    """

    regression: Regression
    experts: list[Part]
    suspect: str | None
    layers: list[Part]
    shapley: list[Part]


def regression(case: Ablation, against: str = BASE) -> Regression:
    """Measure a merge and its reference."""
    reference = case.reference(against)  # first: a name that is wrong shows before anything is measured
    merged = case.whole()
    return Regression(merged, reference, effect_of(reference - merged, "regression"))


def blame(
    case: Ablation, against: str = BASE, *, expert: str | None = None, layers: bool = True, exhaustive: bool = False
) -> Blame:
    """Find the expert, and of it the layers, that carry a merge's regression; only two merges where there is none.

    Args:
        against: "base", an expert's name, or any other subject of an evaluation.
        expert: whose layers are looked at; None: the most harmful one's, if one harms.
        layers: whether layers are looked at. exhaustive: whether Shapley values are calculated.

    Raises:
        RecipeError: there is no such expert, or there are too many for all subsets.
        SourceError: the merge or its reference cannot be measured.
    """
    suspect = None if expert is None else case.expert(expert)
    if exhaustive and len(case.experts) > MOST_EXHAUSTIVE:
        raise _too_many(len(case.experts))
    found = regression(case, against)
    if not found.found:
        return Blame(found, [], None, [], [])
    experts = leave_one_out(case.experts, found.merged, case.without)
    values = shapley(case.experts, case.without) if exhaustive else []
    if suspect is None and experts[0].verdict == "harms":
        suspect = experts[0].name
    of_layers = []
    if layers and suspect is not None:
        chosen = suspect
        of_layers = leave_one_out([*case.depths], found.merged, lambda gone: case.without_layers(chosen, gone))
    return Blame(found, experts, suspect, of_layers, values)


def effect_of(difference: np.ndarray, name: str = "effect") -> Effect:
    """The mean of paired differences, with its 95% bootstrap interval and the p of random signs.

    >>> effect_of(np.ones(50) + np.arange(50) % 2).sure, effect_of(np.arange(-25, 26.0)).sure
    (True, False)
    """
    n = len(difference)
    stderr = float(difference.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Effect(mean_interval(difference, name=name), stderr, sign_flips(difference, name=name), n)


def leave_one_out(parts: Sequence[str], merged: np.ndarray, score: Score) -> list[Part]:
    """Each part's effect, the most harmful first; what could not be measured comes last."""
    effects: dict[str, Effect] = {}
    reasons: dict[str, str] = {}
    for name in parts:
        try:
            effects[name] = effect_of(score(frozenset([name])) - merged, name)
        except EutecticError as error:  # a merge that its method refuses, say: the other parts are still told
            reasons[name] = str(error)
    found = _judged(effects, harmful=1)
    return [*found, *(Part(name, None, "not measured", reason) for name, reason in reasons.items())]


def shapley(parts: Sequence[str], score: Score) -> list[Part]:
    """Each part's Shapley value: what it adds to the score, averaged over all orders of adding them; the worst first.

    The values sum up to the score of all parts less that of none. 2^N merges.

    Raises:
        RecipeError: there are more than `MOST_EXHAUSTIVE` parts.
    """
    count = len(parts)
    if count > MOST_EXHAUSTIVE:
        raise _too_many(count)
    subsets = [frozenset(some) for size in range(count + 1) for some in combinations(parts, size)]
    values = {kept: score(frozenset(parts) - kept) for kept in subsets}
    effects = {}
    for name in parts:
        total = np.zeros_like(values[frozenset()])
        for kept in (subset for subset in subsets if name not in subset):
            share = 1 / (count * math.comb(count - 1, len(kept)))
            total = total + share * (values[kept | {name}] - values[kept])
        effects[name] = effect_of(total, name)
    return _judged(effects, harmful=-1)


def _judged(effects: dict[str, Effect], harmful: int) -> list[Part]:
    """Effects with corrected p, sorted; `harmful` is the sign of those that speak against a part."""
    corrected = dict(zip(effects, holm([effect.p for effect in effects.values()]), strict=True))
    found = []
    for name, effect in effects.items():
        judged = Effect(effect.difference, effect.stderr, corrected[name], effect.n)
        against = harmful * judged.difference.value > 0
        found.append(Part(name, judged, ("harms" if against else "helps") if judged.sure else "no evidence"))
    return sorted(found, key=lambda part: -harmful * part.effect.difference.value if part.effect else 0.0)


def _too_many(count: int) -> RecipeError:
    return RecipeError(
        f"all subsets of {count} experts are {2**count} merges; this is done for up to {MOST_EXHAUSTIVE} experts"
    )
