"""The tools that are compared, each as a command line for one merge."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import peers
from merges import Merge
from paths import EUTECTIC, SPEED

COPY_BOUND, OURS, OURS_FSYNC = "copy bound", "eutectic", "eutectic, fsync"


@dataclass(frozen=True)
class Command:
    """What to run, with which extra environment, and how a report shows it."""

    argv: list[str]
    shown: str
    environment: dict[str, str] = field(default_factory=dict)


def command(tool: str, wanted: Merge, out: Path, device: str = "cpu") -> Command:
    """The command by which a tool makes this merge in OUT; the working folder is the family's."""
    recipe = f"{wanted.method}.yaml"
    if tool == COPY_BOUND:
        argv = [os.path.realpath(sys.executable), "-I", "-S", str(SPEED / "copy_bound.py"), str(out)]
        return Command([*argv, *wanted.inputs], f"python -I -S copy_bound.py OUT {' '.join(wanted.inputs)}")
    if tool in (OURS, OURS_FSYNC):
        flags = [] if tool == OURS_FSYNC else ["--no-fsync"]
        flags += [] if device == "cpu" else ["--device", device]
        shown = " ".join(["eutectic merge", recipe, "OUT", *flags])
        return Command([str(EUTECTIC), "merge", recipe, str(out), *flags], shown)
    if tool == "mergekit":
        flags = [] if device == "cpu" else ["--cuda"]
        argv = [str(peers.environment(tool) / "bin" / "mergekit-yaml"), recipe, str(out), *flags]
        shown = " ".join(["HF_HUB_OFFLINE=1 mergekit-yaml", recipe, "OUT", *flags])
        return Command(argv, shown, {"HF_HUB_OFFLINE": "1"})
    if tool == "sd-mecha":
        files = [f"{folder}/model.safetensors" for folder in wanted.inputs]
        script = str(SPEED / "sd_mecha_merge.py")
        argv = [str(peers.python(tool)), script, wanted.method, str(out / "model.safetensors"), *files]
        return Command(argv, f"python sd_mecha_merge.py {wanted.method} OUT {' '.join(wanted.inputs)}")
    raise SystemExit(f"no tool named {tool}")


def available(tool: str) -> bool:
    """Whether the tool's executable is there."""
    if tool == COPY_BOUND:
        return True
    if tool in (OURS, OURS_FSYNC):
        return EUTECTIC.exists()
    return peers.python(tool).exists()
