"""Run commands one after another and record wall, CPU and peak memory of each; prepare the page cache before."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from folder import places, weight_files
from paths import REPOSITORY, SPEED, WORK
from tools import Command

OUT = WORK / "out"


@dataclass(frozen=True)
class Run:
    """One measured process."""

    wall: float
    cpu: float
    rss_mb: float
    anonymous_mb: float
    error: str | None = None


def measure(command: Command, folder: Path) -> Run:
    """Run a command in `folder` through measure.py; a failure is a Run with an error, not an exception."""
    log = WORK / "last.log"
    argv = [sys.executable, "-I", "-S", str(SPEED / "measure.py"), str(log), str(folder), *command.argv]
    environment = os.environ | command.environment
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
    result = subprocess.run(argv, env=environment, capture_output=True, text=True)
    if result.returncode:
        return Run(0.0, 0.0, 0.0, 0.0, public(result.stderr.strip().splitlines()[-1]))
    status, wall, user, system, peak, anonymous = result.stdout.split()
    error = None
    if status != "0":
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        error = public(f"exit {status}: " + " | ".join(lines[-2:])[-400:])
    megabytes = [int(kilobytes) * 1024 / 1e6 for kilobytes in (peak, anonymous)]
    return Run(float(wall), float(user) + float(system), *megabytes, error)


def public(text: str) -> str:
    """A message without this machine's folders."""
    return text.replace(str(REPOSITORY), ".").replace(str(Path.home()), "~")


def warm(folders: list[Path]) -> None:
    """Read every weight file once, so that it lies in the page cache; write out what earlier runs left dirty."""
    os.sync()
    buffer = bytearray(1 << 20)
    for folder in folders:
        for path in weight_files(folder):
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def cool(folders: list[Path], everything: bool) -> None:
    """Drop the weight files from the page cache (`everything`: the whole cache, where the system permits it)."""
    os.sync()
    for folder in folders:
        for path in weight_files(folder):
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
    if everything:
        Path("/proc/sys/vm/drop_caches").write_text("1\n")


def fresh(out: Path) -> None:
    """Remove an output folder, outside the timing."""
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)


def check(out: Path, like: Path) -> str | None:
    """None when the output has every tensor of `like` with its shape, in bfloat16; otherwise what is wrong."""
    made, wanted = places(out), places(like)
    if made.keys() != wanted.keys():
        return f"{len(made.keys() ^ wanted.keys())} tensors missing or unexpected"
    wrong = [n for n, p in made.items() if p.shape != wanted[n].shape or p.dtype != "BF16"]
    return f"{len(wrong)} tensors of the wrong shape or type" if wrong else None


def summary(runs: list[Run]) -> dict:
    """Best and median of the successful runs, the error if there was one, and every run."""
    good = [run for run in runs if run.error is None]
    found: dict = {"runs": [asdict(run) for run in runs]}
    if len(good) < len(runs):
        found["error"] = next(run.error for run in runs if run.error)
    if good:
        found["best"] = min(run.wall for run in good)
        found["median"] = statistics.median(run.wall for run in good)
        found["cpu"] = statistics.median(run.cpu for run in good)
        found["rss_mb"] = max(run.rss_mb for run in good)
        found["anonymous_mb"] = max(run.anonymous_mb for run in good)
    return found
