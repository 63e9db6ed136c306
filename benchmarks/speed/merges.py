"""The merges that are timed, as recipes in the mergekit format that both tools read.

Paths are relative to the family's folder, which is the working folder of every tool and where the recipes are
written. Weights are deliberately not powers of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LINEAR_WEIGHTS = (0.3, 0.25, 0.27, 0.18)
TASK_WEIGHT = 0.3
DENSITY = {"ties": 0.2, "dare_ties": 0.5, "breadcrumbs": 0.2, "della": 0.5}
WEIGHTLESS = {"model_stock": True, "sce": True, "karcher": False}  # whether they take the base
SLERP_T = 0.4


@dataclass(frozen=True)
class Merge:
    """One method of the benchmark: the folders it reads (base first where there is one) and its recipe."""

    method: str
    inputs: tuple[str, ...]
    text: str
    note: str


def _document(method: str, models: list[tuple[str, str]], extra: list[str]) -> str:
    lines = [f"merge_method: {method}", "models:"]
    for folder, parameters in models:
        lines.append(f"  - model: ./{folder}")
        if parameters:
            lines.append(f"    parameters: {parameters}")
    return "\n".join([*lines, *extra, "dtype: bfloat16"]) + "\n"


def merge(method: str, fine_tunes: int = 4) -> Merge:
    """The named merge over a family with that many fine-tunes."""
    experts = [f"ft{index}" for index in range(1, fine_tunes + 1)]
    if method == "linear":
        weights = LINEAR_WEIGHTS[:fine_tunes]
        models = [(e, f"{{weight: {w}}}") for e, w in zip(experts, weights, strict=True)]
        note = f"weights {', '.join(map(str, weights))}, normalised"
        return Merge(method, tuple(experts), _document(method, models, ["parameters: {normalize: true}"]), note)
    if method == "slerp":
        models = [("ft1", ""), ("ft2", "")]
        extra = ["base_model: ./ft1", f"parameters: {{t: {SLERP_T}}}"]
        return Merge(method, ("ft1", "ft2"), _document(method, models, extra), f"two models, t {SLERP_T}")
    if method in WEIGHTLESS:
        extra = ["base_model: ./base"] if WEIGHTLESS[method] else []
        inputs = ("base", *experts) if extra else tuple(experts)
        return Merge(method, inputs, _document(method, [(e, "") for e in experts], extra), "options as mergekit's")
    if method == "task_arithmetic":
        parameters, note = f"{{weight: {TASK_WEIGHT}}}", f"weight {TASK_WEIGHT}, lambda 1"
        extra = ["base_model: ./base", "parameters: {lambda: 1.0}"]
    elif method in DENSITY:
        parameters = f"{{weight: {TASK_WEIGHT}, density: {DENSITY[method]}}}"
        note = f"weight {TASK_WEIGHT}, density {DENSITY[method]}, other options as mergekit defaults them"
        extra = ["base_model: ./base"]
    else:
        raise SystemExit(f"no merge named {method}; there are: {', '.join(METHODS)}")
    models = [(expert, parameters) for expert in experts]
    return Merge(method, ("base", *experts), _document(method, models, extra), note)


METHODS = (
    "linear", "task_arithmetic", "ties", "dare_ties", "slerp",
    "breadcrumbs", "della", "model_stock", "sce", "karcher",
)  # fmt: skip


def write(folder: Path, wanted: Merge) -> Path:
    """Write the recipe beside the family's checkpoints."""
    path = folder / f"{wanted.method}.yaml"
    path.write_text(wanted.text)
    return path
