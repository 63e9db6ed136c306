"""MergeBench's protocol (He et al. 2025) on families of one's own: multi-task score, forgetting, run time, memory.

Every method's scale is tuned on validation over the same grid; all are reported once, on test, beside the base, the
experts, an output ensemble, a greedy soup and joint training at equal compute.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from eutectic.evaluation.studies.baselines import baselines, count_baselines
from eutectic.evaluation.studies.bench import Bench, Measured, Report
from eutectic.evaluation.studies.candidates import Candidate

__all__ = ["measure_family"]


def measure_family(bench: Bench, methods: Sequence[Candidate], grid: Sequence[float], report: Report) -> list[Measured]:
    """The baselines and every method on one family."""
    found: list[Measured] = []
    total = count_baselines(bench.family) + len(methods)
    for measured in itertools.chain(baselines(bench), (bench.method(candidate, grid) for candidate in methods)):
        found.append(measured)
        scale = "" if measured.tuning is None else f" at scale {measured.tuning.scale:g}"
        report(f"{bench.family.path.name}: {len(found)} of {total}: {measured.label}{scale}")
    return found
