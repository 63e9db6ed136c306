"""Time Eutectic, the peers and the copy bound on the same merges, turn about, and write a report.

    .venv/bin/python benchmarks/speed/run.py --size 0.1B,0.5B --methods linear,ties --runs 3 --report

Standard library only, so that this process stays small; numpy work (checkpoints, accuracy) runs in processes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path

import machine
import merges
import peers
import report
import runs
import tools
from folder import weight_bytes
from paths import BENCHMARKS, REPORTS, SPEED, WORK

ACCURATE = ("linear", "task_arithmetic")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    several = {"type": lambda text: [word for word in text.split(",") if word]}
    parser.add_argument("--size", **several, default=["0.5B"], help="0.1B, 0.5B, 2B; several with commas")
    parser.add_argument("--methods", **several, default=list(merges.METHODS), help=", ".join(merges.METHODS))
    parser.add_argument("--peers", **several, default=list(peers.PEERS), help="mergekit, sd-mecha, or '' for none")
    parser.add_argument("--runs", type=int, default=3, help="rounds")
    parser.add_argument("--peer-runs", type=int, help="rounds in which the peers take part (default: all)")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for ours and mergekit's (default: cpu)")
    cache = parser.add_mutually_exclusive_group()
    cache.add_argument("--warm", dest="cache", action="store_const", const="warm", default="warm")
    cache.add_argument("--cold", dest="cache", action="store_const", const="cold")
    parser.add_argument("--drop-caches", action="store_true", help="with --cold: drop the whole page cache")
    parser.add_argument("--no-accuracy", action="store_true", help="skip the comparison with float64")
    parser.add_argument("--no-startup", action="store_true", help="skip start-up, planning and compilation")
    parser.add_argument("--without-eutectic", action="store_true", help="peers and copy bound only")
    parser.add_argument("--report", action="store_true", help="write benchmarks/reports/speed_<sizes>_<cpu>_<date>.md")
    return parser.parse_args()


def main() -> None:
    """Run everything that was asked for."""
    options = arguments()
    if not options.without_eutectic and not tools.available(tools.OURS):
        sys.exit("there is no .venv/bin/eutectic: install the package, or say --without-eutectic")
    for peer in options.peers:
        if not tools.available(peer):
            sys.exit(f"no environment for {peer}: run python benchmarks/speed/peers.py")
    WORK.mkdir(exist_ok=True)
    results: dict = {
        "date": datetime.date.today().isoformat(),
        "command": "python benchmarks/speed/run.py " + " ".join(sys.argv[1:]),
        "rounds": options.runs,
        "cache": options.cache,
        "machine": machine.describe(),
        "versions": machine.versions(options.peers),
        "load": {"start": machine.load()},
        "sizes": {},
        "startup": {},
        "tiny": {},
    }
    for size in options.size:
        results["sizes"][size] = one_size(options, size)
    if not options.no_startup:
        job = [options.size[-1], str(options.runs), ",".join(options.peers)]
        job.append("" if options.without_eutectic else ",".join(options.methods))
        results |= python("startup.py", *job)
    results["load"]["end"] = machine.load()
    name = f"speed_{'_'.join(options.size)}_{machine.slug(machine.cpu_model())}_{results['date']}"
    name += "_cold" if options.cache == "cold" else ""
    name += "" if options.device == "cpu" else f"_{options.device}"
    path = (REPORTS if options.report else WORK) / f"{name}.md"
    report.write(results, path)
    print(f"wrote {path.relative_to(BENCHMARKS.parent)}")


def python(script: str, *words: str) -> dict:
    """Run one of our numpy scripts and read the JSON on its last line ({} when it failed)."""
    run = subprocess.run([sys.executable, SPEED / script, *words], stdout=subprocess.PIPE, text=True)
    if run.returncode:
        print(f"{script} {' '.join(words)} failed; the report goes without it", file=sys.stderr)
        return {}
    return json.loads(run.stdout.splitlines()[-1])


def one_size(options: argparse.Namespace, size: str) -> dict:
    """All methods on one family."""
    subprocess.run([sys.executable, SPEED / "checkpoints.py", size], check=True)
    family = WORK / "checkpoints" / size
    found: dict = {"model_gb": weight_bytes(family / "base") / 1e9, "merges": {}, "accuracy": {}}
    for method in options.methods:
        wanted = merges.merge(method, len(list(family.glob("ft*"))))
        merges.write(family, wanted)
        found["merges"][method] = one_method(options, family, wanted)
        if method in ACCURATE and not options.no_accuracy:
            found["accuracy"][method] = accuracy(method, family, found["merges"][method]["tools"])
        runs.fresh(runs.OUT)
    return found


def one_method(options: argparse.Namespace, family: Path, wanted: merges.Merge) -> dict:
    """Every tool in turn, round after round; the last output of each stays on disk."""
    ours = [] if options.without_eutectic else [tools.OURS]
    if ours:
        compile_kernels(wanted.method, options.device)
    measured: dict[str, list[runs.Run]] = {t: [] for t in (tools.COPY_BOUND, *ours, *options.peers)}
    folders = [family / name for name in wanted.inputs]
    load = machine.load()
    for turn in range(options.runs):
        late = options.peer_runs is not None and turn >= options.peer_runs
        for tool, done in measured.items():
            if (tool in peers.PEERS and late) or any(run.error for run in done):
                continue
            done.append(one_run(options, family, wanted, tool, folders))
    if ours:
        measured[tools.OURS_FSYNC] = [one_run(options, family, wanted, tools.OURS_FSYNC, folders)]
    found = {}
    for tool, done in measured.items():
        out = runs.OUT / machine.slug(tool)
        found[tool] = runs.summary(done) | {"command": tools.command(tool, wanted, out, options.device).shown}
        if tool != tools.COPY_BOUND and "error" not in found[tool]:
            found[tool]["output"] = runs.check(out, family / wanted.inputs[0])
    return {"note": wanted.note, "load": load, "tools": found}


def compile_kernels(method: str, device: str) -> None:
    """One untimed merge of the few-KB family, so that no timed run compiles."""
    tiny = WORK / "checkpoints" / "tiny"
    subprocess.run([sys.executable, SPEED / "checkpoints.py", "tiny"], check=True, stdout=subprocess.DEVNULL)
    merges.write(tiny, wanted := merges.merge(method))
    runs.fresh(runs.OUT / "tiny")
    runs.measure(tools.command(tools.OURS, wanted, runs.OUT / "tiny", device), tiny)


def one_run(
    options: argparse.Namespace, family: Path, wanted: merges.Merge, tool: str, folders: list[Path]
) -> runs.Run:
    """Clear the output, prepare the page cache, run, print a line."""
    out = runs.OUT / machine.slug(tool)
    runs.fresh(out)
    if options.cache == "warm":
        runs.warm(folders)
    else:
        runs.cool(folders, options.drop_caches)
    done = runs.measure(tools.command(tool, wanted, out, options.device), family)
    what = (
        done.error
        or f"{done.wall:7.2f} s wall {done.cpu:7.2f} s CPU {done.rss_mb:6.0f} MB {done.anonymous_mb:6.0f} MB anonymous"
    )
    print(f"{family.name} {wanted.method:16} {tool:16} {what}", flush=True)
    return done


def accuracy(method: str, family: Path, found: dict) -> dict:
    """Compare the outputs that are on disk with float64; sd-mecha's linear is another formula and is left out."""
    compared = {}
    for tool, result in found.items():
        if tool in (tools.COPY_BOUND, tools.OURS_FSYNC) or (tool == "sd-mecha" and method == "linear"):
            continue
        if "error" not in result and not result.get("output"):
            counts = python("accuracy.py", method, str(family), str(runs.OUT / machine.slug(tool)))
            if not counts:
                continue
            compared[tool] = counts
            print(f"{family.name} {method:16} {tool:16} {compared[tool]}", flush=True)
    return compared


if __name__ == "__main__":
    main()
