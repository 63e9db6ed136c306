"""What is compared with mergekit: every method it has, every option, on tie-free float32 tensors.

Standard library only: both environments read this file. Where results differ on purpose, docs/compat.md says so.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

SHAPES = {"matrix": (64, 96), "tall": (301, 7), "vector": (257,), "wide": (2, 40_000)}
SOURCES = ("a", "b", "c", "d")
WEIGHTS = {"a": 0.3, "b": 0.45, "c": 0.15, "d": 0.6}
TOLERANCE = 1e-6
DRAWS = 400  # merges with different random numbers, where distributions are compared


@dataclass(frozen=True)
class Case:
    """One merge, with parameters as both tools name them; `weight` is one number for each source."""

    method: str
    parameters: dict[str, Any] = field(default_factory=dict)
    sources: int = 3
    base: bool = False
    weighted: bool = False
    shapes: tuple[str, ...] = tuple(SHAPES)
    wide: bool = False  # mergekit is given float64: its float32 divergence is all rounding

    @property
    def name(self) -> str:
        """Method and options as text."""
        options = " ".join(f"{key}={value}" for key, value in self.parameters.items())
        return f"{self.method} x{self.sources}{' base' if self.base else ''} {options}".strip()


def _grid(**options: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]


def cases() -> list[Case]:
    """All cases."""
    both = (True, False)
    found = [Case("linear", p, weighted=True) for p in _grid(normalize=both)]
    found += [Case("slerp", {"t": t}, sources=2) for t in (0.0, 0.3, 1.0, 1.3)]
    found += [Case("nuslerp", p, 2, base, True) for base in both for p in _grid(nuslerp_flatten=(True,))]
    found += [
        Case("nuslerp", p, 2, base, True, ("matrix", "vector", "wide"))
        for base in both
        for p in _grid(nuslerp_flatten=(False,), nuslerp_row_wise=(False,))
    ]
    found += [  # columns of two entries are often opposite, where no float32 result means anything
        Case("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}, 2, base, True, ("matrix", "tall"))
        for base in both
    ]
    found += [
        Case("multislerp", p, n, base, True) for n in (2, 3) for base in both for p in _grid(normalize_weights=both)
    ]
    found += [Case("karcher", p, n) for n in (2, 4) for p in ({}, {"max_iter": 1}, {"max_iter": 50, "tol": 1e-7})]
    delta = {"sources": 3, "base": True, "weighted": True}
    found += [Case("task_arithmetic", p, **delta) for p in _grid(normalize=both, **{"lambda": (1.0, 0.7)})]
    common = {"normalize": both, "rescale": both, "lambda": (1.0, 0.7), "density": (0.3, 1.0)}
    for method, more in (
        ("ties", {}),
        ("dare_linear", {}),
        ("dare_ties", {}),
        ("della", {"epsilon": (0.1,)}),
        ("della_linear", {"epsilon": (0.1,)}),
        ("breadcrumbs", {"gamma": (0.01, 0.2)}),
        ("breadcrumbs_ties", {"gamma": (0.01, 0.2)}),
    ):
        found += [Case(method, p, **delta) for p in _grid(**common, **more)]
    found += [Case("model_stock", p, n, base=True) for n in (2, 4) for p in _grid(filter_wise=both)]
    found += [Case("sce", p, 3, base=True) for p in _grid(select_topk=(1.0, 0.4, 0.0))]
    found += [Case("ram", p, 3, base=True) for p in _grid(epsilon=(1e-5, 2e-3))]
    found += [Case("ramplus_tl", p, 3, base=True) for p in _grid(epsilon=(1e-5, 2e-3), r=(0.1, 0.5), alpha=(0.2, 2.0))]
    found += [Case("nearswap", {"t": t}, 1, base=True) for t in (0.0, 1e-3, 1.0)]
    found += [Case("arcee_fusion", {}, 1, base=True, wide=True)]
    found += [Case("passthrough", p, 1) for p in ({}, {"scale": 0.7})]
    return found


def random_cases() -> list[Case]:
    """The cases whose distribution is compared: every method that draws, with and without rescaling."""
    delta = {"sources": 3, "base": True, "weighted": True, "shapes": ("matrix",)}
    found = []
    for method, more in (
        ("dare_linear", {}),
        ("dare_ties", {}),
        ("della", {"epsilon": 0.2}),
        ("della_linear", {"epsilon": 0.2}),
    ):
        for rescale in (True, False):
            found.append(Case(method, {"density": 0.4, "rescale": rescale, "normalize": False, **more}, **delta))
    return found
