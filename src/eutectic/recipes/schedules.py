"""Weights of a run's checkpoints: from a metric (power, exp, rank) or from their place in the run.

Each function returns K weights >= 0 that sum to 1, in the order of what it was given; p = 0 gives 1/K exactly.
Metrics-weighted averaging (Yu and Choi 2025, arXiv 2504.18580) has one penalty factor p for any K: 0 is the plain
average, a large p the best checkpoint. The three forms are ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from eutectic.errors import RecipeError, nearest

__all__ = [
    "FORMS", "SCHEDULES", "cosine_weights", "ema_weights", "exp_weights", "last_weights", "lower_is_better",
    "metric_weights", "power_weights", "rank_weights", "schedule_weights", "step_weights", "uniform_weights",
]  # fmt: skip

SCHEDULES = ("uniform", "last", "ema", "cosine", "step")
_LOWER_PARTS = ("loss", "perplexity", "error")
_LOWER_WORDS = {"ppl", "nll", "bpb", "wer", "cer", "mse", "rmse", "mae"}


def lower_is_better(metric: str) -> bool:
    """Whether a metric of this name is one to be low: a loss, a perplexity, an error or a known short name of one.

    >>> lower_is_better("eval_loss"), lower_is_better("eval_wer"), lower_is_better("eval_accuracy")
    (True, True, False)
    """
    name = metric.lower()
    return any(part in name for part in _LOWER_PARTS) or bool(_LOWER_WORDS & set(re.split(r"[^a-z]+", name)))


def metric_weights(values: Sequence[float], *, form: str = "power", p: float = 1.0, lower: bool = True) -> list[float]:
    """Weights by a metric, form by name; a value that is not finite gets the weight 0.

    Args:
        values: the metric of each checkpoint. form: power, exp or rank. p: the penalty factor, >= 0.
        lower: whether low values are good.

    Raises:
        RecipeError: no such form, no finite value, or values that the form does not take.

    >>> metric_weights([1.0, 0.5, float("nan")])
    [0.3333333333333333, 0.6666666666666666, 0.0]
    """
    if form not in FORMS:
        raise RecipeError(f"there is no form {form!r} of weights; choose {', '.join(FORMS)}{nearest(form, FORMS)}")
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        raise RecipeError(f"none of the {len(values)} values of the metric is finite; there is nothing to weigh by")
    weights = iter(FORMS[form](finite, p=p, lower=lower))
    return [next(weights) if math.isfinite(value) else 0.0 for value in values]


def power_weights(values: Sequence[float], *, p: float = 1.0, lower: bool = True) -> list[float]:
    """w_i = s_i^p / Σ s_j^p with the score s = 1 / value where low values are good, else s = value.

    >>> power_weights([2.0, 1.0], p=2)
    [0.2, 0.8]
    """
    _check_factor(p)
    bad = min(values)
    if bad < 0 or (lower and bad == 0):
        wanted = "values above zero" if lower else "no negative values"
        raise RecipeError(f"the form power takes {wanted}, and one is {bad:g}; the forms exp and rank take any")
    if p == 0:
        return uniform_weights(len(values))
    if max(values) == 0:
        raise RecipeError("the form power has no weights where all values are zero; choose the form rank")
    best = bad if lower else max(values)
    return _normalised([(best / value if lower else value / best) ** p for value in values])


def exp_weights(values: Sequence[float], *, p: float = 1.0, lower: bool = True) -> list[float]:
    """w_i = exp(-p v_i) / Σ exp(-p v_j) where low values v are good, else exp(p v_i); taken relative to the best.

    >>> [round(w, 3) for w in exp_weights([1.0, 2.0])]
    [0.731, 0.269]
    """
    _check_factor(p)
    if p == 0:
        return uniform_weights(len(values))
    best = min(values) if lower else max(values)
    return _normalised([math.exp(-p * abs(value - best)) for value in values])


def rank_weights(values: Sequence[float], *, p: float = 1.0, lower: bool = True) -> list[float]:
    """w_i = r_i^p / Σ r_j^p with the rank r = K of the best to 1 of the worst; equals share their mean rank.

    >>> rank_weights([0.9, 0.4, 0.1], lower=False)
    [0.5, 0.3333333333333333, 0.16666666666666666]
    """
    _check_factor(p)
    scores = [-value if lower else value for value in values]
    ranks = [sum(other < score for other in scores) + (scores.count(score) + 1) / 2 for score in scores]
    return _normalised([(rank / max(ranks)) ** p for rank in ranks])


FORMS: dict[str, Callable[..., list[float]]] = {
    "power": power_weights,
    "exp": exp_weights,
    "rank": rank_weights,
}


def schedule_weights(
    schedule: str, steps: Sequence[int | None], *, k: int = 1, decay: float = 0.9, p: float = 1.0
) -> list[float]:
    """Weights by the place in the run, schedule by name; k is of last, decay of ema, p of step.

    Args:
        schedule: one of `SCHEDULES`. steps: of the checkpoints, oldest first; the schedule step needs to know them.

    >>> schedule_weights("last", [None, None], k=1)
    [0.0, 1.0]
    """
    count = len(steps)
    if schedule == "step":
        known = [step for step in steps if step is not None]
        if len(known) < count:
            raise RecipeError(
                "the schedule step needs the step of every checkpoint; name the folders checkpoint-<step>"
            )
        return step_weights(known, p=p)
    if schedule == "uniform":
        return uniform_weights(count)
    if schedule == "last":
        return last_weights(count, k=k)
    if schedule == "ema":
        return ema_weights(count, decay=decay)
    if schedule == "cosine":
        return cosine_weights(count)
    raise RecipeError(f"there is no schedule {schedule!r}; choose {', '.join(SCHEDULES)}{nearest(schedule, SCHEDULES)}")


def step_weights(steps: Sequence[int], *, p: float = 1.0) -> list[float]:
    """w_i = t_i^p / Σ t_j^p with t the training step: the later, the more.

    >>> step_weights([100, 300])
    [0.25, 0.75]
    """
    if p > 0 and max(steps) == 0:
        raise RecipeError("all steps are 0; the schedule step needs later ones")
    return power_weights(steps, p=p, lower=False)


def uniform_weights(count: int) -> list[float]:
    """w_i = 1/K: the plain average. To first order it stands for a learning rate that falls linearly to 0."""
    return [1 / count] * count


def last_weights(count: int, *, k: int) -> list[float]:
    """w_i = 1/k for the last k of K checkpoints, else 0 (LAWA, Kaddour 2022).

    >>> last_weights(4, k=2)
    [0.0, 0.0, 0.5, 0.5]
    """
    if not 1 <= k <= count:
        raise RecipeError(f"k is {k}, and there are {count} checkpoints; choose k from 1 to {count}")
    return [0.0] * (count - k) + [1 / k] * k


def ema_weights(count: int, *, decay: float) -> list[float]:
    """w_i = β^(K-i) / Σ_j β^(K-j), i = 1 ... K: a moving average without the bias of its first value.

    β = 0 is the last checkpoint, β = 1 the plain average. The method `ema` starts from the first checkpoint instead.

    >>> [round(w, 3) for w in ema_weights(3, decay=0.5)]
    [0.143, 0.286, 0.571]
    """
    if not 0 <= decay <= 1:
        raise RecipeError(f"decay is {decay:g}; choose it from 0 (the last checkpoint) to 1 (the plain average)")
    return _normalised([decay**age for age in reversed(range(count))])


def cosine_weights(count: int) -> list[float]:
    """w_i = (cos(π (i-1) / K) - cos(π i / K)) / 2, i = 1 ... K: most in the middle, least at both ends.

    What was learned between two checkpoints counts with the weight of all later ones, W_i = (1 + cos(π i / K)) / 2: to
    first order the average stands for a learning rate that falls by a cosine (Tian et al. 2025, arXiv 2507.17634).

    >>> [round(w, 3) for w in cosine_weights(4)]
    [0.146, 0.354, 0.354, 0.146]
    """
    sines = [math.sin(math.pi * (2 * i + 1) / (2 * count)) for i in range(count)]  # the difference, as a product
    return _normalised(sines)


def _check_factor(p: float) -> None:
    if not (math.isfinite(p) and p >= 0):
        raise RecipeError(f"p is {p:g}; choose a finite number from 0 (the plain average) up")


def _normalised(weights: Sequence[float]) -> list[float]:
    """Over an exactly rounded sum: the order of the checkpoints changes no bit."""
    total = math.fsum(weights)
    return [weight / total for weight in weights]
