"""Write a run's results as Markdown, with the raw numbers as JSON beside it."""

from __future__ import annotations

import json
from pathlib import Path

from bars import bars
from tools import COPY_BOUND, OURS

CACHES = {
    "warm": "Warm: every input was read once before each run, so it lay in the page cache.",
    "cold": "Cold: the inputs were dropped from this system's page cache before each run. Where the system is a "
    "virtual machine its host may still hold them, so these figures are no claim about any disk.",
}


def write(results: dict, path: Path) -> None:
    """Write PATH (Markdown) and the same name with .json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    sizes = [line for size in results["sizes"] for line in _size(results, size)]
    lines = [*_head(results), *sizes, *_startup(results), *_bars(results)]
    path.write_text("\n".join(lines).rstrip() + "\n")


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table whose columns after the first are numbers."""
    rule = "|" + "|".join(["---", *["---:"] * (len(header) - 1)]) + "|"
    return ["| " + " | ".join(header) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows), ""]


def _head(results: dict) -> list[str]:
    machine = [f"- {name}: {value}" for name, value in results["machine"].items()]
    versions = [
        f"- {tool}: " + ", ".join(f"{name} {version}" for name, version in found.items())
        for tool, found in results["versions"].items()
    ]
    return [
        f"# Speed, {results['date']}",
        "",
        f"`{results['command']}`",
        "",
        "Whole processes (interpreter, imports, reading, merging, writing), turn about in one run; the output folder "
        f"is removed before each, outside the timing, and nothing calls fsync unless it says so. {results['rounds']} "
        f"rounds. {CACHES[results['cache']]} Our kernels were compiled before: what a "
        "first run adds stands at the end. Checkpoints are synthetic (Gaussian base and deltas, bfloat16).",
        "",
        "## Machine and versions",
        "",
        *machine,
        *versions,
        f"- load average (one minute): {results['load']['start']} at the start, {results['load']['end']} at the end. "
        "Other work on the same cores makes every figure worse, and not evenly: read the ratios, not the seconds.",
        "",
    ]


def _size(results: dict, size: str) -> list[str]:
    found = results["sizes"][size]
    lines = [f"## {size}: {found['model_gb']:.2f} GB a model", ""]
    for method, merge in found["merges"].items():
        lines += _method(method, merge, results["tiny"].get(method))
    if found["accuracy"]:
        lines += [f"### Accuracy, {size}", "", *_accuracy(found["accuracy"])]
    return lines


def _method(method: str, merge: dict, tiny: dict | None) -> list[str]:
    tools = merge["tools"]
    bound, ours = tools.get(COPY_BOUND, {}), tools.get(OURS, {})
    rows = []
    for tool, found in tools.items():
        if "best" not in found:
            continue
        cells = [tool, f"{found['best']:.2f}", f"{found['median']:.2f}", f"{found['cpu']:.2f}"]
        cells += [f"{found['rss_mb']:.0f}", f"{found['anonymous_mb']:.0f}", str(len(found["runs"]))]
        cells += [_ratio(found, bound, key) for key in ("best", "median")]
        rows.append([*cells, *(_ratio(found, ours, key) for key in ("best", "median"))])
    header = [
        "tool",
        "best s",
        "median s",
        "CPU s",
        "peak RSS MB",
        "of it anonymous",
        "runs",
        "best / bound",
        "median / bound",
    ]
    lines = [f"### {method}", "", f"{merge['note']}; load {merge['load']}.", ""]
    lines += table([*header, "best / ours", "median / ours"], rows)
    lines += [f"- {tool}: **failed or not supported**: {t['error']}" for tool, t in tools.items() if "error" in t]
    lines += [f"- {tool}: **wrong output**: {t['output']}" for tool, t in tools.items() if t.get("output")]
    lines += [f"- {tool}: `{t['command']}`" for tool, t in tools.items()]
    if tiny and "best" in tiny["warm"] and "best" in ours and "best" in bound:
        start = tiny["warm"]["best"]
        rest = ours["best"] - start
        without = f"{rest:.2f} s, {rest / bound['best']:.2f} times the copy bound"
        lines.append(
            f"- our start-up (the same method on a few-KB family): {start:.2f} s; without it the best is "
            + (without if rest > start / 2 else "too little to be told from it: take a larger family")
        )
    return [*lines, ""]


def _ratio(found: dict, other: dict, key: str) -> str:
    return f"{found[key] / other[key]:.2f}" if key in other else "-"


def _accuracy(accuracy: dict) -> list[str]:
    rows = []
    for method, tools in accuracy.items():
        for tool, found in tools.items():
            share = 100 * found["differ"] / (found["elements"] - found["near_ties"])
            counts = [found[n] for n in ("elements", "differ")]
            rest = [found[n] for n in ("differ_by_more_than_one_step", "near_ties", "differ_at_near_ties")]
            cells = [f"{method}, {tool}", *(f"{n:,}" for n in counts), f"{share:.5f}", *(f"{n:,}" for n in rest)]
            rows.append(cells)
    header = ["output", "elements", "differ", "differ %", "by more than one step", "near ties", "differ there"]
    note = (
        "Every element against the float64 result rounded once to bfloat16. Elements within 1e-12 (relative) of a "
        "rounding tie are counted apart and are in neither `differ` column."
    )
    return [note, "", *table(header, rows)]


def _startup(results: dict) -> list[str]:
    rows = [
        [name, f"{found['best']:.3f}", f"{found['median']:.3f}", f"{found['cpu']:.2f}", f"{found['rss_mb']:.0f}"]
        for name, found in results["startup"].items()
        if "best" in found
    ]
    lines = ["## Start-up, planning, first run", "", *table(["command", "best s", "median s", "CPU s", "MB"], rows)]
    lines += [f"- {name}: **failed**: {f['error']}" for name, f in results["startup"].items() if "error" in f]
    rows = []
    for method, found in results["tiny"].items():
        first, warm = found["first"], found["warm"]
        if "best" in first and "best" in warm:
            seconds = [first["best"], warm["best"], first["best"] - warm["best"]]
            rows.append([method, *(f"{value:.2f}" for value in seconds)])
        else:
            lines.append(f"- {method} on the tiny family: **failed**: {first.get('error') or warm.get('error')}")
    if rows:
        header = ["few-KB family", "empty kernel cache s", "warm kernel cache s", "compilation s"]
        lines += ["", *table(header, rows)]
    return [*lines, ""]


def _bars(results: dict) -> list[str]:
    size = list(results["sizes"])[-1]
    rows = []
    for bar in bars(results, size):
        measured = "-" if bar.measured is None else f"{bar.measured:.5f}" if bar.unit == "%" else f"{bar.measured:.2f}"
        rows.append([bar.what, bar.goal, measured, bar.verdict])
    return [f"## Goals ({size}, best walls)", "", *table(["goal", "bar", "measured", "verdict"], rows)]
