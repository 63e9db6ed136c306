"""What a user waits for besides the merge: start-up, planning, and the compilation of a first run."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import checkpoints
import merges
import peers
import runs
from paths import EUTECTIC, WORK
from shapes import FAMILIES
from tools import OURS, Command, command


def commands(family: Path, count: int, used: list[str], ours: bool) -> dict[str, dict]:
    """Time `--help`, `plan` and the peers' `--help`: name -> summary."""
    mixture = checkpoints.family("moe")
    merges.write(mixture, merges.merge("linear"))
    merges.write(mixture, merges.merge("ties"))
    timed: dict[str, tuple[Command, Path]] = {}
    if ours:
        tool = str(EUTECTIC)
        timed["eutectic --help"] = Command([tool, "--help"], "eutectic --help"), family
        for method in ("linear", "ties"):
            plan = Command([tool, "plan", f"{method}.yaml"], f"eutectic plan {method}.yaml")
            timed[f"eutectic plan, {method}, {family.name}"] = plan, family
            timed[f"eutectic plan, {method}, 20,000 tensors"] = plan, mixture
    if "mergekit" in used:
        script = str(peers.environment("mergekit") / "bin" / "mergekit-yaml")
        shown = "HF_HUB_OFFLINE=1 mergekit-yaml --help"
        timed["mergekit-yaml --help"] = Command([script, "--help"], shown, {"HF_HUB_OFFLINE": "1"}), family
    results: dict[str, list[runs.Run]] = {name: [] for name in timed}
    for _ in range(count):
        for name, (wanted, folder) in timed.items():
            results[name].append(runs.measure(wanted, folder))
    return {name: runs.summary(found) for name, found in results.items()}


def tiny(methods: list[str], count: int) -> dict[str, dict]:
    """Our wall on a few-KB family per method: once with an empty kernel cache, then `count` times with a warm one."""
    family = checkpoints.family("tiny")
    found: dict[str, dict] = {}
    for method in methods:
        wanted = merges.merge(method, FAMILIES["tiny"].fine_tunes)
        merges.write(family, wanted)
        out = WORK / "out" / "tiny"
        cache = Path(tempfile.mkdtemp(dir=WORK))
        timed = command(OURS, wanted, out)
        cold = Command(timed.argv, timed.shown, timed.environment | {"NUMBA_CACHE_DIR": str(cache)})
        runs.fresh(out)
        first = runs.measure(cold, family)
        warm = []
        for _ in range(count):
            runs.fresh(out)
            warm.append(runs.measure(cold, family))
        shutil.rmtree(cache)
        runs.fresh(out)
        found[method] = {"first": runs.summary([first]), "warm": runs.summary(warm)}
    return found


if __name__ == "__main__":
    size, rounds, named, wanted_methods = sys.argv[1:]
    at = checkpoints.family(size)
    for name in ("linear", "ties"):
        merges.write(at, merges.merge(name, FAMILIES[size].fine_tunes))
    used_peers = [peer for peer in named.split(",") if peer]
    timed_methods = [method for method in wanted_methods.split(",") if method]
    start = commands(at, int(rounds), used_peers, ours=bool(timed_methods))
    print(json.dumps({"startup": start, "tiny": tiny(timed_methods, int(rounds))}))
