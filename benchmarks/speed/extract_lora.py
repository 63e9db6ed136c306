"""`eutectic extract-lora` against mergekit's, both as whole processes, turn about.

    .venv/bin/python benchmarks/speed/extract_lora.py [--size 0.5B] [--rank 64] [--runs 1] [--report]

Needs mergekit's environment (benchmarks/speed/peers.py). mergekit also copies the embedding and the head whole
(modules_to_save); the time for that is part of its own.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys

import machine
import peers
import runs
from folder import weight_bytes
from paths import EUTECTIC, REPORTS, SPEED, WORK
from report import table
from tools import OURS, Command

PEER = "mergekit"
FASTER = 5  # times mergekit


def main() -> None:
    """Time both, print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="0.5B")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument(
        "--report", action="store_true", help="write benchmarks/reports/speed_extract-lora-<size>_...md"
    )
    options = parser.parse_args()
    if not peers.python(PEER).exists():
        sys.exit(f"no environment for {PEER}: run python benchmarks/speed/peers.py {PEER}")
    subprocess.run([sys.executable, SPEED / "checkpoints.py", options.size], check=True, stdout=subprocess.DEVNULL)
    family = WORK / "checkpoints" / options.size
    wanted = commands(str(options.rank))
    measured: dict[str, list[runs.Run]] = {tool: [] for tool in wanted}
    load = machine.load()
    for _ in range(options.runs):
        for tool, command in wanted.items():
            runs.fresh(runs.OUT / "adapter")
            runs.warm([family / "ft1", family / "base"])
            done = runs.measure(command, family)
            if done.error:
                sys.exit(f"{tool}: {done.error}")
            print(
                f"{options.size} {tool:10} {done.wall:7.2f} s wall {done.cpu:7.2f} s CPU {done.rss_mb:6.0f} MB",
                flush=True,
            )
            measured[tool].append(done)
    written = weight_bytes(runs.OUT / "adapter")
    runs.fresh(runs.OUT / "adapter")
    results = {
        "date": datetime.date.today().isoformat(),
        "command": "python benchmarks/speed/extract_lora.py " + " ".join(sys.argv[1:]),
        "size": options.size, "rank": options.rank, "rounds": options.runs,
        "model_gb": weight_bytes(family / "base") / 1e9, "peer_wrote_gb": written / 1e9,
        "machine": machine.describe(), "versions": machine.versions([PEER]), "load": [load, machine.load()],
        "commands": {tool: command.shown for tool, command in wanted.items()},
        "runs": {tool: runs.summary(done) for tool, done in measured.items()},
    }  # fmt: skip
    text = page(results)
    print(text)
    if options.report:
        name = f"speed_extract-lora-{options.size}_{machine.slug(machine.cpu_model())}_{results['date']}.md"
        (REPORTS / name).write_text(text)
        (REPORTS / name).with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")


def commands(rank: str) -> dict[str, Command]:
    """Both tools' command lines; the working folder is the family's."""
    out = str(runs.OUT / "adapter")
    ours = ["extract-lora", "ft1", "OUT", "--base", "base", "--rank", rank]
    theirs = ["--model", "./ft1", "--base-model", "./base", "--out-path", "OUT", "--max-rank", rank]
    script = str(peers.environment(PEER) / "bin" / "mergekit-extract-lora")
    offline = {"HF_HUB_OFFLINE": "1"}
    return {
        OURS: Command(
            [str(EUTECTIC), *(out if word == "OUT" else word for word in ours)], " ".join(["eutectic", *ours])
        ),
        PEER: Command(
            [script, *(out if word == "OUT" else word for word in theirs)],
            " ".join(["HF_HUB_OFFLINE=1 mergekit-extract-lora", *theirs]),
            offline,
        ),
    }


def page(results: dict) -> str:
    """The report as Markdown."""
    found = results["runs"]
    best, median = (found[PEER][key] / found[OURS][key] for key in ("best", "median"))
    verdict = "met" if best >= FASTER else "**missed**"
    rows = [
        [
            tool,
            *(f"{own[key]:.2f}" for key in ("best", "median", "cpu")),
            *(f"{own[key]:.0f}" for key in ("rss_mb", "anonymous_mb")),
            str(len(own["runs"])),
        ]
        for tool, own in found.items()
    ]
    lines = [
        f"# Speed of extract-lora, {results['size']}, rank {results['rank']}, {results['date']}", "",
        f"`{results['command']}`", "",
        "Whole processes in turn, inputs in the page cache, the output removed before each. A model is "
        f"{results['model_gb']:.2f} GB of bfloat16 whose fine-tune differs in every weight. mergekit also copies the "
        f"embedding and the head whole: it wrote {results['peer_wrote_gb']:.2f} GB.",
        "", "## Machine and versions", "", *(f"- {name}: {value}" for name, value in results["machine"].items()),
    ]  # fmt: skip
    for tool, names in results["versions"].items():
        lines.append(f"- {tool}: " + ", ".join(f"{name} {version}" for name, version in names.items()))
    lines += [f"- load average (one minute): {results['load'][0]} at the start, {results['load'][1]} at the end.", ""]
    lines += ["## Figures", ""]
    lines += table(["tool", "best s", "median s", "CPU s", "peak RSS MB", "of it anonymous", "runs"], rows)
    lines += [f"- {tool}: `{shown}`" for tool, shown in results["commands"].items()]
    lines += ["", f"mergekit's time / ours: {best:.1f} (best), {median:.1f} (median); goal >= {FASTER}: {verdict}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
