"""What slices, gradients, filters, adapters and tokenizers cost over plain linear, per byte moved.

    .venv/bin/python benchmarks/speed/recipes.py [--size 0.5B] [--runs 5] [--cases ...] [--report]

Every recipe is held against plain `linear` of as many models, in turn with it. Bytes are those that `eutectic plan`
foretells. Start-up is that of a few-KB linear merge; the strict column takes it from both sides.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import machine
import merges
import runs
import tools
from folder import weight_bytes
from paths import EUTECTIC, REPORTS, SPEED, WORK
from report import table
from tools import OURS, Command

MOST = 1.10  # times plain linear, per byte
ONE, TWO = "linear, one model", "linear, two models"


@dataclass(frozen=True)
class Case:
    """One recipe: its name, its text for a model of so many layers, the folders it reads, what it is held against."""

    name: str
    text: str
    inputs: tuple[str, ...]
    like: str
    note: str = ""

    @property
    def file(self) -> str:
        """Name of the recipe's file in the family's folder."""
        return f"case-{machine.slug(self.name)}.yaml"


def cases(layers: int) -> list[Case]:
    """All recipes, the two plain ones first."""
    half, both = layers // 2, ("ft1", "ft2")
    pair = "models:\n  - {model: ./ft1, parameters: {weight: 0.3}}\n  - {model: ./ft2, parameters: {weight: 0.7}}\n"
    end = "dtype: bfloat16\n"

    def sliced(first: int, stop: int, *models: str) -> str:
        sources = ", ".join(
            f"{{model: ./{m}, layer_range: [{first}, {stop}], parameters: {{weight: 0.5}}}}" for m in models
        )
        return f"  - sources: [{sources}]\n"

    gradients = (
        "parameters:\n  weight:\n    - {filter: self_attn, value: [0.2, 0.8]}\n"
        "    - {filter: mlp, value: [0.7, 0.1, 0.9]}\n    - {value: 0.5}\n"
    )
    return [
        Case(
            ONE,
            f"merge_method: linear\nmodels:\n  - {{model: ./ft1, parameters: {{weight: 1.0}}}}\n{end}",
            ("ft1",),
            ONE,
        ),
        Case(TWO, f"merge_method: linear\n{pair}{end}", both, TWO),
        Case(
            "slices, stacked",
            f"merge_method: passthrough\nslices:\n{sliced(0, half, 'ft1')}{sliced(half, layers, 'ft2')}{end}".replace(
                ", parameters: {weight: 0.5}", ""
            ),
            both, ONE, "the lower half of one model under the upper half of another",
        ),
        Case(
            "slices, merged",
            f"merge_method: linear\nslices:\n{sliced(0, half, *both)}{sliced(half, layers, *both)}{end}",
            both, TWO, "two slices, each of both models",
        ),
        Case(
            "gradients by filter",
            f"merge_method: linear\nmodels:\n  - {{model: ./ft1}}\n  - {{model: ./ft2}}\n{gradients}{end}",
            both, TWO, "weights that change with depth, others for attention than for the MLP",
        ),
        Case(
            "adapter, applied",
            f"merge_method: passthrough\nmodels:\n  - {{model: ./base+./adapter}}\n{end}",
            ("base", "adapter"), ONE, "rank 16 on every linear layer",
        ),
        Case(
            "adapter, task vector",
            f"merge_method: task_arithmetic\nbase_model: ./base\nmodels:\n"
            f"  - {{model: ./base+./adapter, parameters: {{weight: 0.5}}}}\n{end}",
            ("base", "adapter"), TWO, "the same at half its weight; the base is read twice",
        ),
        Case(
            "tokens, union",
            f"merge_method: linear\n{pair.replace('ft2', 'renumbered')}tokenizer: {{source: union}}\n{end}",
            ("ft1", "renumbered"), TWO, "32,000 tokens, in one model numbered in another order",
        ),
    ]  # fmt: skip


def main() -> None:
    """Make the inputs, time everything in turn, print or write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="0.5B", help="0.1B, 0.5B, 2B (default: 0.5B)")
    parser.add_argument("--runs", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--cases", help="only those whose name holds one of these words (with commas)")
    parser.add_argument("--report", action="store_true", help="write benchmarks/reports/speed_recipes-<size>_...md")
    options = parser.parse_args()
    if not tools.available(OURS):
        sys.exit("there is no .venv/bin/eutectic: install the package")
    for script, size in (
        ("checkpoints.py", "tiny"),
        ("checkpoints.py", options.size),
        ("recipe_inputs.py", options.size),
    ):
        subprocess.run([sys.executable, SPEED / script, size], check=True, stdout=subprocess.DEVNULL)
    family, tiny = (WORK / "checkpoints" / name for name in (options.size, "tiny"))
    known = cases(json.loads((family / "base/config.json").read_text())["num_hidden_layers"])
    words = options.cases.split(",") if options.cases else [""]
    chosen = [case for case in known if case.name in (ONE, TWO) or any(word in case.name for word in words)]
    for case in chosen:
        (family / case.file).write_text(case.text)
    merges.write(tiny, plain := merges.merge("linear"))
    start = f"start-up: {plain.method} of the few-KB family"
    moved = {case.name: foretold(family, case) for case in chosen}
    measured: dict[str, list[runs.Run]] = {name: [] for name in (start, *moved)}
    load = machine.load()
    for turn in range(-1, options.runs):  # the first round compiles and is not counted
        for case in (None, *chosen):
            name = start if case is None else case.name
            done = one_run(family, case) if case else timed(tools.command(OURS, plain, runs.OUT / "case").argv, tiny)
            if done.error:
                sys.exit(f"{name}: {done.error}")
            if case is not None and turn < 0 and (wrong := runs.check(runs.OUT / "case", family / "base")):
                sys.exit(f"{name}: {wrong}")
            if turn >= 0:
                measured[name].append(done)
                print(
                    f"{options.size} {name:24} {done.wall:6.2f} s wall {done.cpu:6.2f} s CPU {done.rss_mb:5.0f} MB",
                    flush=True,
                )
    runs.fresh(runs.OUT / "case")
    results = {
        "date": datetime.date.today().isoformat(),
        "command": "python benchmarks/speed/recipes.py " + " ".join(sys.argv[1:]),
        "size": options.size, "rounds": options.runs, "model_gb": weight_bytes(family / "base") / 1e9,
        "machine": machine.describe(), "versions": machine.versions([]), "load": [load, machine.load()],
        "moved": moved, "start": start,
        "runs": {
            name: runs.summary(done) | {"least_cpu": min(run.cpu for run in done)} for name, done in measured.items()
        },
    }  # fmt: skip
    text = written(results, chosen)
    print(text)
    if options.report:
        path = REPORTS / f"speed_recipes-{options.size}_{machine.slug(machine.cpu_model())}_{results['date']}.md"
        path.write_text(text)
        path.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")


def foretold(family: Path, case: Case) -> list[int]:
    """Bytes read and written, as the plan says."""
    plan = [str(EUTECTIC), "plan", case.file, "--json"]
    found = json.loads(subprocess.run(plan, cwd=family, check=True, capture_output=True, text=True).stdout)
    return [found["bytes_read"], found["bytes_written"]]


def one_run(family: Path, case: Case) -> runs.Run:
    """One merge with its inputs in the page cache."""
    runs.warm([family / name for name in case.inputs])
    return timed([str(EUTECTIC), "merge", case.file, str(runs.OUT / "case"), "--no-fsync"], family)


def timed(argv: list[str], folder: Path) -> runs.Run:
    """One command that writes OUT/case, which is removed before."""
    runs.fresh(runs.OUT / "case")
    return runs.measure(Command(argv, ""), folder)


def written(results: dict, chosen: list[Case]) -> str:
    """The report as Markdown."""
    found, moved = results["runs"], results["moved"]
    start = found[results["start"]]["best"]

    def over(case: Case, key: str, less: float = 0.0) -> float:
        own, plain = (found[n][key] - less for n in (case.name, case.like))
        return own / sum(moved[case.name]) / (plain / sum(moved[case.like]))

    rows = []
    for case in chosen:
        own = found[case.name]
        cells = [case.name, *(f"{n / 1e9:.2f}" for n in moved[case.name]), f"{own['best']:.2f}", f"{own['median']:.2f}"]
        cells += [f"{own['least_cpu']:.2f}", f"{own['rss_mb']:.0f}", f"{own['anonymous_mb']:.0f}"]
        if case.name == case.like:
            rows.append([*cells, *["-"] * 5])
            continue
        ratios = [over(case, "best"), over(case, "median"), over(case, "least_cpu"), over(case, "best", start)]
        verdict = "met" if ratios[0] <= MOST else f"**missed** by {100 * (ratios[0] - MOST):.0f} points"
        rows.append([*cells, *(f"{ratio:.2f}" for ratio in ratios), verdict])
    header = ["recipe", "reads GB", "writes GB", "best s", "median s", "least CPU s", "peak RSS MB", "of it anonymous"]
    header += ["per byte / linear, best", "median", "CPU", "best, without start-up", f"<= {MOST:g} (best)"]
    lines = [f"# Speed of recipes, {results['size']}, {results['date']}", "", f"`{results['command']}`", ""]
    lines += [
        "Whole processes (`eutectic merge RECIPE OUT --no-fsync`), all recipes in turn, round after round; inputs lie "
        f"in the page cache, the output folder is removed before each. {results['rounds']} rounds after one that is "
        f"not counted. A model is {results['model_gb']:.2f} GB of bfloat16. Wall per byte moved (read and written, as "
        f"`eutectic plan` foretells) is held against plain linear of as many models. Start-up, {start:.2f} s at best, "
        "is that of a few-KB linear merge; the column without it takes it from both sides, so what only this recipe "
        "loads or plans counts against it. CPU seconds vary less than the wall where other work shares the cores.",
        "", "## Machine and versions", "", *(f"- {name}: {value}" for name, value in results["machine"].items()),
    ]  # fmt: skip
    for tool, names in results["versions"].items():
        lines.append(f"- {tool}: " + ", ".join(f"{name} {version}" for name, version in names.items()))
    lines += [f"- load average (one minute): {results['load'][0]} at the start, {results['load'][1]} at the end.", ""]
    lines += ["## Recipes", "", *table(header, rows)]
    lines += [f"- {case.name}: {case.note}; against {case.like}" for case in chosen if case.note]
    lines += [
        "", "The peak of an adapter's merge stands beside its base: a merge that held the dense model would show it.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
