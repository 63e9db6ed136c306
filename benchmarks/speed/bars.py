"""The goals the report is held against: one line each, edited here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tools import COPY_BOUND, OURS

TWO_PASS = ("ties", "dare_ties", "slerp", "breadcrumbs", "della", "model_stock", "sce", "karcher")
FASTER = {
    "linear": 5, "task_arithmetic": 5, "ties": 15, "dare_ties": 10, "slerp": 5,
    "breadcrumbs": 12, "della": 12, "model_stock": 4, "sce": 12, "karcher": 25,
}  # fmt: skip


@dataclass(frozen=True)
class Bar:
    """A goal: what is measured, the limit, and how to find the number in the results (None: not measured)."""

    what: str
    limit: float
    unit: str
    measured: float | None
    at_least: bool = False

    @property
    def verdict(self) -> str:
        """met, missed or not measured."""
        if self.measured is None:
            return "not measured"
        met = self.measured >= self.limit if self.at_least else self.measured <= self.limit
        return "met" if met else "**missed**"

    @property
    def goal(self) -> str:
        """The goal as text."""
        return f"{'>=' if self.at_least else '<='} {self.limit:g} {self.unit}".rstrip()


def _try(find: Callable[[], float]) -> float | None:
    try:
        return find()
    except KeyError:
        return None


def bars(results: dict, size: str) -> list[Bar]:
    """Every bar, measured on the family `size`."""
    merges, start, tiny = results["sizes"][size]["merges"], results["startup"], results["tiny"]

    def best(method: str, tool: str) -> float:
        return merges[method]["tools"][tool]["best"]

    def over_bound(method: str) -> float:
        start = tiny[method]["warm"]["best"]
        if best(method, OURS) < 1.5 * start:
            raise KeyError("so small a family is all start-up")
        return (best(method, OURS) - start) / best(method, COPY_BOUND)

    def rss(methods: tuple[str, ...]) -> float:
        return max(merges[m]["tools"][OURS]["rss_mb"] for m in methods if m in merges)

    def correct(method: str) -> float:
        found = results["sizes"][size]["accuracy"][method][OURS]
        return 100 * (1 - found["differ"] / (found["elements"] - found["near_ties"]))

    def compile_seconds() -> float:
        return max(t["first"]["best"] - t["warm"]["best"] for t in tiny.values())

    def help_ratio() -> float:
        return start["mergekit-yaml --help"]["best"] / start["eutectic --help"]["best"]

    found = [
        Bar("`eutectic --help`", 0.25, "s", _try(lambda: start["eutectic --help"]["best"])),
        Bar("`eutectic --help` against `mergekit-yaml --help`", 30, "times faster", _try(help_ratio), True),
        Bar(f"`eutectic plan`, {size}", 0.8, "s", _try(lambda: start[f"eutectic plan, linear, {size}"]["best"])),
        Bar(
            "`eutectic plan`, 20,000 tensors, base + 4",
            3,
            "s",
            _try(lambda: start["eutectic plan, ties, 20,000 tensors"]["best"]),
        ),
        Bar("kernel compilation of a first run", 8, "s", _try(compile_seconds) if tiny else None),
    ]
    for method in ("linear", "task_arithmetic"):
        found += [
            Bar(f"{method} / copy bound, without start-up", 2, "x", _try(lambda m=method: over_bound(m))),
            Bar(f"{method}: correctly rounded elements", 100, "%", _try(lambda m=method: correct(m)), True),
        ]
    for method, times in FASTER.items():
        ratio = _try(lambda m=method: best(m, "mergekit") / best(m, OURS))
        found.append(Bar(f"{method} against mergekit", times, "times faster", ratio, True))
    found.append(Bar("peak memory, weighted sums", 300, "MB", _peak(rss, ("linear", "task_arithmetic"))))
    found.append(Bar("peak memory, two-pass methods", 300, "MB", _peak(rss, TWO_PASS)))
    return found


def _peak(rss: Callable[[tuple[str, ...]], float], methods: tuple[str, ...]) -> float | None:
    try:
        return rss(methods)
    except (KeyError, ValueError):
        return None
