"""The merge methods that studies compare, as data: a recipe with one number left open, the scale of the merged change.

Scales are in units of the mean change: g = 1 stands for the average of the experts' changes, g = K for their sum.
Every method is given the same grid of scales, and `default` is the scale at which it is used untuned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from eutectic.methods import get_method, list_methods

__all__ = ["CANDIDATES", "FULL_GRID", "QUICK_GRID", "Candidate", "candidates"]

QUICK_GRID = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
FULL_GRID = (0.125, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class Candidate:
    """A method as it takes part.

    `knob` says how its change is scaled: ``sum`` (lambda = g / K), ``mean`` (lambda = g), or ``outside`` (the merged
    model's own change is scaled, by a task_arithmetic around it; where no lambda of the method's does that). `default`
    is the untuned scale; None: g = K (lambda 1 of a sum).

    `learned`: the weights are learned on unlabelled training data, one for each source or tensor, in place of a scale.
    `through_merged`: statistics are of what the layers merged before send into a layer.
    """

    method: str
    label: str
    knob: Literal["sum", "mean", "outside"]
    parameters: Mapping[str, Any]
    default: float | None = 1.0
    needs: Literal["nothing", "unlabelled", "labelled"] = "nothing"
    name: str = ""
    learned: Literal["", "source", "tensor"] = ""
    through_merged: bool = False

    @property
    def id(self) -> str:
        """Its own name, or the method's."""
        return self.name or self.method

    def grid(self, scales: Sequence[float]) -> Sequence[float]:
        """The scales that are tried: none but 1 where the weights are learned."""
        return (1.0,) if self.learned else scales

    def scale(self, experts: int) -> float:
        """The untuned scale for so many experts."""
        return float(experts) if self.default is None else self.default

    def recipe(self, base: str, experts: Sequence[Any], scale: float, seed: int = 0) -> dict[str, Any]:
        """The recipe for these experts (paths, recipes within the recipe, or sources with statistics) at a scale."""
        method = get_method(self.method)
        lambdas = {"sum": {"lambda": scale / len(experts)}, "mean": {"lambda": scale}, "outside": {}}[self.knob]
        weights = {"weight": 1.0} if "weight" in method.parameters else {}
        models = [
            expert if isinstance(expert, Mapping) and "model" in expert else {"model": expert} for expert in experts
        ]
        inner: dict[str, Any] = {"merge_method": self.method, "models": models, "seed": seed}
        if method.base != "unused":
            inner["base_model"] = base
        if parameters := {**weights, **self.parameters, **lambdas}:
            inner["parameters"] = parameters
        if self.knob != "outside" or scale == 1.0:
            return inner
        return {
            "merge_method": "task_arithmetic",
            "base_model": base,
            "models": [{"model": inner, "parameters": {"weight": scale}}],
        }


CANDIDATES = (
    Candidate("linear", "linear (average)", "outside", {}),
    Candidate("task_arithmetic", "task arithmetic", "sum", {}),
    Candidate("ties", "TIES, density 0.2", "mean", {"density": 0.2}),
    Candidate("dare_linear", "DARE, density 0.5", "sum", {"density": 0.5, "rescale": "inverse_density"}),
    Candidate("dare_ties", "DARE-TIES, density 0.5", "sum", {"density": 0.5, "rescale": "inverse_density"}),
    Candidate("della", "DELLA, density 0.5", "mean", {"density": 0.5}),
    Candidate("breadcrumbs", "Model Breadcrumbs, density 0.5", "sum", {"density": 0.5}),
    Candidate("model_stock", "Model Stock", "outside", {}),
    Candidate("sce", "SCE, top 0.5", "outside", {"select_topk": 0.5}),
    Candidate("magmax", "MagMax", "mean", {}),
    Candidate("karcher", "Karcher mean", "outside", {}),
    Candidate("ram", "RAM", "outside", {}),
    Candidate("consensus", "Consensus, 2 masks", "sum", {}),
    Candidate("pcb", "PCB-Merging", "mean", {}),
    Candidate("tsv_m", "TSV-M", "sum", {}, default=None),
    Candidate("r_tsvm", "R-TSVM", "sum", {}, default=None),
    Candidate("iso_c", "Iso-C", "sum", {}, default=None),
    Candidate("iso_cts", "Iso-CTS", "sum", {}, default=None),
    Candidate("task_arithmetic_sb", "subspace boosting of task arithmetic", "sum", {}),
    Candidate("task_arithmetic_svc", "singular value calibration", "outside", {"lambda": 1.0}),
    Candidate("wudi", "WUDI", "mean", {}),
    Candidate("knots_ties", "KnOTS-TIES, density 0.2", "mean", {"density": 0.2}),
    Candidate("emr", "EMR, unified", "mean", {}),
    Candidate("fisher", "Fisher", "outside", {}, needs="labelled"),
    Candidate("regmean", "RegMean", "outside", {}, needs="unlabelled"),
    Candidate(
        "regmean", "RegMean++", "outside", {"ratio": 0.95}, needs="unlabelled", name="regmean_pp", through_merged=True
    ),
    Candidate(
        "task_arithmetic",
        "AdaMerging, task-wise",
        "outside",
        {"weight": 0.3},
        needs="unlabelled",
        name="adamerging",
        learned="source",
    ),
    Candidate(
        "task_arithmetic",
        "AdaMerging, layer-wise",
        "outside",
        {"weight": 0.3},
        needs="unlabelled",
        name="adamerging_tensor",
        learned="tensor",
    ),
    Candidate("localize_and_stitch", "Localize-and-Stitch, dataless", "mean", {}),
)


def candidates(only: Sequence[str] = ()) -> list[Candidate]:
    """The candidates whose method is installed, or those whose ids are in `only`, in the order of the table."""
    known = set(list_methods())
    return [c for c in CANDIDATES if c.method in known and (not only or c.id in only)]
